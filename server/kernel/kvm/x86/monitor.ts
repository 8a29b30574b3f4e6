import { KVM_X86_QUIRK } from '../../uapi/constants.js';
import type { Vcpu } from '../vcpu.js';

/** `kvm_emulate_monitor_mwait`: a NOP, unless userspace has switched the quirk off and CPUID does not have it: then #UD. */
export const monitorIsNop = ({ arch, vm }: Vcpu): boolean =>
  (((arch.cpuid.find(1, 0)?.ecx ?? 0) >>> 3) & 1) === 1 || vm.arch.quirkEnabled(KVM_X86_QUIRK.MWAIT_NEVER_UD_FAULTS);
