import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import {
  type Daemon,
  EFD,
  EventFd,
  type Kvm,
  KvmCap,
  KvmExit,
  moveContext,
  type Process,
  SimKvm,
  startDaemon,
  tolerateMigratedVm,
  type Vcpu,
  Vm,
  VmState,
  validateMove,
} from '../../client/index.js';
import { expectNothingLeft } from './nothing-left.js';

const PAGE = 4096;
/** Where guest programs are put, below 64 KiB: vCPUs start in real mode. */
const ENTRY = 0x1000n;
const HLT = 0xf4;
const OUT_10H_AL = [0xe6, 0x10];
const JUMP_TO_SELF = [0xeb, 0xfe];
const SIGUSR1 = 10;

let daemon: Daemon;
let simkvm: SimKvm;
let process_: Process;

beforeAll(async () => {
  daemon = await startDaemon();
  simkvm = await SimKvm.connect(daemon.target);
});

afterAll(async () => {
  await simkvm[Symbol.asyncDispose]();
  await daemon.stop();
});

afterEach(async () => {
  await process_?.[Symbol.asyncDispose]();
  await expectNothingLeft(simkvm);
});

const attach = async (name = 'vmm'): Promise<Process> => {
  process_ = await simkvm.attach({ name });
  return process_;
};

/** A VM with 64 KiB of memory that has `program` at its entry. */
const vmWith = async (process: Process, kvm: Kvm, program: readonly number[]): Promise<{ vm: Vm; ram: bigint }> => {
  const ram = await process.memory.mmap({ length: 16 * PAGE });
  const vm = await kvm.createVm();
  await vm.setUserMemoryRegion({ slot: 0, guest_phys_addr: 0, memory_size: 16 * PAGE, userspace_addr: ram });
  await process.memory.write(ram + ENTRY, Uint8Array.from(program));
  return { vm, ram };
};

/** A vCPU that starts at the entry. */
const vcpuAtEntry = async (vm: Vm): Promise<Vcpu> => {
  const vcpu = await vm.createVcpu(0);
  const sregs = await vcpu.getSregs();
  if (sregs.cs === null) throw new Error('no cs');
  await vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, base: 0n, selector: 0 } });
  await vcpu.setRegs({ rip: ENTRY, rflags: 2n, rax: 0x41n });
  return vcpu;
};

describe('a VMM', () => {
  it('makes a VM and runs a guest, whose exits tell their data', async () => {
    await using process = await attach();
    await using kvm = await process.openKvm();
    expect(await kvm.getApiVersion()).toBe(12);
    const { vm } = await vmWith(process, kvm, [...OUT_10H_AL, HLT]);
    const vcpu = await vcpuAtEntry(vm);
    const io = await vcpu.run();
    expect(io).toMatchObject({ reason: 'KVM_EXIT_IO', io: { port: 0x10, size: 1, count: 1 } });
    expect(io.reason === 'KVM_EXIT_IO' && [...io.io.data]).toEqual([0x41]);
    expect((await vcpu.run()).reason).toBe('KVM_EXIT_HLT');
    expect((await vcpu.getRegs()).rip).toBe(ENTRY + 3n);
  });

  it('is told the kernel’s errno, and which check it was', async () => {
    await using process = await attach();
    await using kvm = await process.openKvm();
    const { vm, ram } = await vmWith(process, kvm, [HLT]);
    const overlapping = { slot: 1, guest_phys_addr: 0, memory_size: PAGE, userspace_addr: ram };
    expect(await vm.try.setUserMemoryRegion(overlapping)).toMatchObject({
      errno: 'EEXIST',
      error: { reason: 'MEMSLOT_OVERLAP' },
    });
    await expect(vm.setUserMemoryRegion(overlapping)).rejects.toMatchObject({
      errno: 'EEXIST',
      ioctl: 'KVM_SET_USER_MEMORY_REGION',
    });
  });

  it('is told which of its lines made the call', async () => {
    await using process = await attach();
    await using kvm = await process.openKvm();
    const theLineThatCalls = async (): Promise<unknown> => await kvm.createVm(99);
    await expect(theLineThatCalls()).rejects.toSatisfy((error: Error) => error.stack?.includes('theLineThatCalls') === true);
  });

  it('gets the room that a list needs with E2BIG', async () => {
    await using process = await attach();
    await using kvm = await process.openKvm();
    const refused = await kvm.try.getMsrIndexList(1);
    expect(refused.errno).toBe('E2BIG');
    const { indices } = await kvm.getMsrIndexList();
    expect(refused.value?.nmsrs).toBe(indices.length);
  });

  it('reaches every ioctl by its number too', async () => {
    await using process = await attach();
    await using kvm = await process.openKvm();
    expect(await process.ioctl(kvm, 0xae00, { value: 0 })).toMatchObject({ ret: 12n, errno: 0 });
    expect(await process.ioctl(kvm, 0xaeff, { value: 0 })).toMatchObject({ ret: -1n, errno_name: 'EINVAL' });
  });

  it('sees what the operator sees of its VM, and lists its descriptors', async () => {
    await using process = await attach();
    await using kvm = await process.openKvm();
    await using vm = await kvm.createVm();
    const { vm_id, state, owner_pid } = await vm.inspect();
    expect({ state, owner_pid }).toEqual({ state: VmState.VM_STATE_ALIVE, owner_pid: process.pid });
    expect((await simkvm.host.listVms()).map((summary) => summary.vm_id)).toEqual([vm_id]);
    expect((await process.listFds()).map(({ kind }) => kind)).toEqual(['kvm', 'kvm-vm']);
    expect((await vm.file.fstat()).st_size).toBe(0n);
  });
});

