import { PAGE_SIZE } from '../../../../hardware/units.js';
import { failed, type Result } from '../../../failure.js';
import type { KmemCharge } from '../../../kmem.js';
import type { Page } from '../../../mm/page.js';
import type { Vm } from '../../vm.js';
import type { SevInfo } from '../sev-info.js';
import type { SevModule } from '../sev-module.js';
import { allocateFirmwarePage, freeFirmwarePage } from './firmware-page.js';

/** `guest_req_buf` and `guest_resp_buf`: the firmware cannot work on pages that the guest may take away meanwhile. */
export interface GuestRequestBuffers {
  readonly request: Page;
  /** Always the firmware's. */
  readonly response: Page;
  readonly charge: KmemCharge;
}

/** `snp_guest_req_init`. ENOMEM. */
export const allocateGuestRequestBuffers = (module: SevModule, vm: Vm): Result<GuestRequestBuffers> => {
  const request = module.kernel.pages.allocate();
  if (failed(request)) return request;
  const response = allocateFirmwarePage(module);
  if (failed(response)) {
    request.put();
    return response;
  }
  return { request, response, charge: vm.kmem.charge('snp_guest_req', 2 * PAGE_SIZE) };
};

/** `snp_guest_req_cleanup`. */
export const freeGuestRequestBuffers = (module: SevModule, sev: SevInfo): void => {
  const { guestRequest } = sev;
  if (guestRequest === null) return;
  sev.guestRequest = null;
  guestRequest.charge.release();
  guestRequest.request.put();
  freeFirmwarePage(module, guestRequest.response);
};
