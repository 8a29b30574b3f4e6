import { type PostMovePolicy, RUN } from './policy.js';
import { deadMoved, requestVmDead } from './refusal.js';

/**
 * The compromise of August 2025: keep vm_dead for what could run the guest, and test it under the locks. Rules:
 * - nothing is tested at ioctl entry: VM and device ioctls run;
 * - KVM_CREATE_VCPU fails with EIO, tested under kvm->lock, so one that waited for the lock fails too;
 * - every vCPU ioctl fails with EIO, tested under vcpu->mutex, so one that waited for the mutex fails too;
 * - memory-encryption calls pass, since the discussion does not name them: a move back succeeds and strands the guest.
 */
export const vcpuDead: PostMovePolicy = {
  name: 'VCPU_DEAD',
  offersDismantle: false,
  onMove: (_current, source) => {
    requestVmDead(source);
    return null;
  },
  afterMove: () => {},
  admit: () => RUN,
  admitCreateVcpuLocked: (vm) => deadMoved(vm, 'kvm_vm_ioctl_create_vcpu'),
  admitVcpuLocked: ({ vm }) => deadMoved(vm, 'kvm_vcpu_ioctl'),
};
