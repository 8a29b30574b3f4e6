import type { AsidRange } from './asid-keys.js';
import { C_BIT_POSITION } from './firmware-memory.js';

export interface CpuidResult {
  readonly eax: number;
  readonly ebx: number;
  readonly ecx: number;
  readonly edx: number;
}

/** Bits of EAX of CPUID Fn8000_001F (sev-firmware.md 4.1). */
export const CPUID_8000001F_EAX = {
  SME: 1 << 0,
  SEV: 1 << 1,
  PAGE_FLUSH_MSR: 1 << 2,
  SEV_ES: 1 << 3,
  SEV_SNP: 1 << 4,
  VMPL: 1 << 5,
  SME_COHERENT: 1 << 10,
} as const;

/** Bits by which encryption shortens physical addresses on Milan and Genoa hosts. */
const PHYSICAL_ADDRESS_REDUCTION = 5;
const VMPL_COUNT = 4;

/** What the CPU says about memory encryption. The caches of this model are not coherent across the C-bit. */
export function cpuid8000001f({ count, minSev }: AsidRange): CpuidResult {
  const { SME, SEV, PAGE_FLUSH_MSR, SEV_ES, SEV_SNP, VMPL } = CPUID_8000001F_EAX;
  const es = minSev > 1 ? SEV_ES | SEV_SNP | VMPL : 0;
  return {
    eax: SME | SEV | PAGE_FLUSH_MSR | es,
    ebx: C_BIT_POSITION | (PHYSICAL_ADDRESS_REDUCTION << 6) | (VMPL_COUNT << 12),
    ecx: count,
    edx: minSev,
  };
}