describe('KVM_RUN', () => {
  it('is interrupted by an AbortSignal, and answers EINTR with its exit', async () => {
    await using process = await attach();
    await using kvm = await process.openKvm();
    const { vm } = await vmWith(process, kvm, JUMP_TO_SELF);
    const vcpu = await vcpuAtEntry(vm);
    const { errno, value } = await vcpu.with({ signal: AbortSignal.timeout(50) }).try.run();
    expect({ errno, reason: value?.reason }).toEqual({ errno: 'EINTR', reason: 'KVM_EXIT_INTR' });
    expect((await vcpu.getRegs()).rip).toBe(ENTRY);
  });

  it('is interrupted by a signal to its thread', async () => {
    await using process = await attach();
    await using kvm = await process.openKvm();
    const { vm } = await vmWith(process, kvm, JUMP_TO_SELF);
    const run = (await vcpuAtEntry(vm)).with({ thread: 77 }).try.run();
    await process.signal(SIGUSR1, { tid: 77 });
    expect((await run).errno).toBe('EINTR');
  });

  it('lasts while thousands of other calls come and go, and its reply is not forgotten', async () => {
    await using process = await attach();
    await using kvm = await process.openKvm();
    const { vm } = await vmWith(process, kvm, JUMP_TO_SELF);
    const abort = new AbortController();
    const run = (await vcpuAtEntry(vm)).with({ signal: abort.signal }).try.run();
    await using counter = await process.eventfd(0, EFD.NONBLOCK);
    for (let batch = 0; batch < 20; batch++) await Promise.all(Array.from({ length: 64 }, () => counter.write(1)));
    expect(await counter.read()).toBe(1280n);
    abort.abort();
    expect((await run).value?.run.exit_reason).toBe(KvmExit.KVM_EXIT_INTR);
  });
});

