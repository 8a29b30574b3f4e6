import { blob, struct, u8, u32 } from './byte-layout.js';
import { type KeyPair, type PublicKey, type Signature, type SignatureHash, sign, verifySignature } from './p384.js';
import type { ApiVersion } from './policy.js';

/** The certificates of the SEV API: CEK, OCA, PEK, PDH and a guest owner's (sev-firmware.md 3.8). */

export const SEV_CERTIFICATE = struct(2084, {
  version: u32(0x000),
  apiMajor: u8(0x004),
  apiMinor: u8(0x005),
  pubkeyUsage: u32(0x008),
  pubkeyAlgo: u32(0x00c),
  pubkey: blob(0x010, 1028),
  sig1Usage: u32(0x414),
  sig1Algo: u32(0x418),
  sig1: blob(0x41c, 512),
  sig2Usage: u32(0x61c),
  sig2Algo: u32(0x620),
  sig2: blob(0x624, 512),
});

/** Bytes that the signatures of a certificate cover, from its beginning. */
export const SIGNED_LENGTH = 0x414;

/** PEK, OCA and CEK, one after the other, as PDH_CERT_EXPORT gives them. */
export const CHAIN_LENGTH = 3 * SEV_CERTIFICATE.size;

export const USAGE = { ARK: 0x0000, ASK: 0x0013, NONE: 0x1000, OCA: 0x1001, PEK: 0x1002, PDH: 0x1003, CEK: 0x1004 } as const;
export type Usage = (typeof USAGE)[keyof typeof USAGE];

export const ALGORITHM = {
  NONE: 0,
  RSA_SHA256: 0x001,
  ECDSA_SHA256: 0x002,
  ECDH_SHA256: 0x003,
  RSA_SHA384: 0x101,
  ECDSA_SHA384: 0x102,
  ECDH_SHA384: 0x103,
} as const;

const VERSION = 1;
const CURVE_P384 = 2;

/** The 1028 bytes of an elliptic-curve public key, coordinates little-endian in 72 bytes (also in SNP's ID blocks). */
export const EC_PUBLIC_KEY = struct(1028, { curve: u32(0), qx: blob(4, 72), qy: blob(76, 72) });

/** An ECDSA signature, R and S little-endian in 72 bytes, at the beginning of a larger field. */
const EC_SIGNATURE = struct(144, { r: blob(0, 72), s: blob(72, 72) });

/** A big-endian number of P-384 as a little-endian field of 72 bytes. */
const toField = (number: Uint8Array): Uint8Array => Uint8Array.from(number).reverse();
const fromField = (field: Uint8Array): Uint8Array => Uint8Array.from(field.subarray(0, 48)).reverse();
const isZero = (bytes: Uint8Array): boolean => bytes.every((byte) => byte === 0);

export function encodeEcPublicKey({ x, y }: PublicKey): Uint8Array {
  const bytes = new Uint8Array(EC_PUBLIC_KEY.size);
  EC_PUBLIC_KEY.curve.set(bytes, CURVE_P384);
  EC_PUBLIC_KEY.qx.set(bytes, toField(x));
  EC_PUBLIC_KEY.qy.set(bytes, toField(y));
  return bytes;
}

/** The P-384 key in a public-key field, or null if it is not encoded as one. Whether it is a point of the curve is not checked. */
export function decodeEcPublicKey(bytes: Uint8Array): PublicKey | null {
  const qx = EC_PUBLIC_KEY.qx.get(bytes);
  const qy = EC_PUBLIC_KEY.qy.get(bytes);
  if (EC_PUBLIC_KEY.curve.get(bytes) !== CURVE_P384 || !isZero(qx.subarray(48)) || !isZero(qy.subarray(48))) return null;
  return { x: fromField(qx), y: fromField(qy) };
}

export function encodeEcSignature({ r, s }: Signature): Uint8Array {
  const bytes = new Uint8Array(EC_SIGNATURE.size);
  EC_SIGNATURE.r.set(bytes, toField(r));
  EC_SIGNATURE.s.set(bytes, toField(s));
  return bytes;
}

/** The signature in a field, or null if R or S is longer than 48 bytes. */
export function decodeEcSignature(bytes: Uint8Array): Signature | null {
  const r = EC_SIGNATURE.r.get(bytes);
  const s = EC_SIGNATURE.s.get(bytes);
  return isZero(r.subarray(48)) && isZero(s.subarray(48)) ? { r: fromField(r), s: fromField(s) } : null;
}

export interface Signer {
  readonly usage: Usage;
  readonly key: KeyPair;
}

