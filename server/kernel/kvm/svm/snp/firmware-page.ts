import { Failure, failed, type Result } from '../../../failure.js';
import type { Page } from '../../../mm/page.js';
import type { SevModule } from '../sev-module.js';

/** `snp_alloc_firmware_page`: a page to which the firmware may write. ENOMEM. */
export const allocateFirmwarePage = ({ kernel, psp }: SevModule): Result<Page> => {
  const page = kernel.pages.allocate();
  if (failed(page)) return page;
  if (psp.snp?.markFirmware(page.frame) === true) return page;
  page.put();
  return new Failure('ENOMEM', 'RMPUPDATE_FAILED', 'snp_alloc_firmware_page');
};

/** `snp_free_firmware_page`: a page that cannot be reclaimed is leaked, for the next owner could not write to it. */
export const freeFirmwarePage = ({ psp }: SevModule, page: Page): void => {
  if (psp.snp?.reclaim(page.frame) === true) page.put();
};

/** `snp_safe_alloc_page`: no page at a 2 MiB boundary, which an erratum of SNP parts forbids for save areas. */
export const allocateSafePage = ({ kernel, snpEnabled }: SevModule): Result<Page> => {
  const page = kernel.pages.allocate();
  if (failed(page) || !snpEnabled || page.frame.pfn % PAGES_PER_2M !== 0) return page;
  const other = kernel.pages.allocate();
  page.put();
  return other;
};

const PAGES_PER_2M = 512;
