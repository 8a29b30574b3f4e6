import type { MoveContextRequest, MoveContextResponseInit } from '../../../gen/messages.js';
import { MigrationService } from '../../../gen/services.js';
import { Failure, failed, type Result } from '../../kernel/failure.js';
import { inlineArg } from '../../kernel/fs/inline-copy.js';
import { gate } from '../../kernel/kvm/gate.js';
import type { MovePhase } from '../../kernel/kvm/move-phase.js';
import type { Vm } from '../../kernel/kvm/vm.js';
import { VmFile } from '../../kernel/kvm/vm-file.js';
import type { Task } from '../../kernel/sched/task.js';
import type { MightSleep } from '../../kernel/sched/wait.js';
import { ioctl } from '../../kernel/syscalls/ioctl.js';
import { KVM_CAP } from '../../kernel/uapi/capabilities.js';
import { IOCTL } from '../../kernel/uapi/ioctls.js';
import { kvm_enable_cap } from '../../kernel/uapi/kvm-structs.js';
import { mmOf } from '../ioctl/method.js';
import type { Route } from '../route.js';
import { type StreamContext, serverStream } from '../streams.js';
import { policyNumber } from '../views/policy.js';
import { verdictOf } from './host.js';

const phaseView = (phase: MovePhase, counts: () => Record<string, number>): MoveContextResponseInit => {
  switch (phase.kind) {
    case 'vms-locked':
      return { vms_locked: { source_vm_id: phase.source, destination_vm_id: phase.destination } };
    case 'vcpus-locked':
      return { vcpus_locked: { source_vcpus: phase.source, destination_vcpus: phase.destination } };
    case 'checked':
      return { checked: {} };
    case 'vm-state': {
      const { asid, handle, regions, pinnedBytes, mirrors } = phase;
      return { vm_state: { asid, handle, regions, pinned_bytes: pinnedBytes, mirrors } };
    }
    case 'vcpu':
      return { vcpu: { index: phase.index, save_area_bytes: phase.saveAreaBytes } };
    case 'policy':
      return { policy: { policy: policyNumber(phase.policy) } };
    case 'done':
      return { done: { ret: 0, counts: counts() } };
  }
};

const noMove = (vm: Vm): Failure =>
  new Failure('EINVAL', 'CAPABILITY_UNSUPPORTED', 'kvm_vm_ioctl_enable_cap', {
    object: `vm ${vm.id}`,
    cap: 'KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM',
  });

/** The argument of the ioctl that this call stands for: it goes through the same gate. */
const enableCapArg = (current: Task, sourceFd: number) =>
  inlineArg(
    mmOf(current),
    kvm_enable_cap.encode({ cap: KVM_CAP.VM_MOVE_ENC_CONTEXT_FROM, args: [BigInt.asUintN(64, BigInt(sourceFd))] }),
  );

/** KVM_ENABLE_CAP with KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM, with somebody watching. */
function* move(current: Task, fd: number, sourceFd: number, observer: (phase: MovePhase) => void): MightSleep<Result<number>> {
  const file = current.process.files.lookup(fd);
  const arg = enableCapArg(current, sourceFd);
  // On anything but a VM the ioctl answers as it does there.
  if (!(file?.ops instanceof VmFile)) return yield* ioctl(current, fd, IOCTL.KVM_ENABLE_CAP, arg);
  const { vm } = file.ops;
  const admission = gate(current, vm, { scope: 'vm', request: IOCTL.KVM_ENABLE_CAP, arg });
  if (admission.kind !== 'run') return admission.kind === 'refuse' ? admission.failure : admission.ret;
  const { ops } = vm.kernel;
  if (ops.vmMoveEncContextFrom === undefined) return noMove(vm);
  file.get();
  const result = yield* ops.vmMoveEncContextFrom(current, vm, sourceFd, { observer });
  yield* file.put(current);
  return result;
}

const validate = (current: Task, fd: number, sourceFd: number): Failure | null => {
  const file = current.process.files.get(fd);
  if (failed(file)) return file;
  if (!(file.ops instanceof VmFile))
    return new Failure('ENOTTY', 'FD_NOT_VM', 'vfs_ioctl', { field: 'fd', given: file.ops.name });
  const { vm } = file.ops;
  const admission = gate(current, vm, { scope: 'vm', request: IOCTL.KVM_ENABLE_CAP, arg: enableCapArg(current, sourceFd) });
  if (admission.kind === 'refuse') return admission.failure;
  const { ops } = vm.kernel;
  return ops.validateMoveEncContextFrom === undefined ? noMove(vm) : ops.validateMoveEncContextFrom(current, vm, sourceFd);
};

const moveContext = async (
  { fd, source_fd, validate_only }: MoveContextRequest,
  { dispatch, caller, send, signal }: StreamContext<MoveContextResponseInit>,
): Promise<Failure | null> => {
  const { costs } = dispatch.host.kernel;
  const begun = costs.nanoseconds;
  const before = new Map(costs.counts);
  const counts = (): Record<string, number> =>
    Object.fromEntries(
      [...costs.counts].map(([name, count]) => [name, count - (before.get(name) ?? 0)] as const).filter(([, count]) => count > 0),
    );
  const [destination, source] = [fd ?? -1, source_fd ?? -1];
  if (validate_only) {
    const refusal = await dispatch.run(caller, 'validate MOVE', (current) => validate(current, destination, source), signal);
    await send({ sequence: 1, verdict: verdictOf(refusal) });
    return null;
  }
  const phases: MoveContextResponseInit[] = [];
  const observer = (phase: MovePhase): void => {
    phases.push({
      sequence: phases.length + 1,
      simulated_ns: Math.round(costs.nanoseconds - begun),
      ...phaseView(phase, counts),
    });
  };
  const result = await dispatch.run(caller, 'KVM_ENABLE_CAP', (current) => move(current, destination, source, observer), signal);
  for (const phase of phases) await send(phase);
  return failed(result) ? result : null;
};

/** Moves of encryption contexts. */
export const migrationRoutes: readonly Route[] = [
  serverStream(MigrationService.moveContext, { role: 'process', syscall: 'KVM_ENABLE_CAP' }, moveContext),
];
