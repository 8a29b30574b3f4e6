import { GHCB } from '../../../server/hardware/amd/ghcb.js';
import { PAGE_SIZE } from '../../../server/hardware/units.js';
import { failed } from '../../../server/kernel/failure.js';
import type { Kernel } from '../../../server/kernel/kernel.js';
import type { Vcpu } from '../../../server/kernel/kvm/vcpu.js';
import { VcpuFile } from '../../../server/kernel/kvm/vcpu-file.js';
import type { Vm } from '../../../server/kernel/kvm/vm.js';
import { KVM_EXIT } from '../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../server/kernel/uapi/ioctls.js';
import { kvm_run, kvm_run__io } from '../../../server/kernel/uapi/kvm-run.js';
import { Destination } from '../../../server/migration/destination.js';
import type { GuestDescription } from '../../../server/migration/guest.js';
import type { Ledger } from '../../../server/migration/ledger.js';
import { type CopyLimits, DEFAULT_LIMITS } from '../../../server/migration/limits.js';
import { type ReceivedVm, receiveGuest } from '../../../server/migration/local-destination.js';
import { createSourceGuest } from '../../../server/migration/local-source.js';
import type { Frame } from '../../../server/migration/message.js';
import { Source } from '../../../server/migration/source.js';
import { createEsGuest, GHCB_GPA, vmgexit } from '../kernel/kvm/svm/es-guest.js';
import type { Guest, SevRig, Vmm } from '../kernel/kvm/svm/sev-rig.js';

const SERIAL = 0xe9;
const RAM = 64 * PAGE_SIZE;
const ENTRY = 0x1000;
/** Where the guest counts. */
export const COUNTER = 0x2000;

/** `inc word [COUNTER]; mov al, [COUNTER]; out SERIAL, al; jmp` back, in 16-bit code. */
const COUNT = Uint8Array.of(0xff, 0x06, 0x00, 0x20, 0xa0, 0x00, 0x20, 0xe6, SERIAL, 0xeb, 0xf5);

/** A guest that counts for ever, in its memory and on its serial port. */
export interface CountingGuest {
  readonly vmm: Vmm;
  readonly vm: Vm;
  readonly vmFd: number;
  readonly vcpuFd: number;
  readonly vcpu: Vcpu;
  /** Of its memory in the VMM. */
  readonly address: number;
}

export const countingGuest = (vmm: Vmm, guest: Guest, load: (address: number) => void): CountingGuest => {
  const address = vmm.map(null, RAM);
  vmm.write(address + ENTRY, COUNT);
  vmm.write(address + COUNTER, new Uint8Array(2));
  vmm.addSlot(guest, 0, 0, address, RAM);
  load(address);
  const [vcpu] = guest.vcpus;
  if (vcpu === undefined) throw new Error('no vCPU');
  vmm.startAt(vcpu.fd, ENTRY);
  return { vmm, vm: guest.vm, vmFd: guest.fd, vcpuFd: vcpu.fd, vcpu: vcpu.vcpu, address };
};

export const plainGuest = ({ vmm }: SevRig): CountingGuest => countingGuest(vmm, vmm.createGuest(1), () => {});

export const sevGuest = ({ vmm }: SevRig, policy = 0): CountingGuest => {
  const guest = vmm.createSevGuest({ policy });
  return countingGuest(vmm, guest, (address) => {
    vmm.must(vmm.updateData(guest, address + ENTRY, 2 * PAGE_SIZE));
    vmm.must(vmm.command(guest.fd, 'LAUNCH_FINISH'));
  });
};

const TEMPLATE = 0x10000;
const IOIO = 0x7bn;
const imm32 = (value: number): number[] => [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];

/** The same in 64-bit code, with OUT through the GHCB. */
export const sevEsGuest = ({ vmm }: SevRig): CountingGuest => {
  const request = { code: IOIO, info1: (BigInt(SERIAL) << 16n) | 0x10n, info2: 0n, rax: 0n };
  const copy = [0xbe, ...imm32(TEMPLATE), 0xbf, ...imm32(GHCB_GPA), 0xb9, ...imm32(PAGE_SIZE), 0xf3, 0xa4];
  const body = [
    ...copy,
    ...[0xff, 0x04, 0x25, ...imm32(COUNTER_ES)],
    ...[0x0f, 0xb6, 0x04, 0x25, ...imm32(COUNTER_ES)],
    ...[0x89, 0x04, 0x25, ...imm32(GHCB_GPA + GHCB.rax.offset)],
    ...vmgexit(GHCB_GPA),
  ];
  const code = [...body, 0xe9, ...imm32(-(body.length + 5) >>> 0)];
  const guest = createEsGuest(vmm, [request], code);
  // What the guest would say by KVM_HC_MAP_GPA_RANGE.
  guest.vm.arch.sharedFrames.mapGpaRange(GHCB_GPA / PAGE_SIZE, 1, 0n);
  const [vcpu] = guest.vcpus;
  if (vcpu === undefined) throw new Error('no vCPU');
  return { vmm, vm: guest.vm, vmFd: guest.fd, vcpuFd: guest.vcpuFd, vcpu: vcpu.vcpu, address: guest.address };
};

