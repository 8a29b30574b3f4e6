import { createCipheriv, createDecipheriv, createHmac } from 'node:crypto';
import { blob, struct, u64 } from '../byte-layout.js';
import { SCALAR_SEED_LENGTH } from '../identity.js';
import { deriveKey } from '../kdf.js';
import { type KeyPair, keyPairFromSeed } from '../p384.js';
import { tcbBytes } from './tcb.js';

/** The keys that sign reports: VCEK, from the chip, and VLEK, loaded from AMD's service (sev-firmware.md 3.3, 3.17). */

/**
 * The versioned chip endorsement key: another one for each chip and each version of the trusted computing base. The
 * derivation of real parts is not public; this one is a model.
 */
export function versionedChipKey(chipSecret: Uint8Array, tcb: bigint): KeyPair {
  return keyPairFromSeed(deriveKey(chipSecret, 'sev-versioned-chip-endorsement-key', SCALAR_SEED_LENGTH, tcbBytes(tcb)));
}

export const VLEK_HASHSTICK_LENGTH = 384;

/** A VLEK hashstick as AMD's service wraps it for one chip. */
export const WRAPPED_VLEK = struct(432, {
  iv: blob(0, 12),
  wrapped: blob(16, VLEK_HASHSTICK_LENGTH),
  tcb: u64(400),
  tag: blob(416, 16),
});

export interface Vlek {
  readonly hashstick: Uint8Array;
  readonly tcb: bigint;
}

/** The versioned loaded endorsement key of a hashstick at a version. A model, like the VCEK's. */
export function versionedLoadedKey(hashstick: Uint8Array, tcb: bigint): KeyPair {
  return keyPairFromSeed(deriveKey(hashstick, 'sev-versioned-chip-endorsement-key', SCALAR_SEED_LENGTH, tcbBytes(tcb)));
}

const wrapKey = (chipSecret: Uint8Array): Uint8Array => createHmac('sha256', chipSecret).update('vlek wrap').digest();

/** The version is authenticated with the hashstick, as all bytes between initialisation vector and tag are. */
const authenticated = (bytes: Uint8Array): Uint8Array => bytes.subarray(WRAPPED_VLEK.tcb.offset, WRAPPED_VLEK.tag.offset);

/** Wraps a hashstick for a chip, as AMD's service does with the key that it shares with it. */
export function wrapVlek(chipSecret: Uint8Array, { hashstick, tcb }: Vlek, iv: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(WRAPPED_VLEK.size);
  WRAPPED_VLEK.iv.set(bytes, iv);
  WRAPPED_VLEK.tcb.set(bytes, tcb);
  const cipher = createCipheriv('aes-256-gcm', wrapKey(chipSecret), iv);
  cipher.setAAD(authenticated(bytes));
  WRAPPED_VLEK.wrapped.set(bytes, cipher.update(hashstick));
  cipher.final();
  WRAPPED_VLEK.tag.set(bytes, cipher.getAuthTag());
  return bytes;
}

/** The hashstick inside, or null if it was altered or is another chip's. */
export function unwrapVlek(chipSecret: Uint8Array, bytes: Uint8Array): Vlek | null {
  const decipher = createDecipheriv('aes-256-gcm', wrapKey(chipSecret), WRAPPED_VLEK.iv.get(bytes));
  decipher.setAAD(authenticated(bytes));
  decipher.setAuthTag(WRAPPED_VLEK.tag.get(bytes));
  const hashstick = decipher.update(WRAPPED_VLEK.wrapped.get(bytes));
  try {
    decipher.final();
  } catch {
    return null;
  }
  return { hashstick, tcb: WRAPPED_VLEK.tcb.get(bytes) };
}
