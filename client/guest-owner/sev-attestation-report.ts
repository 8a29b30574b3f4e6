import { blob, equal, u32 } from './bytes.js';
import { verifyEc } from './ec-key.js';
import { parseSevCertificate, SEV_USAGE } from './sev-certificate.js';

/** What KVM_SEV_GET_ATTESTATION_REPORT says of a SEV or SEV-ES guest (SEV API, 6.8). */
export interface SevAttestationReport {
  readonly mnonce: Uint8Array;
  readonly digest: Uint8Array;
  readonly policy: number;
}

const REPORT_LENGTH = 208;
const SIGNED_LENGTH = 52;
const ECDSA_SHA256 = 2;

/**
 * The report, if the owner of `pek` has signed it for this nonce; null if not. Verify the chain of the PEK before.
 * @throws RangeError if `pek` is no PEK certificate
 */
export const verifySevReport = (report: Uint8Array, mnonce: Uint8Array, pek: Uint8Array): SevAttestationReport | null => {
  if (report.length !== REPORT_LENGTH || u32(report, 52) !== SEV_USAGE.PEK || u32(report, 56) !== ECDSA_SHA256) return null;
  const { publicKey } = parseSevCertificate(pek, 'PEK');
  if (!equal(report.subarray(0, 16), mnonce)) return null;
  if (!verifyEc('sha256', publicKey, report.subarray(0, SIGNED_LENGTH), report.subarray(64))) return null;
  return { mnonce: blob(report, 0, 16), digest: blob(report, 16, 32), policy: u32(report, 48) };
};
