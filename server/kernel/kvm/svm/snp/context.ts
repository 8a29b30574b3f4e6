import { SNP_ACTIVATE, SNP_GCTX } from '../../../../hardware/amd/snp/command-buffers.js';
import { PAGE_SIZE } from '../../../../hardware/units.js';
import { Failure, failed } from '../../../failure.js';
import type { KmemCharge } from '../../../kmem.js';
import type { Page } from '../../../mm/page.js';
import { issue, issueOnFd, type SevCall } from '../sev-command.js';
import type { SevInfo } from '../sev-info.js';
import type { SevModule } from '../sev-module.js';
import { allocateFirmwarePage, freeFirmwarePage } from './firmware-page.js';

/** `sev->snp_context`: the page in which the firmware keeps the guest's context; it takes the place of a handle. */
export interface SnpContext {
  readonly page: Page;
  readonly charge: KmemCharge;
}

/** `snp_context_create`. ENOTTY, whatever the reason. */
export const createContext = (call: SevCall): Failure | null => {
  const { module, sev, vm } = call;
  const kernelRef = 'snp_context_create';
  const page = allocateFirmwarePage(module);
  if (failed(page)) return new Failure('ENOTTY', 'SNP_CONTEXT_NOT_CREATED', kernelRef, page.details);
  const buffer = new Uint8Array(SNP_GCTX.size);
  SNP_GCTX.gctxPaddr.set(buffer, page.frame.hpa);
  const refused = issueOnFd(call, call.sevFd, 'SNP_GCTX_CREATE', buffer, kernelRef);
  if (refused !== null) {
    freeFirmwarePage(module, page);
    return new Failure('ENOTTY', 'SNP_CONTEXT_NOT_CREATED', kernelRef, refused.details, refused.fwError);
  }
  sev.snpContext = { page, charge: vm.kmem.charge('snp_context', PAGE_SIZE) };
  return null;
};

/** Physical address of the context of a guest that has one. */
export const contextAddress = ({ snpContext }: SevInfo): number => {
  if (snpContext === null) throw new Error('an SNP command for a guest without a context');
  return snpContext.page.frame.hpa;
};

/** `snp_bind_asid`. */
export const bindSnpAsid = (call: SevCall): Failure | null => {
  const buffer = new Uint8Array(SNP_ACTIVATE.size);
  SNP_ACTIVATE.gctxPaddr.set(buffer, contextAddress(call.sev));
  SNP_ACTIVATE.asid.set(buffer, call.sev.asid);
  return issue(call, 'SNP_ACTIVATE', buffer, 'snp_bind_asid');
};

/** `snp_decommission_context`: also unbinds the ASID. A failure leaves the context where it is. */
export const decommissionContext = (module: SevModule, sev: SevInfo): Failure | null => {
  const { snpContext } = sev;
  if (snpContext === null) return null;
  const buffer = new Uint8Array(SNP_GCTX.size);
  SNP_GCTX.gctxPaddr.set(buffer, snpContext.page.frame.hpa);
  const refused = module.psp.run('SNP_DECOMMISSION', buffer, 'snp_decommission_context');
  if (refused !== null) return refused;
  sev.snpContext = null;
  snpContext.charge.release();
  freeFirmwarePage(module, snpContext.page);
  return null;
};
