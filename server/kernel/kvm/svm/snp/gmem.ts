import { type Gfn, type Gpa, gfn, gfnToGpa, gpaToGfn } from '../../../../hardware/units.js';
import { Failure } from '../../../failure.js';
import type { Page } from '../../../mm/page.js';
import type { Vcpu } from '../../vcpu.js';
import type { Vm } from '../../vm.js';
import { isSevSnpGuest, toSevInfo } from '../sev-info.js';
import type { SevModule } from '../sev-module.js';
import { rmpMakePrivate, rmpMakeShared } from './rmp.js';

const PAGES_PER_2M = 512;

/**
 * `sev_gmem_prepare`: at its first private fault a page is assigned to the guest, which still has to validate it. A page that
 * is assigned already stays as it is, also after a conversion to shared memory and back.
 */
export const gmemPrepare = (module: SevModule, vm: Vm, frame: Gfn, { frame: cells }: Page): Failure | null => {
  if (!isSevSnpGuest(vm) || module.amd.rmp.entry(cells.pfn).assigned) return null;
  if (rmpMakePrivate(module, cells, gfnToGpa(frame), toSevInfo(vm).asid, false)) return null;
  return new Failure('EINVAL', 'RMPUPDATE_FAILED', 'sev_gmem_prepare', { gfn: `0x${frame.toString(16)}` });
};

/** `sev_gmem_invalidate`: the page is the host's again, and no line of the guest's is in the caches. */
export const gmemInvalidate = (module: SevModule, { frame }: Page): boolean => {
  if (!module.amd.rmp.entry(frame.pfn).assigned) return true;
  if (!rmpMakeShared(module, frame)) return false;
  frame.flush();
  module.kernel.costs.charge('clflush_page');
  return true;
};

/**
 * `sev_handle_rmp_fault`, where the attribute of the page is not the reason. Entries of the reverse map are of 4 KiB like the
 * mappings, so there is nothing for PSMASH to split: the mappings are made anew.
 */
export const handleRmpFault = ({ vm }: Vcpu, address: Gpa): void => {
  const frame = gpaToGfn(address);
  if (!vm.memoryAttributes.isPrivate(frame) || vm.memslots.find(frame)?.gmem == null) return;
  vm.arch.mmu.unmapRange(frame, gfn(frame + PAGES_PER_2M));
};
