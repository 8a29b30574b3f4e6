import type { Root } from './amd-roots.js';
import { type AttestationReport, parseReport } from './attestation-report.js';
import { equal, hex, isZero, requireLength } from './bytes.js';
import { verifyEc } from './ec-key.js';
import { incomplete, type ReportKey, reportKeys } from './report-chain.js';
import { type ReportKeyExtensions, readCertificate, readCertificates } from './report-key.js';
import { type Check, type Verdict, verdict } from './verdict.js';

/** What an owner demands of a report beside that it is genuine. Left out: not looked at. */
export interface Expected {
  /** 48 bytes. */
  readonly measurement?: Uint8Array;
  /** As long as REPORT_DATA, or shorter: the rest is zero. */
  readonly reportData?: Uint8Array;
  /** As long as HOST_DATA, or shorter: the rest is zero. */
  readonly hostData?: Uint8Array;
  readonly policy?: bigint;
  readonly vmpl?: number;
  /** Bits of the policy that must be 0: debugging, for example. */
  readonly policyForbids?: bigint;
}

export interface VerifyReportOptions {
  /** Certificates, in any order: VCEK or VLEK (or several), ASK (or ASVK), ARK; PEM or DER. */
  readonly chain: readonly Uint8Array[];
  /**
   * Root certificate that is trusted: the chain must end in its key. Left out: whatever root the chain ends in, which `root` of
   * the verdict names.
   */
  readonly trustedRoot?: Uint8Array;
  /** When certificates have to be valid. @default now */
  readonly at?: Date;
  readonly expected?: Expected;
}

/** A verdict on a report. */
export interface ReportVerdict extends Verdict {
  readonly report: AttestationReport;
  /** Where the chain ends; null where it is not complete. */
  readonly root: Root | null;
}

/** The certificate is that of the chip and the TCB version that the report names. */
const checkKey = (report: AttestationReport, { chipId, tcb }: ReportKeyExtensions): Check[] => [
  {
    name: 'the certificate is for the reported TCB version',
    ok: equal(tcb, report.reportedTcb),
    detail: `${hex(tcb)}, reported ${hex(report.reportedTcb)}`,
  },
  report.signingKey === 'VLEK' ? isVlek(chipId) : isOfChip(chipId, report.chipId),
];

const isVlek = (chipId: Uint8Array | null): Check => {
  const name = 'the certificate is a VLEK’s';
  return chipId === null ? { name, ok: true } : { name, ok: false, detail: `it is a VCEK’s, of the chip ${hex(chipId)}` };
};

const isOfChip = (certified: Uint8Array | null, reported: Uint8Array): Check => {
  const name = 'the certificate is the reporting chip’s';
  if (certified === null) return { name, ok: false, detail: 'it names no chip: it is a VLEK’s' };
  if (isZero(reported)) return { name, ok: true, detail: 'the report hides the chip' };
  return isChip(certified, reported)
    ? { name, ok: true }
    : { name, ok: false, detail: `${hex(certified)}, reported ${hex(reported)}` };
};

/** On Turin an identity has 8 bytes, with zeros behind them. */
const isChip = (certified: Uint8Array, reported: Uint8Array): boolean =>
  equal(certified, reported.subarray(0, certified.length)) && isZero(reported.subarray(certified.length));

/** What the report has, and what it was to have where that is something else. */
const comparison = (name: string, ok: boolean, found: string, wanted: string): Check => ({
  name,
  ok,
  detail: ok ? found : `${found}, expected ${wanted}`,
});

