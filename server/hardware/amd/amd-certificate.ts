import { createPublicKey, type KeyObject } from 'node:crypto';
import { blob, struct, u32 } from './byte-layout.js';
import { ALGORITHM, type Certificate, SEV_CERTIFICATE, SIGNED_LENGTH, USAGE } from './certificates.js';
import type { SignatureHash } from './p384.js';
import { signPss, verifyPss } from './rsa-pss.js';

/** AMD's own certificates, ARK and ASK, in the format of the SEV API (sev-firmware.md 3.8). */

/** The fixed part; exponent, modulus and signature follow, little-endian, each as long as its key says. */
const HEADER = struct(64, {
  version: u32(0),
  keyId: blob(4, 16),
  certifyingId: blob(20, 16),
  keyUsage: u32(36),
  pubexpBits: u32(56),
  modulusBits: u32(60),
});

const VERSION = 1;

export type AmdUsage = typeof USAGE.ARK | typeof USAGE.ASK;

export interface AmdCertificate {
  readonly usage: AmdUsage;
  readonly keyId: Uint8Array;
  readonly certifyingId: Uint8Array;
  readonly modulusBits: number;
  readonly publicKey: KeyObject;
  /** What the signature covers. */
  readonly signed: Uint8Array;
  /** Big-endian. */
  readonly signature: Uint8Array;
}

/** Lengths of an AMD certificate on a key of 2048 and of 4096 bits. */
export const AMD_CERTIFICATE_LENGTHS: readonly number[] = [832, 1600];

const reversed = (bytes: Uint8Array): Uint8Array => Uint8Array.from(bytes).reverse();

/** RSA keys of 2048 bits sign with SHA-256, those of 4096 bits with SHA-384. */
const hashOf = (modulusBits: number): SignatureHash => (modulusBits === 2048 ? 'sha256' : 'sha384');

/** Parses an ARK or ASK, or gives null if it is not a complete one. The signature is not checked. */
export function parseAmdCertificate(bytes: Uint8Array, usage: AmdUsage): AmdCertificate | null {
  if (!AMD_CERTIFICATE_LENGTHS.includes(bytes.length)) return null;
  const modulusBits = HEADER.modulusBits.get(bytes);
  const exponentLength = HEADER.pubexpBits.get(bytes) / 8;
  const modulusLength = modulusBits / 8;
  const signedLength = HEADER.size + exponentLength + modulusLength;
  if (HEADER.version.get(bytes) !== VERSION || HEADER.keyUsage.get(bytes) !== usage) return null;
  if (signedLength + modulusLength !== bytes.length) return null;
  const exponent = bytes.subarray(HEADER.size, HEADER.size + exponentLength);
  const modulus = bytes.subarray(HEADER.size + exponentLength, signedLength);
  return {
    usage,
    keyId: HEADER.keyId.get(bytes),
    certifyingId: HEADER.certifyingId.get(bytes),
    modulusBits,
    publicKey: importRsaPublicKey(modulus, exponent),
    signed: bytes.subarray(0, signedLength),
    signature: reversed(bytes.subarray(signedLength)),
  };
}

export interface AmdCertificateContents {
  readonly usage: AmdUsage;
  readonly keyId: Uint8Array;
  readonly certifyingId: Uint8Array;
}

/** An AMD certificate for an RSA key, signed by another one (or itself). */
export function createAmdCertificate(contents: AmdCertificateContents, subject: KeyObject, signer: KeyObject): Uint8Array {
  const { modulus, exponent } = rsaNumbers(subject);
  const length = modulus.length;
  const signed = new Uint8Array(HEADER.size + 2 * length);
  HEADER.version.set(signed, VERSION);
  HEADER.keyId.set(signed, contents.keyId);
  HEADER.certifyingId.set(signed, contents.certifyingId);
  HEADER.keyUsage.set(signed, contents.usage);
  HEADER.pubexpBits.set(signed, length * 8);
  HEADER.modulusBits.set(signed, length * 8);
  signed.set(reversed(exponent), HEADER.size);
  signed.set(reversed(modulus), HEADER.size + length);
  return Buffer.concat([signed, reversed(signPss(hashOf(length * 8), signer, signed))]);
}

/** Whether `issuer` signed an ASK, or an ARK itself. */
export function isSignedByAmd(certificate: AmdCertificate, issuer: AmdCertificate): boolean {
  if (!Buffer.from(certificate.certifyingId).equals(issuer.keyId)) return false;
  return verifyPss(hashOf(issuer.modulusBits), issuer.publicKey, certificate.signed, certificate.signature);
}

export const isSameAmdKey = (a: AmdCertificate, b: AmdCertificate): boolean => a.publicKey.equals(b.publicKey);

/** Whether an ASK signed a chip's endorsement key. */
export function isEndorsedBy(cek: Certificate, ask: AmdCertificate): boolean {
  const expected = ask.modulusBits === 2048 ? ALGORITHM.RSA_SHA256 : ALGORITHM.RSA_SHA384;
  return [
    { usage: SEV_CERTIFICATE.sig1Usage, algo: SEV_CERTIFICATE.sig1Algo, signature: SEV_CERTIFICATE.sig1 },
    { usage: SEV_CERTIFICATE.sig2Usage, algo: SEV_CERTIFICATE.sig2Algo, signature: SEV_CERTIFICATE.sig2 },
  ].some(({ usage, algo, signature }) => {
    if (usage.get(cek.bytes) !== USAGE.ASK || algo.get(cek.bytes) !== expected) return false;
    const number = reversed(signature.get(cek.bytes).subarray(0, ask.modulusBits / 8));
    return verifyPss(hashOf(ask.modulusBits), ask.publicKey, cek.bytes.subarray(0, SIGNED_LENGTH), number);
  });
}

/** A CEK certificate with the signature of an ASK in its first slot, as AMD's key distribution service gives it. */
export function endorse(cek: Uint8Array, ask: KeyObject): Uint8Array {
  const signed = Uint8Array.from(cek);
  const modulusBits = ask.asymmetricKeyDetails?.modulusLength ?? 0;
  SEV_CERTIFICATE.sig1Usage.set(signed, USAGE.ASK);
  SEV_CERTIFICATE.sig1Algo.set(signed, modulusBits === 2048 ? ALGORITHM.RSA_SHA256 : ALGORITHM.RSA_SHA384);
  SEV_CERTIFICATE.sig1.set(signed, reversed(signPss(hashOf(modulusBits), ask, signed.subarray(0, SIGNED_LENGTH))));
  return signed;
}

function importRsaPublicKey(modulus: Uint8Array, exponent: Uint8Array): KeyObject {
  const number = (bytes: Uint8Array): string => {
    const bigEndian = reversed(bytes);
    const first = bigEndian.findIndex((byte) => byte !== 0);
    return Buffer.from(bigEndian.subarray(Math.max(first, 0))).toString('base64url');
  };
  return createPublicKey({ key: { kty: 'RSA', n: number(modulus), e: number(exponent) }, format: 'jwk' });
}

function rsaNumbers(key: KeyObject): { readonly modulus: Uint8Array; readonly exponent: Uint8Array } {
  const { n, e } = createPublicKey(key).export({ format: 'jwk' });
  if (n === undefined || e === undefined) throw new Error('not an RSA key');
  return { modulus: Buffer.from(n, 'base64url'), exponent: Buffer.from(e, 'base64url') };
}
