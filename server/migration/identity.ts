import { createHash, createPrivateKey, createPublicKey, diffieHellman, type KeyObject, sign, verify } from 'node:crypto';

/** Keys of daemons, in the raw forms of RFC 7748 and RFC 8032. Nothing here draws random numbers: seeds are given. */

export const RAW_KEY_BYTES = 32;
export const SIGNATURE_BYTES = 64;

/** DER before a raw key (RFC 8410): PKCS #8 for private keys, SubjectPublicKeyInfo for public ones. */
const DER = {
  x25519: { private: '302e020100300506032b656e04220420', public: '302a300506032b656e032100' },
  ed25519: { private: '302e020100300506032b657004220420', public: '302a300506032b6570032100' },
} as const;
type Curve = keyof typeof DER;

const der = (prefix: string, raw: Uint8Array): Buffer => Buffer.concat([Buffer.from(prefix, 'hex'), raw]);

const privateKey = (curve: Curve, seed: Uint8Array): KeyObject =>
  createPrivateKey({ key: der(DER[curve].private, seed), format: 'der', type: 'pkcs8' });

const publicKey = (curve: Curve, raw: Uint8Array): KeyObject =>
  createPublicKey({ key: der(DER[curve].public, raw), format: 'der', type: 'spki' });

const rawPublic = (key: KeyObject): Uint8Array =>
  createPublicKey(key).export({ format: 'der', type: 'spki' }).subarray(-RAW_KEY_BYTES);

/** What a daemon proves itself with. */
export interface Identity {
  readonly publicKey: Uint8Array;
  sign(data: Uint8Array): Uint8Array;
}

/** @param seed 32 bytes, secret */
export const createIdentity = (seed: Uint8Array): Identity => {
  const key = privateKey('ed25519', seed);
  return { publicKey: rawPublic(key), sign: (data) => sign(null, data, key) };
};

export const isSignedBy = (signer: Uint8Array, data: Uint8Array, signature: Uint8Array): boolean =>
  verify(null, data, publicKey('ed25519', signer), signature);

/** A name for a public key that a person can compare: SHA-256, hex. */
export const fingerprint = (key: Uint8Array): string => createHash('sha256').update(key).digest('hex');

/** One side of a key agreement. */
export interface Ephemeral {
  readonly publicKey: Uint8Array;
  /** The common secret; null for a key that gives none (a point of small order). */
  agree(peer: Uint8Array): Uint8Array | null;
}

/** @param seed 32 bytes, secret, used once */
export const createEphemeral = (seed: Uint8Array): Ephemeral => {
  const own = privateKey('x25519', seed);
  return {
    publicKey: rawPublic(own),
    agree: (peer) => {
      try {
        return diffieHellman({ privateKey: own, publicKey: publicKey('x25519', peer) });
      } catch {
        return null;
      }
    },
  };
};
