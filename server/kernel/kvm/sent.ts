import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { REQUEST } from './vcpu.js';
import type { Vm } from './vm.js';

/**
 * A VM whose guest another host owns now. SEND_FINISH marks nothing dead: a sent SEV guest stays an active one, with ASID and
 * key. So the VM's post-move policy is put on it, with death cause `sent`, to be measured apart from a move. With kvm->lock and
 * the vCPUs' mutexes held.
 * @param runs whether a vCPU that the policy lets through would find the guest: then it never enters again (KVM_REQ_VM_DEAD
 *   is not cleared), whatever the policy; where the key is gone VMRUN itself refuses
 */
export function* markSent(current: Task, vm: Vm, session: string, runs: boolean): MightSleep<void> {
  const { postMovePolicy: policy } = vm;
  if (vm.life.kind !== 'dead') vm.life = { kind: 'moved', cause: { kind: 'sent', session }, policy };
  const work = policy.onMove(current, vm);
  if (work !== null) yield* work;
  if (runs)
    for (const vcpu of vm.vcpus) {
      vcpu.request(REQUEST.VM_DEAD);
      vcpu.stickyDeath = true;
    }
  policy.afterMove(vm);
}
