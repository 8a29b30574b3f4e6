import { Failure } from '../../failure.js';
import { deathDetails } from '../gate.js';
import { REQUEST } from '../vcpu.js';
import type { Vm } from '../vm.js';
import type { Admission, GatedCall } from './policy.js';

/** The EIO of a moved VM, as the function `kernelRef` gives it. */
export const deadMoved = (vm: Vm, kernelRef: string): Failure => new Failure('EIO', 'VM_DEAD_MOVED', kernelRef, deathDetails(vm));

/** Refuses a call at the gate with EIO. */
export const refuse = (vm: Vm, call: GatedCall): Admission => ({
  kind: 'refuse',
  failure: deadMoved(vm, `kvm_${call.scope}_ioctl`),
});

/**
 * `kvm_make_all_cpus_request(kvm, KVM_REQ_VM_DEAD)`: a vCPU whose KVM_RUN passed the gate before the move leaves with
 * EIO as soon as it has got its mutex. No interrupt is sent: the move holds every mutex, so no vCPU is in guest mode.
 */
export const requestVmDead = (vm: Vm): void => {
  for (const vcpu of vm.vcpus) vcpu.request(REQUEST.VM_DEAD);
};
