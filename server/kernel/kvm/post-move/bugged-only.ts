import { type PostMovePolicy, RUN } from './policy.js';
import { requestVmDead } from './refusal.js';

/**
 * The series of July 2025, 'Drop vm_dead, pivot on vm_bugged for -EIO'. Rules:
 * - ioctls fail with EIO only on a VM that is bugged, so all of them pass on a moved one;
 * - KVM_REQ_VM_DEAD is raised on the vCPUs that exist at the move and never cleared: each KVM_RUN of theirs is EIO;
 * - a vCPU created later has no such request, and enters;
 * - a move back into the VM succeeds, and strands the guest behind vCPUs that can never run.
 */
export const buggedOnly: PostMovePolicy = {
  name: 'BUGGED_ONLY',
  offersDismantle: false,
  onMove: (_current, source) => {
    requestVmDead(source);
    for (const vcpu of source.vcpus) vcpu.stickyDeath = true;
    return null;
  },
  afterMove: () => {},
  admit: () => RUN,
  admitCreateVcpuLocked: () => null,
  admitVcpuLocked: () => null,
};
