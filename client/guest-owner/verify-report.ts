import { createHash, type X509Certificate } from 'node:crypto';
import { type AttestationReport, parseReport } from './attestation-report.js';
import { equal, hex, isZero } from './bytes.js';
import { verifyEc } from './ec-key.js';
import { type ReportKeyExtensions, readCertificates, reportKeyExtensions } from './report-key.js';
import { type Check, type Verdict, verdict } from './verdict.js';

/** What an owner demands of a report beside that it is genuine. Left out: not looked at. */
export interface Expected {
  readonly measurement?: Uint8Array;
  /** As long as REPORT_DATA, or shorter: the rest is zero. */
  readonly reportData?: Uint8Array;
  readonly hostData?: Uint8Array;
  readonly policy?: bigint;
  readonly vmpl?: number;
  /** Bits of the policy that must be 0: debugging, for example. */
  readonly policyForbids?: bigint;
}

export interface VerifyReportOptions {
  /** Certificates, in any order: VCEK or VLEK, ASK (or ASVK), ARK; PEM or DER. */
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
  /** Where the chain ends: the product whose root AMD publishes, or null for another root, such as a simulated one. */
  readonly root: { readonly amdProduct: string | null; readonly fingerprint: string } | null;
}

/** SHA-256 of the public keys (SubjectPublicKeyInfo) of AMD's published roots. */
const AMD_ROOTS: Readonly<Record<string, string>> = {
  '9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9': 'Milan',
  '429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831': 'Genoa',
  '4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08': 'Turin',
};

/** SHA-256 of a certificate's public key, in hex. */
export const keyFingerprint = ({ publicKey }: X509Certificate): string =>
  createHash('sha256')
    .update(publicKey.export({ type: 'spki', format: 'der' }))
    .digest('hex');

interface Chain {
  readonly leaf: X509Certificate;
  readonly intermediate: X509Certificate;
  readonly root: X509Certificate;
}

/** The leaf, who issued it, and who issued that: a chain that has no order in its file. */
const orderChain = (certificates: readonly X509Certificate[]): Chain | string => {
  const leaf = certificates.find(({ publicKey }) => publicKey.asymmetricKeyType === 'ec');
  if (leaf === undefined) return 'there is no certificate of a VCEK or VLEK';
  const issuerOf = (certificate: X509Certificate) =>
    certificates.find((candidate) => candidate !== leaf && candidate.subject === certificate.issuer);
  const intermediate = issuerOf(leaf);
  if (intermediate === undefined) return 'there is no certificate of the ASK';
  const root = issuerOf(intermediate);
  return root === undefined ? 'there is no certificate of the ARK' : { leaf, intermediate, root };
};

const isValidAt = ({ validFrom, validTo }: X509Certificate, at: Date): boolean =>
  new Date(validFrom) <= at && at <= new Date(validTo);

const checkChain = ({ leaf, intermediate, root }: Chain, at: Date, trustedRoot: X509Certificate | null): Check[] => [
  { name: 'the ARK has signed itself', ok: root.verify(root.publicKey) },
  { name: 'the ARK has signed the ASK', ok: intermediate.ca && intermediate.verify(root.publicKey) },
  { name: 'the ASK has signed the VCEK or VLEK', ok: leaf.verify(intermediate.publicKey) },
  { name: 'the certificates are valid', ok: [leaf, intermediate, root].every((each) => isValidAt(each, at)) },
  ...(trustedRoot === null
    ? []
    : [{ name: 'the chain ends in the trusted root', ok: keyFingerprint(root) === keyFingerprint(trustedRoot) }]),
];