/** A certificate for `key` in `usage`, signed (ECDSA with SHA-256) by at most two signers; slots without one say so. */
export function createCertificate(usage: Usage, key: PublicKey, api: ApiVersion, signers: readonly Signer[]): Uint8Array {
  const bytes = new Uint8Array(SEV_CERTIFICATE.size);
  SEV_CERTIFICATE.version.set(bytes, VERSION);
  SEV_CERTIFICATE.apiMajor.set(bytes, api.major);
  SEV_CERTIFICATE.apiMinor.set(bytes, api.minor);
  SEV_CERTIFICATE.pubkeyUsage.set(bytes, usage);
  SEV_CERTIFICATE.pubkeyAlgo.set(bytes, usage === USAGE.PDH ? ALGORITHM.ECDH_SHA256 : ALGORITHM.ECDSA_SHA256);
  SEV_CERTIFICATE.pubkey.set(bytes, encodeEcPublicKey(key));
  SEV_CERTIFICATE.sig1Usage.set(bytes, USAGE.NONE);
  SEV_CERTIFICATE.sig2Usage.set(bytes, USAGE.NONE);
  return signers.reduce(addSignature, bytes);
}

/** The certificate with one more signature in its first free slot. */
export function addSignature(certificate: Uint8Array, { usage, key }: Signer): Uint8Array {
  const signed = Uint8Array.from(certificate);
  const slot = signatureSlots.find((candidate) => candidate.usage.get(signed) === USAGE.NONE);
  if (slot === undefined) throw new Error('both signature slots of the certificate are taken');
  slot.usage.set(signed, usage);
  slot.algo.set(signed, ALGORITHM.ECDSA_SHA256);
  slot.signature.set(signed, encodeEcSignature(sign('sha256', key.privateKey, signed.subarray(0, SIGNED_LENGTH))));
  return signed;
}

const signatureSlots = [
  { usage: SEV_CERTIFICATE.sig1Usage, algo: SEV_CERTIFICATE.sig1Algo, signature: SEV_CERTIFICATE.sig1 },
  { usage: SEV_CERTIFICATE.sig2Usage, algo: SEV_CERTIFICATE.sig2Algo, signature: SEV_CERTIFICATE.sig2 },
] as const;

/** What firmware needs to know of a certificate that parsed. */
export interface Certificate {
  readonly usage: number;
  readonly publicKey: PublicKey;
  readonly api: ApiVersion;
  readonly bytes: Uint8Array;
}

/**
 * Parses a certificate on a P-384 key: version, usage, algorithm (ECDH for a PDH, ECDSA else) and the encoding of the key.
 * Signatures are not checked.
 */
export function parseCertificate(bytes: Uint8Array, usage: Usage): Certificate | null {
  if (bytes.length !== SEV_CERTIFICATE.size || SEV_CERTIFICATE.version.get(bytes) !== VERSION) return null;
  if (SEV_CERTIFICATE.pubkeyUsage.get(bytes) !== usage) return null;
  const algorithm = SEV_CERTIFICATE.pubkeyAlgo.get(bytes);
  const allowed: readonly number[] =
    usage === USAGE.PDH ? [ALGORITHM.ECDH_SHA256, ALGORITHM.ECDH_SHA384] : [ALGORITHM.ECDSA_SHA256, ALGORITHM.ECDSA_SHA384];
  if (!allowed.includes(algorithm)) return null;
  const publicKey = decodeEcPublicKey(SEV_CERTIFICATE.pubkey.get(bytes));
  if (publicKey === null) return null;
  return {
    usage,
    publicKey,
    api: { major: SEV_CERTIFICATE.apiMajor.get(bytes), minor: SEV_CERTIFICATE.apiMinor.get(bytes) },
    bytes,
  };
}

/** Whether one of the certificate's two slots holds a valid ECDSA signature of `signer` in `signer.usage`. */
export function isSignedBy(certificate: Certificate, signer: Certificate): boolean {
  return signatureSlots.some((slot) => {
    if (slot.usage.get(certificate.bytes) !== signer.usage) return false;
    const hash = signatureHash(slot.algo.get(certificate.bytes));
    const signature = decodeEcSignature(slot.signature.get(certificate.bytes));
    if (hash === null || signature === null) return false;
    return verifySignature(hash, signer.publicKey, certificate.bytes.subarray(0, SIGNED_LENGTH), signature);
  });
}

function signatureHash(algorithm: number): SignatureHash | null {
  if (algorithm === ALGORITHM.ECDSA_SHA256) return 'sha256';
  return algorithm === ALGORITHM.ECDSA_SHA384 ? 'sha384' : null;
}

/** The certificate with every signature removed that is not in `usage`. */
export function onlySignatureOf(usage: Usage, certificate: Uint8Array): Uint8Array {
  const bytes = Uint8Array.from(certificate);
  for (const slot of signatureSlots) {
    if (slot.usage.get(bytes) === usage) continue;
    slot.usage.set(bytes, USAGE.NONE);
    slot.algo.set(bytes, ALGORITHM.NONE);
    slot.signature.set(bytes, new Uint8Array(0));
  }
  return bytes;
}

/** A certificate signing request: the certificate with both signature slots empty (PEK_CSR). */
export function withoutSignatures(certificate: Uint8Array): Uint8Array {
  const bytes = Uint8Array.from(certificate);
  bytes.fill(0, SIGNED_LENGTH);
  for (const slot of signatureSlots) slot.usage.set(bytes, USAGE.NONE);
  return bytes;
}
