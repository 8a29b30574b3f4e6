import { REQUEST } from './vcpu.js';
import type { Vm } from './vm.js';

/**
 * A VM that was to become a guest of this host and is given up, with all that it had got of the guest: it accepts nothing any
 * more, and no vCPU enters again, not even in a KVM_RUN that has passed the gate and waits for the vCPU's mutex. To be called
 * before anybody lets go of that mutex. It is what `kvm_vm_dead` does, and the request stays.
 */
export const markDiscarded = (vm: Vm): void => {
  vm.life = { kind: 'dead', cause: { kind: 'discarded' } };
  for (const vcpu of vm.vcpus) {
    vcpu.request(REQUEST.VM_DEAD);
    vcpu.stickyDeath = true;
  }
};
