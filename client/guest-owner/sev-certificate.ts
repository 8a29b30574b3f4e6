import { constants, createPublicKey, type KeyObject, verify } from 'node:crypto';
import { type Root, rootOf } from './amd-roots.js';
import { blob, equal, lengthMistake, requireLength, reversed, u32, u32Bytes } from './bytes.js';
import { decodeEcPublicKey, EC_PUBLIC_KEY_LENGTH, encodeEcPublicKey, verifyEc } from './ec-key.js';
import { type Check, type Verdict, verdict } from './verdict.js';

/** The certificates of the SEV API: a platform's chain (PDH, PEK, OCA, CEK), and AMD's ASK and ARK (SEV API, appendices B and C). */

export const SEV_CERTIFICATE_LENGTH = 2084;
const SIGNED_LENGTH = 0x414;
const PUBKEY_OFFSET = 0x10;
const SIGNATURE_LENGTH = 512;
const SLOTS = [0x414, 0x61c] as const;

export const SEV_USAGE = { ARK: 0, ASK: 0x13, NONE: 0x1000, OCA: 0x1001, PEK: 0x1002, PDH: 0x1003, CEK: 0x1004 } as const;
export type SevUsage = keyof typeof SEV_USAGE;

const ALGORITHM = { RSA_SHA256: 1, ECDSA_SHA256: 2, ECDH_SHA256: 3, RSA_SHA384: 0x101, ECDSA_SHA384: 0x102, ECDH_SHA384: 0x103 };

export interface SevCertificate {
  readonly usage: SevUsage;
  readonly bytes: Uint8Array;
  readonly apiMajor: number;
  readonly apiMinor: number;
  /** The field of 1028 bytes. */
  readonly pubkey: Uint8Array;
  readonly publicKey: KeyObject;
}

/** `its usage is 0x1002 (PEK), not 0x1003` */
const usageMistake = (found: number, usage: SevUsage): string => {
  const [name] = Object.entries(SEV_USAGE).find(([, value]) => value === found) ?? [null];
  return `its usage is 0x${found.toString(16)}${name === null ? '' : ` (${name})`}, not 0x${SEV_USAGE[usage].toString(16)}`;
};

/** @throws RangeError if `bytes` are no certificate of that usage on a P-384 key */
export const parseSevCertificate = (bytes: Uint8Array, usage: SevUsage): SevCertificate => {
  const refuse = (what: string): never => {
    throw new RangeError(`no ${usage} certificate: ${what}`);
  };
  if (bytes.length !== SEV_CERTIFICATE_LENGTH) return refuse(lengthMistake(bytes, SEV_CERTIFICATE_LENGTH));
  if (u32(bytes, 0) !== 1) return refuse(`version ${u32(bytes, 0)}, not 1`);
  if (u32(bytes, 8) !== SEV_USAGE[usage]) return refuse(usageMistake(u32(bytes, 8), usage));
  const pubkey = blob(bytes, PUBKEY_OFFSET, EC_PUBLIC_KEY_LENGTH);
  const publicKey = decodeEcPublicKey(pubkey) ?? refuse('its key is no point of P-384');
  return { usage, bytes: Uint8Array.from(bytes), apiMajor: bytes[4] ?? 0, apiMinor: bytes[5] ?? 0, pubkey, publicKey };
};

/** The certificate of a guest owner's ephemeral key, which nobody signs. @param point uncompressed */
export const createGuestOwnerCertificate = (point: Uint8Array): Uint8Array => {
  const bytes = new Uint8Array(SEV_CERTIFICATE_LENGTH);
  bytes[0] = 1;
  bytes.set(u32Bytes(SEV_USAGE.PDH), 8);
  bytes.set(u32Bytes(ALGORITHM.ECDH_SHA256), 12);
  bytes.set(encodeEcPublicKey(point), PUBKEY_OFFSET);
  for (const slot of SLOTS) bytes.set(u32Bytes(SEV_USAGE.NONE), slot);
  return bytes;
};

