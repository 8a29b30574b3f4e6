import type { AsidRange } from '../asid-keys.js';
import { struct, u32, u64 } from '../byte-layout.js';
import { cpuid8000001f } from '../cpuid-8000001f.js';

/** The table of CPUID values that a guest trusts because the firmware has checked them (sev-firmware.md 3.13). */
export const CPUID_PAGE = struct(16, { count: u32(0) });
export const CPUID_ENTRY = struct(48, {
  eaxIn: u32(0),
  ecxIn: u32(4),
  xcr0In: u64(8),
  xssIn: u64(16),
  eax: u32(24),
  ebx: u32(28),
  ecx: u32(32),
  edx: u32(36),
});

export const CPUID_ENTRIES_MAX = 64;

/** A page that is accepted, or the values that would be. */
export type CpuidCheck =
  | { readonly kind: 'accepted' }
  | { readonly kind: 'malformed' }
  | { readonly kind: 'corrected'; readonly page: Uint8Array };

/**
 * Checks a CPUID page. Of the rules of real firmware only that on the leaf of memory encryption is modelled: a guest may
 * not be told features that the platform lacks, nor another position of the C-bit.
 */
export function checkCpuidPage(page: Uint8Array, asids: AsidRange): CpuidCheck {
  const count = CPUID_PAGE.count.get(page);
  if (count > CPUID_ENTRIES_MAX || !CPUID_PAGE.reservedIsZero(page)) return { kind: 'malformed' };
  const corrected = Uint8Array.from(page);
  const platform = cpuid8000001f(asids);
  for (let index = 0; index < count; index++) {
    const start = CPUID_PAGE.size + index * CPUID_ENTRY.size;
    const entry = corrected.subarray(start, start + CPUID_ENTRY.size);
    if (!CPUID_ENTRY.reservedIsZero(entry)) return { kind: 'malformed' };
    if (CPUID_ENTRY.eaxIn.get(entry) !== 0x8000001f) continue;
    CPUID_ENTRY.eax.set(entry, (CPUID_ENTRY.eax.get(entry) & platform.eax) >>> 0);
    CPUID_ENTRY.ebx.set(entry, (CPUID_ENTRY.ebx.get(entry) & ~0x3f) | (platform.ebx & 0x3f));
  }
  return Buffer.from(corrected).equals(page) ? { kind: 'accepted' } : { kind: 'corrected', page: corrected };
}
