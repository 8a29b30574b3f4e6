import type { Vcpu } from '../vcpu.js';

/** `kvm_get_cr8`: the upper half of the in-kernel APIC's TPR, or the register itself. */
export const cr8 = ({ arch }: Vcpu): bigint => (arch.lapic === null ? arch.state.cr8 : BigInt(arch.lapic.cr8));

/** `kvm_set_cr8`: false, and nothing changes, where reserved bits are set. */
export const setCr8 = ({ arch }: Vcpu, value: bigint): boolean => {
  if (value > 15n) return false;
  arch.state.cr8 = value;
  arch.lapic?.setCr8(Number(value));
  return true;
};