/** The signatures that a certificate has, by whom; the slots may stand in either order. */
const signaturesOf = (bytes: Uint8Array, usage: SevUsage): { algorithm: number; signature: Uint8Array }[] =>
  SLOTS.filter((slot) => u32(bytes, slot) === SEV_USAGE[usage]).map((slot) => ({
    algorithm: u32(bytes, slot + 4),
    signature: blob(bytes, slot + 8, SIGNATURE_LENGTH),
  }));

/** Whether `signer` has signed a certificate. */
export const isSignedBy = ({ bytes }: SevCertificate, signer: SevCertificate): boolean =>
  signaturesOf(bytes, signer.usage).some(({ algorithm, signature }) => {
    if (algorithm !== ALGORITHM.ECDSA_SHA256 && algorithm !== ALGORITHM.ECDSA_SHA384) return false;
    const hash = algorithm === ALGORITHM.ECDSA_SHA256 ? 'sha256' : 'sha384';
    return verifyEc(hash, signer.publicKey, bytes.subarray(0, SIGNED_LENGTH), signature);
  });

/** AMD's ASK or ARK. */
export interface AmdCertificate {
  readonly usage: 'ARK' | 'ASK';
  readonly keyId: Uint8Array;
  readonly certifyingId: Uint8Array;
  readonly modulusBits: number;
  readonly publicKey: KeyObject;
  readonly signed: Uint8Array;
  /** Big-endian. */
  readonly signature: Uint8Array;
}

const AMD_HEADER = 64;

/** @throws RangeError if `bytes` are no certificate of that usage */
export const parseAmdCertificate = (bytes: Uint8Array, usage: 'ARK' | 'ASK'): AmdCertificate => {
  const exponentLength = bytes.length < AMD_HEADER ? 0 : u32(bytes, 56) / 8;
  const modulusLength = bytes.length < AMD_HEADER ? 0 : u32(bytes, 60) / 8;
  const signedLength = AMD_HEADER + exponentLength + modulusLength;
  if (![256, 512].includes(modulusLength) || bytes.length !== signedLength + modulusLength)
    throw new RangeError(
      `no ${usage} certificate: ${bytes.length} bytes, which are not 832 on a key of 2048 bits or 1600 on 4096`,
    );
  if (u32(bytes, 0) !== 1) throw new RangeError(`no ${usage} certificate: version ${u32(bytes, 0)}, not 1`);
  if (u32(bytes, 36) !== SEV_USAGE[usage])
    throw new RangeError(`no ${usage} certificate: ${usageMistake(u32(bytes, 36), usage)}`);
  const number = (offset: number, length: number): string => {
    const bigEndian = reversed(bytes.subarray(offset, offset + length));
    const first = Math.max(
      bigEndian.findIndex((byte) => byte !== 0),
      0,
    );
    return Buffer.from(bigEndian.subarray(first)).toString('base64url');
  };
  const e = number(AMD_HEADER, exponentLength);
  const n = number(AMD_HEADER + exponentLength, modulusLength);
  return {
    usage,
    keyId: blob(bytes, 4, 16),
    certifyingId: blob(bytes, 20, 16),
    modulusBits: modulusLength * 8,
    publicKey: createPublicKey({ key: { kty: 'RSA', n, e }, format: 'jwk' }),
    signed: blob(bytes, 0, signedLength),
    signature: reversed(bytes.subarray(signedLength)),
  };
};

const AMD_BUNDLE_LENGTHS: readonly number[] = [2 * 832, 2 * 1600];

/** AMD's bundle of an ASK and an ARK, in this order. @throws RangeError */
export const parseAmdBundle = (bytes: Uint8Array): { readonly ask: AmdCertificate; readonly ark: AmdCertificate } => {
  if (!AMD_BUNDLE_LENGTHS.includes(bytes.length)) {
    const form =
      Buffer.from(bytes.subarray(0, 10)).toString('latin1') === '-----BEGIN'
        ? ': it is PEM, and not the SEV API’s own format'
        : '';
    throw new RangeError(`no ASK and ARK: ${bytes.length} bytes, which are not 1664 on keys of 2048 bits or 3200 on 4096${form}`);
  }
  return {
    ask: parseAmdCertificate(bytes.subarray(0, bytes.length / 2), 'ASK'),
    ark: parseAmdCertificate(bytes.subarray(bytes.length / 2), 'ARK'),
  };
};