const checkExpected = (report: AttestationReport, expected: Expected): Check[] => {
  const checks: Check[] = [];
  const same = (name: string, wanted: Uint8Array | undefined, found: Uint8Array): void => {
    if (wanted === undefined) return;
    const full = new Uint8Array(found.length);
    full.set(wanted);
    checks.push(comparison(name, equal(full, found), hex(found), hex(full)));
  };
  same('the measurement is the expected one', expected.measurement, report.measurement);
  same('the report data are the expected ones', expected.reportData, report.reportData);
  same('the host data are the expected ones', expected.hostData, report.hostData);
  const { policy, policyForbids, vmpl } = expected;
  const number = (value: bigint): string => `0x${value.toString(16)}`;
  if (policy !== undefined)
    checks.push(comparison('the policy is the expected one', report.policy === policy, number(report.policy), number(policy)));
  if (policyForbids !== undefined) {
    const forbidden = report.policy & policyForbids;
    const detail =
      forbidden === 0n ? number(report.policy) : `${number(report.policy)}, of which ${number(forbidden)} is forbidden`;
    checks.push({ name: 'the policy allows nothing forbidden', ok: forbidden === 0n, detail });
  }
  if (vmpl !== undefined)
    checks.push(comparison('the VMPL is the expected one', report.vmpl === vmpl, String(report.vmpl), String(vmpl)));
  return checks;
};

const REPORT_DATA_LENGTH = 64;
const HOST_DATA_LENGTH = 32;

/** @throws RangeError if something is expected that no report can have */
const requireExpectable = ({ measurement, reportData, hostData }: Expected): void => {
  if (measurement !== undefined) requireLength('the expected measurement', measurement, 48);
  const atMost = (what: string, bytes: Uint8Array | undefined, length: number): void => {
    if (bytes !== undefined && bytes.length > length)
      throw new RangeError(`the expected ${what} have ${bytes.length} bytes, and a report has room for ${length}`);
  };
  atMost('report data', reportData, REPORT_DATA_LENGTH);
  atMost('host data', hostData, HOST_DATA_LENGTH);
};

const isSignedBy = ({ signingKey, signed, signature }: AttestationReport, { leaf }: ReportKey): boolean =>
  signingKey !== 'none' && verifyEc('sha384', leaf.publicKey, signed, signature);

const signatureCheck = (report: AttestationReport, ok: boolean): Check => {
  const name = 'the report is signed by that key';
  return report.signingKey === 'none' ? { name, ok, detail: 'the platform is set to sign no reports' } : { name, ok };
};

/** Of several keys the one that has signed a report; else one of the kind that the report names. */
const keyFor = (
  keys: readonly ReportKey[],
  report: AttestationReport,
): { readonly key: ReportKey; readonly signed: boolean } | null => {
  const signer = keys.find((key) => isSignedBy(report, key));
  if (signer !== undefined) return { key: signer, signed: true };
  const isKind = ({ extensions }: ReportKey): boolean => (extensions?.chipId === null) === (report.signingKey === 'VLEK');
  const key = keys.find(isKind) ?? keys[0];
  return key === undefined ? null : { key, signed: false };
};

/**
 * Verifies attestation reports of one key, or of several: their signature, its chain (which is looked at once), and what the
 * owner expects.
 * @throws RangeError if a certificate is none, or something is expected that no report has; what it returns does if the report
 * is none
 */
export const createReportVerifier = (options: VerifyReportOptions): ((report: Uint8Array) => ReportVerdict) => {
  const { chain: files, trustedRoot: rootFile, at = new Date(), expected = {} } = options;
  requireExpectable(expected);
  const trustedRoot = rootFile === undefined ? null : readCertificate(rootFile);
  const keys = reportKeys(files.flatMap(readCertificates), { at, trustedRoot });
  return (bytes) => {
    const report = parseReport(bytes);
    const found = keyFor(keys, report);
    if (found === null) return { ...verdict(incomplete('there is no certificate of a VCEK or VLEK')), report, root: null };
    const { key, signed } = found;
    if (key.root === null) return { ...verdict(key.checks), report, root: null };
    const checks: Check[] = [
      ...key.checks,
      signatureCheck(report, signed),
      ...(key.extensions === null
        ? [{ name: 'the certificate names a chip and a TCB version', ok: false }]
        : checkKey(report, key.extensions)),
      ...checkExpected(report, expected),
    ];
    return { ...verdict(checks), report, root: key.root };
  };
};

/** Verifies one attestation report. @throws RangeError if the report or a certificate is none */
export const verifyReport = (report: Uint8Array, options: VerifyReportOptions): ReportVerdict =>
  createReportVerifier(options)(report);
