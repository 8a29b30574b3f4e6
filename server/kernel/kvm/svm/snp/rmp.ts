import { RMP_RESULT } from '../../../../hardware/amd/rmp.js';
import type { Frame } from '../../../../hardware/dram.js';
import { type Asid, asid, type Gpa, gpa } from '../../../../hardware/units.js';
import type { SevModule } from '../sev-module.js';

/** RMPUPDATE as the host's kernel wraps it (arch/x86/virt/svm/sev.c), for pages of 4 KiB: guest_memfd has no others. */

/** `rmp_make_private`. @param immutable only the firmware can change the entry from then on */
export const rmpMakePrivate = (
  { amd, kernel }: SevModule,
  { pfn }: Frame,
  address: Gpa,
  owner: Asid,
  immutable: boolean,
): boolean => {
  kernel.costs.charge('rmpupdate');
  return amd.rmp.rmpupdate(pfn, { assigned: true, size: '4k', immutable, asid: owner, gpa: address }) === RMP_RESULT.OK;
};

/** `rmp_make_shared`: false for a page that the firmware has not given back. */
export const rmpMakeShared = ({ amd, kernel }: SevModule, { pfn }: Frame): boolean => {
  kernel.costs.charge('rmpupdate');
  const shared = { assigned: false, size: '4k', immutable: false, asid: asid(0), gpa: gpa(0) } as const;
  return amd.rmp.rmpupdate(pfn, shared) === RMP_RESULT.OK;
};

/** `snp_page_reclaim`: takes a page back that the firmware did not accept. */
export const snpPageReclaim = ({ psp }: SevModule, frame: Frame): boolean => psp.snp?.reclaim(frame) ?? false;
