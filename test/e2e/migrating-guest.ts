import { type Daemon, introduce, type Process, SimKvm, startDaemon, type Vcpu, type Vm } from '../../client/index.js';

/** A daemon with a process whose VMM has guests. */
export interface Host extends AsyncDisposable {
  readonly daemon: Daemon;
  readonly simkvm: SimKvm;
  readonly process: Process;
}

export const startHost = async (...args: string[]): Promise<Host> => {
  const daemon = await startDaemon({ args });
  const simkvm = await SimKvm.connect(daemon.target);
  const process = await simkvm.attach({ name: 'vmm' });
  const end = async (): Promise<void> => {
    await process[Symbol.asyncDispose]().catch(() => {});
    await simkvm[Symbol.asyncDispose]();
    await daemon.stop();
  };
  return { daemon, simkvm, process, [Symbol.asyncDispose]: end };
};

/** Two hosts that know each other. */
export const startHosts = async (...args: string[]): Promise<{ readonly here: Host; readonly there: Host } & AsyncDisposable> => {
  const [here, there] = await Promise.all([startHost(...args), startHost(...args)]);
  await introduce(here.simkvm.migrations, there.simkvm.migrations);
  const end = async (): Promise<void> => {
    await Promise.all([here[Symbol.asyncDispose](), there[Symbol.asyncDispose]()]);
  };
  return { here, there, [Symbol.asyncDispose]: end };
};

const SERIAL = 0xe9;
const ENTRY = 0x1000;
const COUNTER = 0x2000;
const MEMORY_BYTES = 0x4_0000;
/** From here on the program uses nothing. */
const FREE = 0x3000n;

/** `inc word [COUNTER]; mov al, [COUNTER]; out SERIAL, al; jmp` back, in 16-bit code. */
const COUNT = Uint8Array.of(0xff, 0x06, 0x00, 0x20, 0xa0, 0x00, 0x20, 0xe6, SERIAL, 0xeb, 0xf5);

/** A guest that counts for ever, in its memory and on its serial port. */
export interface CountingGuest {
  readonly vm: Vm;
  readonly vcpu: Vcpu;
}

/** Memory with the program, and a vCPU that is about to start it in real mode. */
const counting = async (process: Process, vm: Vm, launch: (address: bigint) => Promise<void>): Promise<CountingGuest> => {
  const { memory } = process;
  const address = await memory.mmap({ length: MEMORY_BYTES });
  await memory.write(address + BigInt(ENTRY), COUNT);
  await memory.write(address + BigInt(COUNTER), new Uint8Array(2));
  await vm.setUserMemoryRegion({ slot: 0, guest_phys_addr: 0, memory_size: MEMORY_BYTES, userspace_addr: address, flags: 0 });
  const vcpu = await vm.createVcpu(0);
  const sregs = await vcpu.getSregs();
  const real = { base: 0n, selector: 0 };
  await vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, ...real }, ds: { ...sregs.ds, ...real } });
  await vcpu.setRegs({ rip: BigInt(ENTRY), rflags: 2n });
  await launch(address);
  return { vm, vcpu };
};

export const plainGuest = async ({ process }: Pick<Host, 'process'>): Promise<CountingGuest> => {
  await using kvm = await process.openKvm();
  return await counting(process, await kvm.createVm(), async () => {});
};

/** A plain one all of whose memory has been touched: at a page a second there is something to send for a minute. */
export const largeGuest = async (host: Pick<Host, 'process'>): Promise<CountingGuest> => {
  const guest = await plainGuest(host);
  for (const { userspace_addr, memory_size } of (await guest.vm.inspect()).memslots)
    await host.process.memory.fill(userspace_addr + FREE, 1, memory_size - FREE);
  return guest;
};

export const sevGuest = async ({ process }: Pick<Host, 'process'>, policy = 0): Promise<CountingGuest> => {
  await using kvm = await process.openKvm();
  await using sev = await process.openSev();
  const vm = await kvm.createVm();
  await vm.sev.init();
  return await counting(process, vm, async (address) => {
    await vm.memoryEncryptRegRegion({ addr: address, size: MEMORY_BYTES });
    await vm.sev.launchStart({ policy }, sev.fd);
    await vm.sev.launchUpdateData({ uaddr: address, len: MEMORY_BYTES });
    await vm.sev.launchMeasure({ len: 48 });
    await vm.sev.launchFinish();
  });
};

/**
 * Runs the guest until `over`; what it says goes to `serial`.
 * @returns why KVM_RUN did not go on, if it did not
 */
export const runWhile = async ({ vcpu }: CountingGuest, serial: number[], goesOn: () => boolean): Promise<string | null> => {
  while (goesOn()) {
    const { errno, value } = await vcpu.try.run();
    if (errno === 'EINTR') continue;
    if (errno !== null) return errno;
    if (value.reason !== 'KVM_EXIT_IO') return value.reason;
    if (value.io.port === SERIAL) serial.push(value.io.data[0] ?? -1);
  }
  return null;
};

/** What a guest says that has counted so far, from 1. */
export const upTo = (count: number): number[] => Array.from({ length: count }, (_, index) => (index + 1) & 0xff);
