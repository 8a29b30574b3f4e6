import type { Clock } from '../../../../server/kernel/clock.js';
import { DEFAULT_HOST_CONFIG, type HostConfig } from '../../../../server/kernel/config.js';
import { failed, type Result } from '../../../../server/kernel/failure.js';
import { inlineArg } from '../../../../server/kernel/fs/inline-copy.js';
import type { IoctlArg } from '../../../../server/kernel/fs/ioctl-arg.js';
import type { Kernel } from '../../../../server/kernel/kernel.js';
import { createHost, type HostEnvironment } from '../../../../server/kernel/kvm/host.js';
import type { Vcpu } from '../../../../server/kernel/kvm/vcpu.js';
import { VcpuFile } from '../../../../server/kernel/kvm/vcpu-file.js';
import type { Vm } from '../../../../server/kernel/kvm/vm.js';
import { VmFile } from '../../../../server/kernel/kvm/vm-file.js';
import type { Process } from '../../../../server/kernel/process/process.js';
import { Scheduler } from '../../../../server/kernel/sched/scheduler.js';
import type { Task } from '../../../../server/kernel/sched/task.js';
import type { MightSleep } from '../../../../server/kernel/sched/wait.js';
import { open } from '../../../../server/kernel/syscalls/descriptors.js';
import { ioctl } from '../../../../server/kernel/syscalls/ioctl.js';
import { IOCTL } from '../../../../server/kernel/uapi/ioctls.js';
import { trackHost } from '../../../helpers/leftovers.js';

/** An argument of ioctl: a value, a structure's bytes (written to in place), or nothing. */
export type TestArg = number | bigint | Uint8Array;

const argOf = (process: Process, arg: TestArg): IoctlArg => {
  if (process.mm === null) throw new Error('a process without memory');
  return arg instanceof Uint8Array ? inlineArg(process.mm, arg) : { value: BigInt.asUintN(64, BigInt(arg)), user: process.mm };
};

/** A call that has been started, and may still wait. */
export interface Started<T> {
  readonly task: Task;
  readonly result: () => T | undefined;
}

/** A process of a simulated host, whose calls run to their end at once. */
export class TestProcess {
  constructor(
    readonly kernel: Kernel,
    readonly process: Process,
  ) {}

  /** Starts a call; `result` is undefined as long as it waits. @param between called before each step of any task */
  start<T>(body: (current: Task) => MightSleep<T>, between: () => void = () => {}): Started<T> {
    const { scheduler } = this.kernel;
    let result: { readonly value: T } | undefined;
    const task = scheduler.start(this.process, 'test', body, (value) => {
      result = { value };
    });
    do between();
    while (scheduler.run(1));
    return { task, result: () => result?.value };
  }

  call<T>(body: (current: Task) => MightSleep<T>): T {
    let done: { readonly value: T } | undefined;
    this.start(function* noting(current) {
      done = { value: yield* body(current) };
    });
    if (done === undefined) throw new Error('the call has not come to its end');
    return done.value;
  }

  ioctl(fd: number, request: number, arg: TestArg = 0): Result<number> {
    return this.call((current) => ioctl(current, fd, request, argOf(this.process, arg)));
  }

  startIoctl(fd: number, request: number, arg: TestArg = 0, between: () => void = () => {}): Started<Result<number>> {
    return this.start((current) => ioctl(current, fd, request, argOf(this.process, arg)), between);
  }

  /** The errno of a call that fails, or its value. */
  try(fd: number, request: number, arg: TestArg = 0): string | number {
    const result = this.ioctl(fd, request, arg);
    return failed(result) ? result.errno : result;
  }

  must(result: Result<number>): number {
    if (failed(result)) throw new Error(`${result.errno} ${result.reason}`);
    return result;
  }

  openKvm(): number {
    return this.must(this.call((current) => open(this.kernel, current, '/dev/kvm', 2)));
  }

  createVm(type = 0): { readonly fd: number; readonly vm: Vm } {
    const fd = this.must(this.ioctl(this.openKvm(), IOCTL.KVM_CREATE_VM, type));
    const ops = this.process.files.lookup(fd)?.ops;
    if (!(ops instanceof VmFile)) throw new Error('not a VM');
    return { fd, vm: ops.vm };
  }

  createVcpu(vmFd: number, id = 0): { readonly fd: number; readonly vcpu: Vcpu } {
    const fd = this.must(this.ioctl(vmFd, IOCTL.KVM_CREATE_VCPU, id));
    const ops = this.process.files.lookup(fd)?.ops;
    if (!(ops instanceof VcpuFile)) throw new Error('not a vCPU');
    return { fd, vcpu: ops.vcpu };
  }

  close(fd: number): void {
    const failure = this.call((current) => this.process.files.close(current, fd));
    if (failure !== null) throw new Error(`close: ${failure.errno}`);
  }

  closeAll(): void {
    this.call((current) => this.process.files.closeAll(current));
  }
}

export interface TestHost extends TestProcess {
  /** A new process of the same host. */
  spawn(): TestProcess;
  /** A VM with one vCPU. */
  withVcpu(): { readonly vmFd: number; readonly vm: Vm; readonly vcpuFd: number; readonly vcpu: Vcpu };
}

/** A host with one process, whose clock stands still unless another one is given. */
export const createTestHost = (
  config: Partial<HostConfig> = {},
  scheduler = new Scheduler(),
  clock: Clock = { now: () => 0n },
  environment: Omit<HostEnvironment, 'clock' | 'scheduler'> = {},
): TestHost => {
  const kernel = trackHost(createHost({ ...DEFAULT_HOST_CONFIG, ...config }, { ...environment, clock, scheduler }));
  const first = new TestProcess(kernel, kernel.spawn(null));
  return Object.assign(first, {
    spawn: () => new TestProcess(kernel, kernel.spawn(null)),
    withVcpu: () => {
      const { fd: vmFd, vm } = first.createVm();
      const { fd: vcpuFd, vcpu } = first.createVcpu(vmFd);
      return { vmFd, vm, vcpuFd, vcpu };
    },
  });
};
