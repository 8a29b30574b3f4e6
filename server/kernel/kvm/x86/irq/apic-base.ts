/** IA32_APIC_BASE (Intel SDM vol. 3, 12.4.4 and 12.12.1). */

/** The vCPU is the bootstrap processor. */
export const APIC_BASE_BSP = 0x100n;
export const X2APIC_ENABLE = 0x400n;
export const MSR_IA32_APICBASE_ENABLE = 0x800n;
/** Bits 0-7 and 9 are reserved, as is everything above the physical address width. */
const RESERVED_LOW = 0x2ffn;
const BASE_MASK = 0xf_ffff_ffff_f000n;
/** Value at RESET, without APIC_BASE_BSP: xAPIC mode at 0xfee00000. */
export const APIC_BASE_AT_RESET = 0xfee0_0000n | MSR_IA32_APICBASE_ENABLE;

/** `enum lapic_mode`; 'invalid' is x2APIC without the enable bit. */
export type LapicMode = 'disabled' | 'xapic' | 'x2apic' | 'invalid';

/** `kvm_apic_mode`. */
export const apicMode = (base: bigint): LapicMode => {
  const x2apic = (base & X2APIC_ENABLE) !== 0n;
  if ((base & MSR_IA32_APICBASE_ENABLE) === 0n) return x2apic ? 'invalid' : 'disabled';
  return x2apic ? 'x2apic' : 'xapic';
};

/** Address of the APIC's page. */
export const apicBaseAddress = (base: bigint): number => Number(base & BASE_MASK);

/** What of the guest's CPUID decides which values may be written. */
export interface ApicBaseCpuid {
  /** MAXPHYADDR. */
  readonly physicalAddressBits: number;
  /** CPUID.1:ECX.X2APIC. */
  readonly x2apic: boolean;
}

/**
 * The checks of `kvm_apic_set_base`: reserved bits, and transitions that the architecture does not have, which only the
 * host may make.
 */
export const apicBaseAllowed = (current: bigint, value: bigint, hostInitiated: boolean, cpuid: ApicBaseCpuid): boolean => {
  if (value === current) return true;
  const mode = apicMode(value);
  if (mode === 'invalid' || (value & RESERVED_LOW) !== 0n || value >> BigInt(cpuid.physicalAddressBits) !== 0n) return false;
  if (mode === 'x2apic' && !cpuid.x2apic) return false;
  if (hostInitiated) return true;
  const before = apicMode(current);
  return !(before === 'x2apic' && mode === 'xapic') && !(before === 'disabled' && mode === 'x2apic');
};
