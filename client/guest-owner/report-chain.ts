import type { X509Certificate } from 'node:crypto';
import { keyFingerprint, type Root, rootOf } from './amd-roots.js';
import { type ReportKeyExtensions, reportKeyExtensions } from './report-key.js';
import type { Check } from './verdict.js';

/** A key that may have signed reports, and what its certificates are worth. */
export interface ReportKey {
  readonly leaf: X509Certificate;
  /** Null: the certificate names no chip and no TCB version. */
  readonly extensions: ReportKeyExtensions | null;
  readonly checks: readonly Check[];
  /** Null: the chain is not complete. */
  readonly root: Root | null;
}

/** What chains are held against. */
export interface ChainOptions {
  /** When certificates have to be valid. */
  readonly at: Date;
  /** Null: a chain may end in any root. */
  readonly trustedRoot: X509Certificate | null;
}

interface Chain {
  readonly leaf: X509Certificate;
  readonly intermediate: X509Certificate;
  readonly root: X509Certificate;
}

export const incomplete = (detail: string): readonly Check[] => [{ name: 'the chain is complete', ok: false, detail }];

/** A leaf, who issued it, and who issued that: a chain that has no order in its file. */
const chainOf = (leaf: X509Certificate, certificates: readonly X509Certificate[]): Chain | string => {
  const issuerOf = (certificate: X509Certificate) =>
    certificates.find((candidate) => candidate !== leaf && candidate.subject === certificate.issuer);
  const intermediate = issuerOf(leaf);
  if (intermediate === undefined) return `there is no certificate of the ASK, ${nameOf(leaf.issuer)}`;
  const root = issuerOf(intermediate);
  return root === undefined ? `there is no certificate of the ARK, ${nameOf(intermediate.issuer)}` : { leaf, intermediate, root };
};

const nameOf = (subject: string): string => /^CN=(.*)$/m.exec(subject)?.[1] ?? subject;

const isValidAt = ({ validFrom, validTo }: X509Certificate, at: Date): boolean =>
  new Date(validFrom) <= at && at <= new Date(validTo);

const validityCheck = (certificates: readonly X509Certificate[], at: Date): Check => {
  const name = 'the certificates are valid';
  const invalid = certificates.find((each) => !isValidAt(each, at));
  if (invalid === undefined) return { name, ok: true };
  const { subject, validFrom, validTo } = invalid;
  return { name, ok: false, detail: `${nameOf(subject)} is from ${validFrom} to ${validTo}, and it is ${at.toISOString()}` };
};

const rootCheck = (root: X509Certificate, trusted: X509Certificate): Check => {
  const [found, wanted] = [keyFingerprint(root), keyFingerprint(trusted)];
  const name = 'the chain ends in the trusted root';
  if (found === wanted) return { name, ok: true };
  return {
    name,
    ok: false,
    detail: `it ends in the key ${found} of ${nameOf(root.subject)}, not in ${wanted} of ${nameOf(trusted.subject)}`,
  };
};

const checkChain = ({ leaf, intermediate, root }: Chain, { at, trustedRoot }: ChainOptions): Check[] => [
  { name: 'the ARK has signed itself', ok: root.verify(root.publicKey) },
  { name: 'the ARK has signed the ASK', ok: intermediate.ca && intermediate.verify(root.publicKey) },
  { name: 'the ASK has signed the VCEK or VLEK', ok: leaf.verify(intermediate.publicKey) },
  validityCheck([leaf, intermediate, root], at),
  ...(trustedRoot === null ? [] : [rootCheck(root, trustedRoot)]),
];

const extensionsOf = (leaf: X509Certificate): ReportKeyExtensions | null => {
  try {
    return reportKeyExtensions(leaf);
  } catch {
    return null;
  }
};

/** The keys of VCEKs and VLEKs among some certificates, each with its chain. */
export const reportKeys = (certificates: readonly X509Certificate[], options: ChainOptions): ReportKey[] =>
  certificates
    .filter(({ publicKey }) => publicKey.asymmetricKeyType === 'ec')
    .map((leaf) => {
      const chain = chainOf(leaf, certificates);
      const extensions = extensionsOf(leaf);
      if (typeof chain === 'string') return { leaf, extensions, checks: incomplete(chain), root: null };
      return { leaf, extensions, checks: checkChain(chain, options), root: rootOf(chain.root) };
    });