describe('a process', () => {
  it('ends with its connection: what it had open is closed', async () => {
    const other = await SimKvm.connect(daemon.target);
    const process = await other.attach();
    const vm = await (await process.openKvm()).createVm();
    const { vm_id } = await vm.inspect();
    await process.abandon();
    await expect.poll(async () => (await simkvm.host.try.getVm(vm_id)).errno).toBe('ENOENT');
    await other[Symbol.asyncDispose]();
  });

  it('ends with the program that attached it, killed with everything open', async () => {
    const client = new URL('../../dist/client/index.js', import.meta.url);
    const script = `
      import { SimKvm } from ${JSON.stringify(client.href)};
      const simkvm = await SimKvm.connect(${JSON.stringify(daemon.target)});
      const process_ = await simkvm.attach();
      const vm = await (await process_.openKvm()).createVm();
      void (await vm.createVcpu(0)).run();
      console.log('open');
      setInterval(() => {}, 1000);`;
    const child = spawn(process.execPath, ['--input-type=module', '--eval', script], { stdio: ['ignore', 'pipe', 'inherit'] });
    await once(child.stdout, 'data');
    expect(await simkvm.host.listVms()).toHaveLength(1);
    child.kill('SIGKILL');
    await once(child, 'exit');
    await expect.poll(async () => (await simkvm.host.getHost()).vms).toBe(0);
  });

  it('minds neither a second end nor handles that outlive it', async () => {
    const process = await attach();
    const kvm = await process.openKvm();
    await process.exit(3);
    expect(await process.ended).toEqual({ kind: 'exited', status: 3 });
    await process.exit();
    await kvm[Symbol.asyncDispose]();
    await expect(kvm.getApiVersion()).rejects.toMatchObject({ errno: 'EBADF' });
  });

  it('that is gone is named in the errors of its calls', async () => {
    const process = await attach();
    const kvm = await process.openKvm();
    await process.exit();
    await expect(kvm.getApiVersion()).rejects.toMatchObject({ errno: 'ESRCH', reason: 'PROCESS_NOT_FOUND' });
  });

  it('sends descriptors: by the receiver’s token, or by its pid once it has accepted', async () => {
    await using from = await attach('from');
    await using to = await simkvm.attach({ name: 'to' });
    await using counter = await from.eventfd(5, EFD.NONBLOCK);
    const events: unknown[] = [];
    to.listen((event) => events.push(event));
    const received = to.adopt(EventFd, await from.sendFd(counter, to));
    expect(await received.read()).toBe(5n);
    expect((await from.try.sendFd(counter, { pid: to.pid })).errno).toBe('EPERM');
    await to.acceptFds(1, from.pid);
    await from.sendFd(counter, { pid: to.pid });
    await expect.poll(() => events.length).toBe(2);
    expect(events[0]).toMatchObject({ kind: 'fd-received', fd: received.fd, fromPid: from.pid });
  });

  it('forks: the child has its descriptors, and no right to its VMs', async () => {
    await using parent = await attach('parent');
    await using kvm = await parent.openKvm();
    await using vm = await kvm.createVm();
    const child = await parent.fork('child');
    expect((await child.adopt(Vm, vm.fd).try.createIrqchip()).errno).toBe('EIO');
    await using attached = await simkvm.attach({ token: child.token });
    expect(attached.pid).toBe(child.pid);
  });

  it('without a lease lives until it exits', async () => {
    const spawned = await simkvm.spawn('spawned');
    await using counter = await spawned.eventfd(1);
    expect(await counter.read()).toBe(1n);
    await counter.close();
    await spawned.exit();
    await expect(spawned.openKvm()).rejects.toMatchObject({ reason: 'PROCESS_NOT_FOUND' });
  });

  it('reads pipes, and polls', async () => {
    await using process = await attach();
    const { readEnd, writeEnd } = await process.pipe();
    const reading = process.poll([{ fd: readEnd.fd, events: 1 }], -1);
    await writeEnd.write(Buffer.from('ring'));
    expect((await reading).map(({ revents }) => revents)).toEqual([1]);
    expect(Buffer.from(await readEnd.read(16)).toString()).toBe('ring');
  });
});

describe('memory', () => {
  it('takes and gives megabytes as streams, with their digest', async () => {
    await using process = await attach();
    const length = 3 * 2 ** 20 + 123;
    const addr = await process.memory.mmap({ length });
    const data = Buffer.alloc(length, 'simkvm');
    const { bytes, sha256 } = await process.memory.load(addr, data);
    expect(bytes).toBe(length);
    const chunks: Uint8Array[] = [];
    let digest = '';
    for await (const message of process.memory.dump(addr, length)) {
      chunks.push(message.chunk);
      digest = message.sha256;
    }
    expect(Buffer.concat(chunks).equals(data)).toBe(true);
    expect(digest).toBe(sha256);
  });

  it('keeps what was stored before a fault', async () => {
    await using process = await attach();
    const addr = await process.memory.mmap({ length: PAGE });
    const { errno } = await process.memory.try.load(addr, Buffer.alloc(PAGE + 1, 7));
    expect(errno).toBe('EFAULT');
    expect(await process.memory.read(addr, 4)).toEqual(Uint8Array.of(7, 7, 7, 7));
  });

  it('lets the source of a stream fail, with its own error', async () => {
    await using process = await attach();
    const addr = await process.memory.mmap({ length: PAGE });
    async function* broken(): AsyncIterable<Uint8Array> {
      yield Uint8Array.of(1);
      throw new Error('disk on fire');
    }
    await expect(process.memory.load(addr, broken())).rejects.toThrow('disk on fire');
  });

  it('is shared through a memfd', async () => {
    await using process = await attach();
    await using ram = await process.memory.memfdCreate('ram');
    await ram.ftruncate(PAGE);
    const [one, two] = [
      await process.memory.mmap({ fd: ram, length: PAGE }),
      await process.memory.mmap({ fd: ram, length: PAGE }),
    ];
    await process.memory.write(one, 'shared');
    expect(Buffer.from(await process.memory.read(two, 6)).toString()).toBe('shared');
    await process.memory.fill(one, 0xcc, PAGE);
    expect(await ram.read(2, 100)).toEqual(Uint8Array.of(0xcc, 0xcc));
    await process.memory.munmap(one, PAGE);
    expect((await process.memory.try.read(one, 1)).errno).toBe('EFAULT');
  });
});

