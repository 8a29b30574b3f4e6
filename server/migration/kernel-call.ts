import { Failure, type Result } from '../kernel/failure.js';
import { inlineArg } from '../kernel/fs/inline-copy.js';
import type { IoctlArg } from '../kernel/fs/ioctl-arg.js';
import type { Kernel } from '../kernel/kernel.js';
import type { Vcpu } from '../kernel/kvm/vcpu.js';
import type { Vm } from '../kernel/kvm/vm.js';
import { vmIoctl } from '../kernel/kvm/vm-ioctl.js';
import { kvmArchVcpuIoctl } from '../kernel/kvm/x86/vcpu-ioctl.js';
import type { Process } from '../kernel/process/process.js';
import type { Task } from '../kernel/sched/task.js';
import type { MaySleep } from '../kernel/sched/wait.js';

/**
 * Runs something that finds nothing to wait for, as a task of a process; EAGAIN if it has to wait after all. Where every lock
 * is a scheduling point, the others have their turns meanwhile.
 */
export const atOnce = <T>(
  { scheduler }: Kernel,
  process: Process,
  label: string,
  body: (current: Task) => MaySleep<T>,
): Result<T> => {
  const outcome: { result: { readonly value: T } | null } = { result: null };
  scheduler.start(process, label, body, (value) => {
    outcome.result = { value };
  });
  while (outcome.result === null && !scheduler.idle) scheduler.run(1);
  const { result } = outcome;
  return result === null ? new Failure('EAGAIN', 'MIGRATION_WOULD_WAIT', 'server/migration', { call: label }) : result.value;
};

/** The owner of a VM, in whose name its state is read and written. */
export const ownerOf = ({ kernel, ownerPid }: Vm): Process => kernel.processes.get(ownerPid) ?? kernel.init;

/** A vCPU ioctl without its gate and mutex, which a pause holds. `bytes` takes what the ioctl gives. */
export const vcpuCall = (vcpu: Vcpu, request: number, bytes: Uint8Array): Result<number> =>
  vcpuCallArg(vcpu, request, inlineArg(vcpu.vm.mm, bytes));

export const vcpuCallArg = (vcpu: Vcpu, request: number, arg: IoctlArg): Result<number> =>
  atOnce(vcpu.vm.kernel, ownerOf(vcpu.vm), 'vCPU state', (current) => kvmArchVcpuIoctl(current, vcpu, request, arg));

/** A VM ioctl without its gate. */
export const vmCall = (vm: Vm, request: number, bytes: Uint8Array): Result<number> =>
  vmCallArg(vm, request, inlineArg(vm.mm, bytes));

export const vmCallArg = (vm: Vm, request: number, arg: IoctlArg): Result<number> =>
  atOnce(vm.kernel, ownerOf(vm), 'VM state', (current) => vmIoctl(current, vm, request, arg));
