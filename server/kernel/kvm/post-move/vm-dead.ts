import type { PostMovePolicy } from './policy.js';
import { refuse, requestVmDead } from './refusal.js';

/**
 * What upstream does since 2021 (`sev_vm_move_enc_context_from` ends in `kvm_vm_dead`). Rules:
 * - every ioctl on the VM, its vCPUs and its devices fails with EIO at the gate, whatever its number or argument;
 * - a vCPU that waited for its mutex inside KVM_RUN meets KVM_REQ_VM_DEAD and returns EIO;
 * - any other call that was past the gate goes on as if nothing had happened;
 * - nothing is freed: only closing the fds frees.
 */
export const vmDead: PostMovePolicy = {
  name: 'VM_DEAD',
  offersDismantle: false,
  onMove: (_current, source) => {
    requestVmDead(source);
    return null;
  },
  afterMove: () => {},
  admit: refuse,
  admitCreateVcpuLocked: () => null,
  admitVcpuLocked: () => null,
};
