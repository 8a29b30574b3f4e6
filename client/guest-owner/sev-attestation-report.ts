import { blob, equal, hex, requireLength, u32 } from './bytes.js';
import { verifyEc } from './ec-key.js';
import { parseSevCertificate, SEV_CERTIFICATE_LENGTH, SEV_USAGE, type SevCertificate } from './sev-certificate.js';
import { type Check, type Verdict, verdict } from './verdict.js';

/** What KVM_SEV_GET_ATTESTATION_REPORT says of a SEV or SEV-ES guest (SEV API, 6.8). */
export interface SevAttestationReport {
  readonly mnonce: Uint8Array;
  readonly digest: Uint8Array;
  readonly policy: number;
}

/** What an owner demands of such a report beside that it is genuine. Left out: not looked at. */
export interface ExpectedSevReport {
  /** The launch digest, 32 bytes. */
  readonly digest?: Uint8Array;
  readonly policy?: number;
}

export interface SevReportVerdict extends Verdict {
  readonly report: SevAttestationReport;
}

const REPORT_LENGTH = 208;
const SIGNED_LENGTH = 52;
const MNONCE_LENGTH = 16;
const DIGEST_LENGTH = 32;
const ECDSA_SHA256 = 2;

/** Reads a report; whether it is genuine is another question. @throws RangeError if it is none */
export const parseSevReport = (report: Uint8Array): SevAttestationReport => {
  requireLength('the report', report, REPORT_LENGTH);
  const [usage, algorithm] = [u32(report, 52), u32(report, 56)];
  if (usage !== SEV_USAGE.PEK)
    throw new RangeError(
      `a report that is signed by a key of the usage 0x${usage.toString(16)}, not by a PEK (0x${SEV_USAGE.PEK.toString(16)})`,
    );
  if (algorithm !== ECDSA_SHA256) throw new RangeError(`a report with the signature algorithm ${algorithm}, not ${ECDSA_SHA256}`);
  return { mnonce: blob(report, 0, 16), digest: blob(report, 16, 32), policy: u32(report, 48) };
};

/** The PEK's certificate, of itself or at the beginning of a chain. @throws RangeError if it is none */
export const parsePek = (file: Uint8Array): SevCertificate =>
  parseSevCertificate(file.subarray(0, SEV_CERTIFICATE_LENGTH), 'PEK');

/**
 * A verdict on a report: for which nonce it is, and whether the owner of `pek` has signed it. Verify the chain of the PEK before.
 * @param pek the PEK's certificate, or a chain that begins with it
 * @throws RangeError if report or certificate are none
 */
export const judgeSevReport = (
  bytes: Uint8Array,
  mnonce: Uint8Array,
  pek: Uint8Array,
  { digest, policy }: ExpectedSevReport = {},
): SevReportVerdict => {
  const report = parseSevReport(bytes);
  requireLength('the nonce', mnonce, MNONCE_LENGTH);
  const { publicKey } = parsePek(pek);
  const checks: Check[] = [
    { name: 'the report is for this nonce', ok: equal(report.mnonce, mnonce), detail: hex(report.mnonce) },
    {
      name: 'the PEK has signed the report',
      ok: verifyEc('sha256', publicKey, bytes.subarray(0, SIGNED_LENGTH), bytes.subarray(64)),
    },
  ];
  if (digest !== undefined) {
    requireLength('the expected launch digest', digest, DIGEST_LENGTH);
    checks.push({ name: 'the launch digest is the expected one', ok: equal(report.digest, digest), detail: hex(report.digest) });
  }
  if (policy !== undefined)
    checks.push({
      name: 'the policy is the expected one',
      ok: report.policy === policy,
      detail: `0x${report.policy.toString(16)}`,
    });
  return { ...verdict(checks), report };
};

/** The report, if the owner of `pek` has signed it for this nonce; null if not. @throws RangeError if `pek` is no PEK certificate */
export const verifySevReport = (report: Uint8Array, mnonce: Uint8Array, pek: Uint8Array): SevAttestationReport | null => {
  if (report.length !== REPORT_LENGTH || u32(report, 52) !== SEV_USAGE.PEK || u32(report, 56) !== ECDSA_SHA256) return null;
  const judged = judgeSevReport(report, mnonce, pek);
  return judged.ok ? judged.report : null;
};
