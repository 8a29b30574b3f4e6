import type { Vcpu } from '../vcpu.js';
import { apicBaseAllowed } from './irq/apic-base.js';

/** IA32_APIC_BASE: the in-kernel APIC's, or what userspace keeps here for its own. */
export const apicBase = ({ arch }: Vcpu): bigint => arch.lapic?.apicBase ?? arch.apicBase;

/** `kvm_apic_set_base`: false where the value is refused. The checks hold without an in-kernel APIC too. */
export const setApicBase = (vcpu: Vcpu, value: bigint, hostInitiated: boolean): boolean => {
  const { arch, vm } = vcpu;
  const { cpuid, lapic } = arch;
  const abilities = { physicalAddressBits: cpuid.maxPhyAddr, x2apic: cpuid.has('X2APIC') };
  if (!apicBaseAllowed(apicBase(vcpu), value, hostInitiated, abilities)) return false;
  if (lapic === null) arch.apicBase = value;
  else {
    lapic.setBase(value);
    vm.arch.irq.recalculateApicMap();
  }
  return true;
};