/** PEK, OCA and CEK, one after the other. @throws RangeError */
export const parsePlatformChain = (
  bytes: Uint8Array,
): { readonly pek: SevCertificate; readonly oca: SevCertificate; readonly cek: SevCertificate } => {
  requireLength('the chain of PEK, OCA and CEK', bytes, 3 * SEV_CERTIFICATE_LENGTH);
  const part = (index: number): Uint8Array =>
    bytes.subarray(index * SEV_CERTIFICATE_LENGTH, (index + 1) * SEV_CERTIFICATE_LENGTH);
  return {
    pek: parseSevCertificate(part(0), 'PEK'),
    oca: parseSevCertificate(part(1), 'OCA'),
    cek: parseSevCertificate(part(2), 'CEK'),
  };
};

const verifyPss = (signer: AmdCertificate, message: Uint8Array, signature: Uint8Array): boolean => {
  const options = { padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: constants.RSA_PSS_SALTLEN_DIGEST };
  return verify(signer.modulusBits === 2048 ? 'sha256' : 'sha384', message, { key: signer.publicKey, ...options }, signature);
};

/** Whether `signer` has signed an ASK, or an ARK itself. */
export const isSignedByAmd = ({ certifyingId, signed, signature }: AmdCertificate, signer: AmdCertificate): boolean =>
  equal(certifyingId, signer.keyId) && verifyPss(signer, signed, signature);

/** Whether an ASK has signed a chip's certificate. */
export const isEndorsedBy = ({ bytes }: SevCertificate, ask: AmdCertificate): boolean => {
  const expected = ask.modulusBits === 2048 ? ALGORITHM.RSA_SHA256 : ALGORITHM.RSA_SHA384;
  return signaturesOf(bytes, 'ASK').some(
    ({ algorithm, signature }) =>
      algorithm === expected &&
      verifyPss(ask, bytes.subarray(0, SIGNED_LENGTH), reversed(signature.subarray(0, ask.modulusBits / 8))),
  );
};

/** A platform's certificates as files. */
export interface PlatformCertificates {
  readonly pdh: Uint8Array;
  /** PEK, OCA and CEK, one after the other, as SEV_PDH_CERT_EXPORT gives them. */
  readonly chain: Uint8Array;
  /** The CEK with the ASK's signature, as AMD's key distribution service gives it; left out: the chain's own. */
  readonly cek?: Uint8Array;
  /** ASK and ARK, one after the other. */
  readonly amd: Uint8Array;
}

/** A verdict on a platform. */
export interface PlatformVerdict extends Verdict {
  /** Where the chain ends: the ARK that was given. */
  readonly root: Root;
}

/**
 * Verifies that a platform's PDH belongs to a genuine chip: PDH by PEK, PEK by OCA and CEK, OCA by itself, CEK by ASK, ASK by
 * ARK, ARK by itself.
 * @throws RangeError if a certificate is none
 */
export const verifyPlatform = ({ pdh, chain, cek, amd }: PlatformCertificates): PlatformVerdict => {
  const platform = parseSevCertificate(pdh, 'PDH');
  const { pek, oca, cek: exported } = parsePlatformChain(chain);
  const chip = cek === undefined ? exported : parseSevCertificate(cek, 'CEK');
  const { ask, ark } = parseAmdBundle(amd);
  const checks: Check[] = [
    { name: 'the PEK has signed the PDH', ok: isSignedBy(platform, pek) },
    { name: 'the OCA has signed the PEK', ok: isSignedBy(pek, oca) },
    { name: 'the OCA has signed itself', ok: isSignedBy(oca, oca) },
    { name: 'the CEK has signed the PEK', ok: isSignedBy(pek, chip) },
    { name: 'the ASK has signed the CEK', ok: isEndorsedBy(chip, ask) },
    { name: 'the ARK has signed the ASK', ok: isSignedByAmd(ask, ark) },
    { name: 'the ARK has signed itself', ok: isSignedByAmd(ark, ark) },
  ];
  return { ...verdict(checks), root: rootOf(ark) };
};
