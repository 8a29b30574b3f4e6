import { Failure, failed, type Result } from '../failure.js';
import { inlineArg } from '../fs/inline-copy.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { KVM_CAP } from '../uapi/capabilities.js';
import { IOCTL } from '../uapi/ioctls.js';
import { kvm_enable_cap } from '../uapi/kvm-structs.js';
import { gate } from './gate.js';
import type { Vm } from './vm.js';
import { VmFile } from './vm-file.js';
import type { MoveOptions } from './x86/ops.js';

const KERNEL_REF = 'kvm_vm_ioctl_enable_cap';

/** The way to the vendor's operation that KVM_ENABLE_CAP takes: descriptor, gate, and whether there is such an operation. */
const destinationOf = (current: Task, fd: number, sourceFd: number): Result<Vm> => {
  const file = current.process.files.get(fd);
  if (failed(file)) return file;
  if (!(file.ops instanceof VmFile))
    return new Failure('ENOTTY', 'FD_NOT_A_VM', KERNEL_REF, { field: 'fd', fd: String(fd), file: file.ops.name });
  const { mm } = current.process;
  if (mm === null) throw new Error('a kernel thread moves no encryption context');
  const { vm } = file.ops;
  const args = [BigInt.asUintN(32, BigInt(sourceFd)), 0n, 0n, 0n];
  const arg = inlineArg(mm, kvm_enable_cap.encode({ cap: KVM_CAP.VM_MOVE_ENC_CONTEXT_FROM, args }));
  const admission = gate(current, vm, { scope: 'vm', request: IOCTL.KVM_ENABLE_CAP, arg });
  if (admission.kind === 'refuse') return admission.failure;
  if (admission.kind === 'answer') return new Failure('EIO', 'VM_DEAD_MOVED', KERNEL_REF, { answered: String(admission.ret) });
  return vm;
};

const unsupported = (): Failure => new Failure('EINVAL', 'MOVE_UNSUPPORTED', KERNEL_REF, { vendor: 'intel' });

/**
 * KVM_ENABLE_CAP with KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM on the VM behind `fd`, told phase by phase. A destination whose
 * policy answers every ioctl with success and does nothing cannot be told phases: EIO.
 */
export function* moveContext(current: Task, fd: number, sourceFd: number, options: MoveOptions): MightSleep<Result<number>> {
  const vm = destinationOf(current, fd, sourceFd);
  if (failed(vm)) return vm;
  const { ops } = vm.kernel;
  return ops.vmMoveEncContextFrom === undefined ? unsupported() : yield* ops.vmMoveEncContextFrom(current, vm, sourceFd, options);
}

/** What `moveContext` would be refused with now, without any effect; null: it would be allowed. */
export const validateMoveContext = (current: Task, fd: number, sourceFd: number): Failure | null => {
  const vm = destinationOf(current, fd, sourceFd);
  if (failed(vm)) return vm;
  const { ops } = vm.kernel;
  return ops.validateMoveEncContextFrom === undefined ? unsupported() : ops.validateMoveEncContextFrom(current, vm, sourceFd);
};
