import { Failure } from '../../failure.js';
import { KVM_EXIT } from '../../uapi/constants.js';
import { kvm_run__eoi, kvm_run__tpr_access } from '../../uapi/kvm-run.js';
import { deathDetails } from '../gate.js';
import { dirtyRingFull } from '../mark-page-dirty.js';
import { REQUEST, type Vcpu } from '../vcpu.js';
import { shutdown } from './exits.js';
import { processNmi } from './inject.js';
import { kvmIoapicEoiVector, vcpuScanIoapic } from './irq/vcpu-irq.js';
import { kvmVcpuReset } from './reset.js';
import type { Turn } from './vcpu-arch.js';

/** The requests at the top of `vcpu_enter_guest`, in its order. Anything but 'again' ends KVM_RUN. */
export const handleRequests = (vcpu: Vcpu): Turn => {
  const { arch, vm } = vcpu;
  if (vcpu.checkRequest(REQUEST.VM_DEAD)) return new Failure('EIO', 'VM_DEAD_IN_RUN', 'vcpu_enter_guest', deathDetails(vm));
  if (dirtyRingFull(vcpu)) {
    arch.run.exitReason = KVM_EXIT.DIRTY_RING_FULL;
    return 'to-user';
  }
  if (vcpu.checkRequest(REQUEST.TLB_FLUSH)) arch.flushTlb();
  if (vcpu.checkRequest(REQUEST.REPORT_TPR_ACCESS) && arch.tprAccess !== null) return exitTprAccess(vcpu, arch.tprAccess.isWrite);
  if (vcpu.checkRequest(REQUEST.TRIPLE_FAULT)) return shutdown(vcpu);
  if (vcpu.checkRequest(REQUEST.NMI)) processNmi(vcpu);
  if (vcpu.checkRequest(REQUEST.IOAPIC_EOI_EXIT)) {
    const vector = kvmIoapicEoiVector(vcpu);
    if (vector !== -1) {
      arch.run.exit(KVM_EXIT.IOAPIC_EOI, kvm_run__eoi, { vector });
      return 'to-user';
    }
  }
  if (vcpu.checkRequest(REQUEST.SCAN_IOAPIC)) vcpuScanIoapic(vcpu);
  if (vcpu.checkRequest(REQUEST.UPDATE_PROTECTED_GUEST_STATE)) kvmVcpuReset(vcpu, true);
  return 'again';
};

const exitTprAccess = ({ arch }: Vcpu, isWrite: boolean): Turn => {
  arch.tprAccess = null;
  arch.run.exit(KVM_EXIT.TPR_ACCESS, kvm_run__tpr_access, { rip: arch.state.rip, is_write: isWrite ? 1 : 0 });
  return 'to-user';
};
