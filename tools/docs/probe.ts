import { DEFAULT_HOST_CONFIG } from '../../server/kernel/config.js';
import { type Failure, failed, type Result } from '../../server/kernel/failure.js';
import type { Kernel } from '../../server/kernel/kernel.js';
import { createHost } from '../../server/kernel/kvm/host.js';
import type { AddressSpace } from '../../server/kernel/mm/address-space.js';
import type { Process } from '../../server/kernel/process/process.js';
import type { Task } from '../../server/kernel/sched/task.js';
import type { MightSleep } from '../../server/kernel/sched/wait.js';
import { open } from '../../server/kernel/syscalls/descriptors.js';
import { ioctl } from '../../server/kernel/syscalls/ioctl.js';
import { mmap } from '../../server/kernel/syscalls/memory.js';
import { IOCTL, type IoctlEntry, type IoctlFd } from '../../server/kernel/uapi/ioctls.js';
import { MAP, PROT } from '../../server/kernel/uapi/mman.js';

const SCRATCH_BYTES = 0x10000n;
/** A request that the kind of file does not know, or knows as something that this kernel is built without. */
const LEFT_OUT = /^(IOCTL_UNKNOWN|UNKNOWN_IOCTL|NO_SMM|NO_KVMCLOCK|NO_VIRTUAL_PMU)$/;

/** A default host in memory, to be asked what it answers. */
export class Probe {
  private readonly kernel: Kernel = createHost(DEFAULT_HOST_CONFIG, { clock: { now: () => 0n } });
  private readonly process: Process = this.kernel.spawn(null);
  private readonly mm: AddressSpace;
  private readonly scratch: bigint;
  private readonly files: Readonly<Record<'system' | 'vm' | 'vcpu', number>>;

  constructor() {
    const { mm } = this.process;
    if (mm === null) throw new Error('a process without memory');
    this.mm = mm;
    this.scratch = BigInt(this.must((current) => this.map(current)));
    const system = this.must((current) => open(this.kernel, current, '/dev/kvm', 2));
    const vm = this.must((current) => this.ioctl(current, system, IOCTL.KVM_CREATE_VM, 0n));
    const vcpu = this.must((current) => this.ioctl(current, vm, IOCTL.KVM_CREATE_VCPU, 0n));
    this.files = { system, vm, vcpu };
  }

  /** KVM_CHECK_EXTENSION. */
  capability(on: 'system' | 'vm', number: number): number {
    return this.must((current) => this.ioctl(current, this.files[on], IOCTL.KVM_CHECK_EXTENSION, BigInt(number)));
  }

  /** How a kind of file refuses a request that it is left out of; null: it takes it. */
  refusal(fd: IoctlFd, { request, arg }: IoctlEntry): Failure | null {
    if (fd === 'device' || fd === 'sev' || request === IOCTL.KVM_RUN) return null;
    const value = arg.kind === 'struct' ? this.scratch : 0n;
    const result = this.call((current) => this.ioctl(current, this.files[fd], request, value));
    return failed(result) && LEFT_OUT.test(result.reason) ? result : null;
  }

  private ioctl(current: Task, fd: number, request: number, value: bigint): MightSleep<Result<number>> {
    return ioctl(current, fd, request, { value, user: this.mm });
  }

  private *map(current: Task): MightSleep<Result<number>> {
    const anonymous = { prot: PROT.READ | PROT.WRITE, flags: MAP.PRIVATE | MAP.ANONYMOUS, fd: -1, offset: 0n };
    return mmap(current, { address: 0n, length: SCRATCH_BYTES, ...anonymous });
  }

  private must(body: (current: Task) => MightSleep<Result<number>>): number {
    const result = this.call(body);
    if (failed(result)) throw new Error(`${result.errno} ${result.reason}`);
    return result;
  }

  private call(body: (current: Task) => MightSleep<Result<number>>): Result<number> {
    let done: { readonly value: Result<number> } | null = null;
    const take = (value: Result<number>): void => {
      done = { value };
    };
    this.kernel.scheduler.start(this.process, 'probe', body, take);
    while (this.kernel.scheduler.run(1));
    return finished(done);
  }
}

const finished = (done: { readonly value: Result<number> } | null): Result<number> => {
  if (done === null) throw new Error('the call waits');
  return done.value;
};