/** The certificate is that of the chip and the TCB version that the report names. */
const checkKey = (report: AttestationReport, { chipId, tcb }: ReportKeyExtensions): Check[] => [
  {
    name: 'the certificate is for the reported TCB version',
    ok: equal(tcb, report.reportedTcb),
    detail: `${hex(tcb)}, reported ${hex(report.reportedTcb)}`,
  },
  ...(report.signingKey === 'VLEK'
    ? [{ name: 'the certificate is a VLEK’s', ok: chipId === null }]
    : [
        {
          name: 'the certificate is the reporting chip’s',
          ok: chipId !== null && (isZero(report.chipId) || isChip(chipId, report.chipId)),
        },
      ]),
];

/** On Turin an identity has 8 bytes, with zeros behind them. */
const isChip = (certified: Uint8Array, reported: Uint8Array): boolean =>
  equal(certified, reported.subarray(0, certified.length)) && isZero(reported.subarray(certified.length));

const checkExpected = (report: AttestationReport, expected: Expected): Check[] => {
  const checks: Check[] = [];
  const same = (name: string, wanted: Uint8Array | undefined, found: Uint8Array): void => {
    if (wanted === undefined) return;
    const full = new Uint8Array(found.length);
    const fits = wanted.length <= full.length;
    if (fits) full.set(wanted);
    checks.push({ name, ok: fits && equal(full, found), detail: hex(found) });
  };
  same('the measurement is the expected one', expected.measurement, report.measurement);
  same('the report data are the expected ones', expected.reportData, report.reportData);
  same('the host data are the expected ones', expected.hostData, report.hostData);
  if (expected.policy !== undefined)
    checks.push({ name: 'the policy is the expected one', ok: report.policy === expected.policy, detail: policyText(report) });
  if (expected.policyForbids !== undefined)
    checks.push({
      name: 'the policy allows nothing forbidden',
      ok: (report.policy & expected.policyForbids) === 0n,
      detail: policyText(report),
    });
  if (expected.vmpl !== undefined)
    checks.push({ name: 'the VMPL is the expected one', ok: report.vmpl === expected.vmpl, detail: String(report.vmpl) });
  return checks;
};

const policyText = ({ policy }: AttestationReport): string => `0x${policy.toString(16)}`;

const extensionsOf = (leaf: X509Certificate): ReportKeyExtensions | null => {
  try {
    return reportKeyExtensions(leaf);
  } catch {
    return null;
  }
};

const incomplete = (detail: string): readonly Check[] => [{ name: 'the chain is complete', ok: false, detail }];

/**
 * Verifies attestation reports of one key: their signature, its chain (which is looked at once), and what the owner expects.
 * @throws RangeError if a certificate is none; what it returns does if the report is none
 */
export const createReportVerifier = (options: VerifyReportOptions): ((report: Uint8Array) => ReportVerdict) => {
  const { chain: files, trustedRoot, at = new Date(), expected = {} } = options;
  const chain = orderChain(files.flatMap(readCertificates));
  if (typeof chain === 'string') return (bytes) => ({ ...verdict(incomplete(chain)), report: parseReport(bytes), root: null });
  const { leaf } = chain;
  const [trusted = null] = trustedRoot === undefined ? [] : readCertificates(trustedRoot);
  const extensions = extensionsOf(leaf);
  const fingerprint = keyFingerprint(chain.root);
  const root = { amdProduct: AMD_ROOTS[fingerprint] ?? null, fingerprint };
  const chainChecks = checkChain(chain, at, trusted);
  return (bytes) => {
    const report = parseReport(bytes);
    const signed = report.signingKey !== 'none' && verifyEc('sha384', leaf.publicKey, report.signed, report.signature);
    const checks: Check[] = [
      ...chainChecks,
      { name: 'the report is signed by that key', ok: signed },
      ...(extensions === null
        ? [{ name: 'the certificate names a chip and a TCB version', ok: false }]
        : checkKey(report, extensions)),
      ...checkExpected(report, expected),
    ];
    return { ...verdict(checks), report, root };
  };
};

/** Verifies one attestation report. @throws RangeError if the report or a certificate is none */
export const verifyReport = (report: Uint8Array, options: VerifyReportOptions): ReportVerdict =>
  createReportVerifier(options)(report);
