import { createCipheriv, createHmac, timingSafeEqual } from 'node:crypto';
import type { Entropy } from '../entropy.js';
import { blob, struct } from './byte-layout.js';
import { deriveKey, littleEndian32 } from './kdf.js';
import { type KeyPair, type PublicKey, sharedSecret } from './p384.js';

/** The session blob by which two parties agree on transport keys (sev-firmware.md 3.4). */
export const SESSION = struct(128, {
  nonce: blob(0, 16),
  wrapTk: blob(16, 32),
  wrapIv: blob(48, 16),
  wrapMac: blob(64, 32),
  policyMac: blob(96, 32),
});

const KEY_LENGTH = 16;

/** The keys of one launch or one migration: everything that travels is encrypted under `tek` and authenticated under `tik`. */
export interface TransportKeys {
  readonly tek: Uint8Array;
  readonly tik: Uint8Array;
}

/** The pair that wraps the transport keys inside a session blob. */
interface WrappingKeys {
  readonly kek: Uint8Array;
  readonly kik: Uint8Array;
}

export function createTransportKeys(entropy: Entropy): TransportKeys {
  return { tek: entropy.bytes(KEY_LENGTH), tik: entropy.bytes(KEY_LENGTH) };
}

/** The blob that gives `keys` to the owner of `peer` and binds `policy` to them; null if `peer` is no point of the curve. */
export function createSession(
  own: KeyPair,
  peer: PublicKey,
  policy: number,
  keys: TransportKeys,
  entropy: Entropy,
): Uint8Array | null {
  const nonce = entropy.bytes(16);
  const wrapping = deriveWrappingKeys(own, peer, nonce);
  if (wrapping === null) return null;
  return wrapTransportKeys(wrapping, keys, policy, nonce, entropy.bytes(16));
}

export type OpenedSession =
  | { readonly kind: 'opened'; readonly keys: TransportKeys }
  /** The peer's public key is no point of the curve. */
  | { readonly kind: 'bad-peer' }
  /** A MAC is wrong: the blob was altered, is for another key, or was made for another policy. */
  | { readonly kind: 'bad-mac' };

/** Unwraps the transport keys of a blob that `peer` made for `own`: first WRAP_MAC, then POLICY_MAC over the policy given. */
export function openSession(own: KeyPair, peer: PublicKey, policy: number, session: Uint8Array): OpenedSession {
  const wrapping = deriveWrappingKeys(own, peer, SESSION.nonce.get(session));
  if (wrapping === null) return { kind: 'bad-peer' };
  const wrapTk = SESSION.wrapTk.get(session);
  if (!timingSafeEqual(hmac(wrapping.kik, wrapTk), SESSION.wrapMac.get(session))) return { kind: 'bad-mac' };
  const plain = counterMode(wrapping.kek, SESSION.wrapIv.get(session), wrapTk);
  const keys = { tek: plain.subarray(0, KEY_LENGTH), tik: plain.subarray(KEY_LENGTH) };
  if (!timingSafeEqual(policyMac(keys.tik, policy), SESSION.policyMac.get(session))) return { kind: 'bad-mac' };
  return { kind: 'opened', keys };
}

/** The key that both sides of a session derive from their ECDH secret (48 bytes, big-endian) and its nonce. */
export const deriveMasterSecret = (secret: Uint8Array, nonce: Uint8Array): Uint8Array =>
  deriveKey(secret, 'sev-master-secret', KEY_LENGTH, nonce);

export const wrappingKeys = (masterSecret: Uint8Array): WrappingKeys => ({
  kek: deriveKey(masterSecret, 'sev-kek', KEY_LENGTH),
  kik: deriveKey(masterSecret, 'sev-kik', KEY_LENGTH),
});

export function wrapTransportKeys(
  { kek, kik }: WrappingKeys,
  { tek, tik }: TransportKeys,
  policy: number,
  nonce: Uint8Array,
  wrapIv: Uint8Array,
): Uint8Array {
  const wrapTk = counterMode(kek, wrapIv, Buffer.concat([tek, tik]));
  const session = new Uint8Array(SESSION.size);
  SESSION.nonce.set(session, nonce);
  SESSION.wrapTk.set(session, wrapTk);
  SESSION.wrapIv.set(session, wrapIv);
  SESSION.wrapMac.set(session, hmac(kik, wrapTk));
  SESSION.policyMac.set(session, policyMac(tik, policy));
  return session;
}

function deriveWrappingKeys(own: KeyPair, peer: PublicKey, nonce: Uint8Array): WrappingKeys | null {
  const secret = sharedSecret(own.privateKey, peer);
  return secret === null ? null : wrappingKeys(deriveMasterSecret(secret, nonce));
}

/** AES-128-CTR with the whole initialisation vector as first counter block. */
export const counterMode = (key: Uint8Array, iv: Uint8Array, data: Uint8Array): Uint8Array =>
  createCipheriv('aes-128-ctr', key, iv).update(data);

const hmac = (key: Uint8Array, data: Uint8Array): Uint8Array => createHmac('sha256', key).update(data).digest();

const policyMac = (tik: Uint8Array, policy: number): Uint8Array => hmac(tik, littleEndian32(policy));