describe('an eventfd', () => {
  it('is watched as by an epoll loop, until the watcher leaves', async () => {
    await using process = await attach();
    await using counter = await process.eventfd(0, EFD.NONBLOCK);
    const seen: bigint[] = [];
    const watching = (async () => {
      for await (const { value } of counter.watch(true)) {
        seen.push(value);
        if (seen.length === 2) return;
      }
    })();
    await counter.write(3);
    await expect.poll(() => seen.length).toBe(1);
    await counter.write(4);
    await watching;
    expect(seen).toEqual([3n, 4n]);
    expect((await counter.try.read()).errno).toBe('EAGAIN');
  });
});

describe('a call', () => {
  it('that takes too long is given up, and what it waited for is not taken', async () => {
    await using process = await attach();
    await using counter = await process.eventfd();
    await expect(counter.with({ timeoutMs: 50 }).try.read()).rejects.toMatchObject({ errno: null, reason: 'DEADLINE_EXCEEDED' });
    await counter.write(7);
    expect(await counter.read()).toBe(7n);
  });

  it('that cannot be encoded fails before it is sent', async () => {
    await using process = await attach();
    await using counter = await process.eventfd();
    await expect(counter.write(-1)).rejects.toThrow('-1 is not in 0 to 18446744073709551615');
    await expect(counter.write(2 ** 60)).rejects.toThrow('is no safe integer');
  });
});

describe('streams that are left early', () => {
  it('take their connection with them where they are too many, and not the process', async () => {
    await using process = await attach();
    await using counter = await process.eventfd(1);
    const look = async (): Promise<void> => {
      for await (const _ of counter.watch()) return;
    };
    for (let turn = 0; turn < 100; turn++) await Promise.allSettled(Array.from({ length: 20 }, look));
    expect(await counter.read()).toBe(1n);
  });
});

describe('a move of an encryption context', () => {
  /** A launched SEV guest of one page. */
  const launched = async (process: Process, kvm: Kvm): Promise<Vm> => {
    const { vm, ram } = await vmWith(process, kvm, [HLT]);
    await using sev = await process.openSev();
    await vm.sev.init();
    await vm.sev.launchStart({ policy: 0 }, sev.fd);
    await vm.sev.launchUpdateData({ uaddr: ram + ENTRY, len: PAGE });
    expect((await vm.sev.launchMeasure({ len: 48 })).uaddr_bytes).toHaveLength(48);
    await vm.sev.launchFinish();
    return vm;
  };

  const deleteSlot = { slot: 0, guest_phys_addr: 0, memory_size: 0, userspace_addr: 0 };

  it('tells its phases, and leaves a dead VM whose errors say where the guest has gone', async () => {
    await using process = await attach();
    await using kvm = await process.openKvm();
    await using source = await launched(process, kvm);
    await using destination = await kvm.createVm();
    const { vm_id } = await destination.inspect();
    expect(await validateMove(destination, source)).toMatchObject({ allowed: true });
    const phases: string[] = [];
    for await (const { phase } of moveContext(destination, source)) phases.push(phase);
    expect(phases).toEqual(['vms_locked', 'vcpus_locked', 'checked', 'vm_state', 'policy', 'done']);
    const { errno, error } = await source.try.setUserMemoryRegion(deleteSlot);
    expect(errno).toBe('EIO');
    expect(error).toMatchObject({ reason: 'VM_DEAD_MOVED', deathCause: { kind: 'moved', toVmId: vm_id, byPid: process.pid } });
    expect(await validateMove(destination, source)).toMatchObject({ allowed: false, errno_name: 'EINVAL' });
  });

  it('follows the policy that the source was given', async () => {
    await using process = await attach();
    await using kvm = await process.openKvm();
    await using source = await launched(process, kvm);
    await using destination = await kvm.createVm();
    expect(await source.setPostMovePolicy('NOT_DEAD')).toBe('VM_DEAD');
    await destination.moveEncContextFrom(source);
    expect(await source.setUserMemoryRegion(deleteSlot)).toBe(0);
    expect((await source.try.setPostMovePolicy('VM_DEAD')).errno).toBe('EBUSY');
  });

  it('leaves a VM that a tolerant VMM can tear down', async () => {
    await using process = await attach();
    await using kvm = await process.openKvm();
    await using vm = await launched(process, kvm);
    const { vm: source, swallowed } = tolerateMigratedVm(vm);
    await using destination = await kvm.createVm();
    await destination.moveEncContextFrom(source);
    expect(await source.setUserMemoryRegion(deleteSlot)).toBe(0);
    expect([...swallowed]).toEqual([['KVM_SET_USER_MEMORY_REGION delete', 1]]);
    expect((await source.try.checkExtension(KvmCap.KVM_CAP_NR_MEMSLOTS)).errno).toBe('EIO');
  });
});