/** Where the 64-bit guest counts: a private page of its own. */
const COUNTER_ES = 0x9000;

/** KVM_RUN once; what the guest wrote to its serial port goes to `serial`. @returns exit reason or errno; null: it waits */
export const runOnce = ({ vmm, vcpuFd, vcpu }: CountingGuest, serial: number[]): number | string | null => {
  const result = vmm.process.startIoctl(vcpuFd, IOCTL.KVM_RUN).result();
  if (result === undefined) return null;
  if (failed(result)) return result.errno;
  const { exit_reason } = kvm_run.decode(vcpu.runPages.run.bytes);
  if (exit_reason === KVM_EXIT.IO) {
    const { port } = kvm_run__io.decode(vcpu.runPages.run.bytes);
    if (port !== SERIAL) throw new Error(`a write to port ${port}`);
    serial.push(vcpu.runPages.pio.bytes[0] ?? -1);
  }
  return exit_reason;
};

/** KVM_RUN with immediate_exit: the exit in flight is completed, and the guest does not go on. */
export const completeIo = (guest: CountingGuest): void => {
  const { bytes } = guest.vcpu.runPages.run;
  kvm_run.write(bytes, { immediate_exit: 1 });
  runOnce(guest, []);
  kvm_run.write(bytes, { immediate_exit: 0 });
};

/** A ledger that remembers nothing. */
export const nothingKept: Ledger = {
  id: 'memory',
  records: [],
  unwritable: null,
  record: () => null,
  hasCommitted: () => false,
  forget: () => {},
};
const LIMITS: CopyLimits = { ...DEFAULT_LIMITS, batchPages: 8, downtimeMs: 4, rounds: 5 };

/** A migration between two hosts of this process, over a wire that a test may put its hands on. */
export class Migration {
  received: ReceivedVm | null = null;
  readonly source: Source;
  readonly destination: Destination;
  private readonly from: Kernel;
  private now = 0;
  private readonly wire: { readonly to: 'source' | 'destination'; readonly frame: Frame }[] = [];

  /** @param tamper what becomes of a frame on its way to the destination */
  constructor(
    guest: CountingGuest,
    private readonly to: Vmm,
    private readonly tamper: (frame: Frame) => Frame = (frame) => frame,
    limits: Partial<CopyLimits> = {},
  ) {
    this.from = guest.vm.kernel;
    const local = createSourceGuest(guest.vm, 'session');
    if (failed(local)) throw new Error(local.reason);
    const here = { session: 'session', boot: 'here', ledger: 'here' };
    const there = { session: 'session', boot: 'there', ledger: 'memory' };
    this.source = new Source(here, local, nothingKept, { ...LIMITS, ...limits }, (frame) =>
      this.wire.push({ to: 'destination', frame }),
    );
    const receive = (description: GuestDescription) =>
      receiveGuest(to.process.kernel, to.process.process, description, (received) => {
        this.received = received;
      });
    this.destination = new Destination(there, receive, nothingKept, (frame) => this.wire.push({ to: 'source', frame }));
    this.source.connected();
    this.destination.connected();
  }

  /** One frame arrives, or one batch is sent. */
  step(): void {
    const flight = this.wire.shift();
    this.now++;
    if (flight === undefined) this.source.pump(this.now);
    else if (flight.to === 'source') this.source.receive(flight.frame, this.now);
    else this.destination.receive(this.tamper(flight.frame));
    this.from.scheduler.run();
    this.to.process.kernel.scheduler.run();
  }

  get over(): boolean {
    const { phase } = this.source.state;
    return phase === 'sent' || phase === 'stayed';
  }

  /** Goes on until something is so; fails if it does not become so. */
  until(condition: () => boolean): void {
    for (let step = 0; step < 2000 && !condition(); step++) this.step();
    if (!condition()) throw new Error(`the migration hangs in phase ${this.source.state.phase}`);
  }

  /** Runs until it is over, with the guest running on its source. */
  run(between: () => void = () => {}): string {
    for (let step = 0; step < 2000 && !this.over; step++) {
      between();
      this.step();
    }
    for (let step = 0; step < 2000 && this.wire.length > 0; step++) this.step();
    const { state } = this.source;
    return state.phase === 'stayed' ? state.reason : state.phase;
  }

  /** The guest where it is now. */
  arrived(): CountingGuest {
    const { received, to } = this;
    const vcpuFd = received?.vcpuFds[0] ?? -1;
    const ops = to.process.process.files.lookup(vcpuFd)?.ops;
    if (received === null || !(ops instanceof VcpuFile)) throw new Error('nothing has arrived');
    return { vmm: to, vm: ops.vcpu.vm, vmFd: received.vmFd, vcpuFd, vcpu: ops.vcpu, address: received.slots[0]?.address ?? 0 };
  }
}
