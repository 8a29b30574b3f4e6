import { Failure } from '../../failure.js';
import type { Vcpu } from '../vcpu.js';

const isProtected = (vcpu: Vcpu): boolean => vcpu.vm.kernel.ops.guestStateProtected(vcpu);

/**
 * The first test of every register ioctl: EINVAL if the VM's type has protected state and this vCPU's is protected by
 * now. A guest initialised by ES_INIT in a default VM passes, and gets registers that are not the guest's.
 */
export const refuseProtected = (vcpu: Vcpu, kernelRef: string): Failure | null =>
  vcpu.vm.kernel.ops.hasProtectedState(vcpu.vm) && isProtected(vcpu)
    ? new Failure('EINVAL', 'GUEST_STATE_PROTECTED', kernelRef, { object: `vcpu ${vcpu.id} of vm ${vcpu.vm.id}` })
    : null;

/** `fpstate_is_confidential`: EINVAL or, for the legacy kind, 0 with nothing done. Null: the registers can be reached. */
export const protectedFpu = (vcpu: Vcpu): Failure | 0 | null =>
  isProtected(vcpu) ? (refuseProtected(vcpu, 'kvm_vcpu_ioctl_x86_get_xsave') ?? 0) : null;
