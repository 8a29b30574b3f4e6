import { createHash, createPublicKey, type KeyObject } from 'node:crypto';
import { importPublicKey, type PublicKey } from '../p384.js';
import { signPss } from '../rsa-pss.js';
import * as der from './der.js';
import { decodeTcb } from './tcb.js';

/** The X.509 certificates of the SEV-SNP chain: ARK, ASK (or ASVK) and VCEK (or VLEK) (sev-firmware.md 3.17). */

const OID = {
  RSASSA_PSS: '1.2.840.113549.1.1.10',
  MGF1: '1.2.840.113549.1.1.8',
  SHA384: '2.16.840.1.101.3.4.2.2',
  BASIC_CONSTRAINTS: '2.5.29.19',
  KEY_USAGE: '2.5.29.15',
  ORGANIZATIONAL_UNIT: '2.5.4.11',
  COUNTRY: '2.5.4.6',
  LOCALITY: '2.5.4.7',
  STATE: '2.5.4.8',
  ORGANIZATION: '2.5.4.10',
  COMMON_NAME: '2.5.4.3',
} as const;

/** Under it stand AMD's extensions, which say for which chip and version a key is. */
const AMD_EXTENSIONS = '1.3.6.1.4.1.3704.1';
const EXTENSION_VERSION = 1;
const PRODUCT_NAME = 'Milan-B1';

const NOT_BEFORE = '240101000000Z';
const NOT_AFTER = '491231235959Z';

const SALT_LENGTH = 48;

const sha384Identifier = (): Uint8Array => der.sequence(der.oid(OID.SHA384), der.nothing());

/** RSASSA-PSS with SHA-384, MGF1 on it and a salt of 48 bytes. */
const signatureAlgorithm = (): Uint8Array =>
  der.sequence(
    der.oid(OID.RSASSA_PSS),
    der.sequence(
      der.explicit(0, sha384Identifier()),
      der.explicit(1, der.sequence(der.oid(OID.MGF1), sha384Identifier())),
      der.explicit(2, der.integer(SALT_LENGTH)),
    ),
  );

const attribute = (type: string, value: string): Uint8Array => der.set(der.sequence(der.oid(type), der.utf8String(value)));

const name = (commonName: string): Uint8Array =>
  der.sequence(
    attribute(OID.ORGANIZATIONAL_UNIT, 'Engineering'),
    attribute(OID.COUNTRY, 'US'),
    attribute(OID.LOCALITY, 'Santa Clara'),
    attribute(OID.STATE, 'CA'),
    attribute(OID.ORGANIZATION, 'Advanced Micro Devices (simulated)'),
    attribute(OID.COMMON_NAME, commonName),
  );

const extension = (id: string, value: Uint8Array): Uint8Array => der.sequence(der.oid(id), der.octetString(value));
const criticalExtension = (id: string, value: Uint8Array): Uint8Array =>
  der.sequence(der.oid(id), der.isTrue(), der.octetString(value));

interface Contents {
  readonly subject: string;
  readonly issuer: string;
  /** SubjectPublicKeyInfo. */
  readonly publicKey: Uint8Array;
  readonly extensions: readonly Uint8Array[];
}

function certificate({ subject, issuer, publicKey, extensions }: Contents, signer: KeyObject): Uint8Array {
  const serial = createHash('sha256').update(subject).update(publicKey).update(Buffer.concat(extensions)).digest().subarray(0, 8);
  const tbs = der.sequence(
    der.explicit(0, der.integer(2)),
    der.integer(serial),
    signatureAlgorithm(),
    name(issuer),
    der.sequence(der.utcTime(NOT_BEFORE), der.utcTime(NOT_AFTER)),
    name(subject),
    publicKey,
    der.explicit(3, der.sequence(...extensions)),
  );
  return der.sequence(tbs, signatureAlgorithm(), der.bitString(signPss('sha384', signer, tbs)));
}

const spki = (key: KeyObject): Uint8Array => {
  const publicKey = key.type === 'private' ? createPublicKey(key) : key;
  return publicKey.export({ format: 'der', type: 'spki' });
};

/** A certificate of an authority, which may sign others. */
export function authorityCertificate(subject: string, key: KeyObject, issuer: string, signer: KeyObject): Uint8Array {
  // Key usage: keyCertSign and cRLSign.
  const usage = Uint8Array.of(0x03, 0x02, 0x01, 0x06);
  const extensions = [
    criticalExtension(OID.BASIC_CONSTRAINTS, der.sequence(der.isTrue())),
    criticalExtension(OID.KEY_USAGE, usage),
  ];
  return certificate({ subject, issuer, publicKey: spki(key), extensions }, signer);
}

/** What a report-signing key stands for: a chip, or the customer that loaded it. */
export type ReportKeySubject =
  | { readonly kind: 'VCEK'; readonly chipId: Uint8Array }
  | { readonly kind: 'VLEK'; readonly cspId: string };

/** A certificate of a VCEK or VLEK at one version of the trusted computing base. */
export function reportKeyCertificate(
  subject: ReportKeySubject,
  key: PublicKey,
  tcb: bigint,
  issuer: string,
  signer: KeyObject,
): Uint8Array {
  const publicKey = importPublicKey(key);
  const version = decodeTcb(tcb);
  if (publicKey === null || version === null) throw new Error('not a key of this platform');
  const amd = (arc: string, value: Uint8Array): Uint8Array => extension(`${AMD_EXTENSIONS}.${arc}`, value);
  // The security patch levels 4 to 7 belong to nothing on this product.
  const levels = [version.bootLoader, version.tee, version.snp, 0, 0, 0, 0, version.microcode];
  const extensions = [
    amd('1', der.integer(EXTENSION_VERSION)),
    amd('2', der.ia5String(PRODUCT_NAME)),
    ...levels.map((level, index) => amd(`3.${index + 1}`, der.integer(level))),
    // Real VCEKs have the chip's id as it is, without a tag of its own.
    subject.kind === 'VCEK' ? amd('4', subject.chipId) : amd('5', der.ia5String(subject.cspId)),
  ];
  return certificate({ subject: `SEV-${subject.kind}`, issuer, publicKey: spki(publicKey), extensions }, signer);
}
