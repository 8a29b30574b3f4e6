import type { GetAuthoritiesResponse, GetCekResponse, GetVcekResponse, OrderVlekResponse } from '../gen/messages.js';
import { KeyDistributionService } from '../gen/services.js';
import type { Caller } from './call.js';
import { withForms } from './forms.js';
import { type CallingObject, syscall } from './syscall.js';

/** What AMD's key distribution service answers about the host's chip and the simulated root. Errno: ENODEV (an Intel host). */
export const keyDistributionCalls = {
  /** ARK and ASK: as X.509 for SEV-SNP, and as `amd_certs` of KVM_SEV_SEND_START. */
  getAuthorities: syscall(
    KeyDistributionService.getAuthorities,
    () => ({}),
    (response: GetAuthoritiesResponse) => response,
  ),
  /** The chip's CEK certificate with the ASK's signature, 2084 bytes. */
  getCek: syscall(
    KeyDistributionService.getCek,
    () => ({}),
    ({ cek }: GetCekResponse) => cek,
  ),
  /** The X.509 certificate (DER) of the VCEK that signs reports now. */
  getVcek: syscall(
    KeyDistributionService.getVcek,
    () => ({}),
    ({ vcek_der }: GetVcekResponse) => vcek_der,
  ),
  /** A VLEK for a cloud provider: what SNP_VLEK_LOAD takes, and the certificate (DER) of its key. */
  orderVlek: syscall(
    KeyDistributionService.orderVlek,
    (_self: CallingObject, cspId: string) => ({ csp_id: cspId }),
    (response: OrderVlekResponse) => response,
  ),
} as const;

class KeyDistributionObject implements CallingObject {
  constructor(readonly caller: Caller) {}
}

/** AMD's key distribution service: `simkvm.keyDistribution`. */
export class KeyDistribution extends withForms(KeyDistributionObject, keyDistributionCalls) {}
