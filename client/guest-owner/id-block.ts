import { createHash } from 'node:crypto';
import { blob, isZero, requireLength, u32, u64 } from './bytes.js';
import { decodeEcPublicKey, EC_PUBLIC_KEY_LENGTH, verifyEc } from './ec-key.js';

/** The identity that an owner signs for a SEV-SNP launch (SNP ABI, 8.18). */
export interface IdBlock {
  readonly measurement: Uint8Array;
  readonly familyId: Uint8Array;
  readonly imageId: Uint8Array;
  readonly guestSvn: number;
  readonly policy: bigint;
  /** As reports name the keys. */
  readonly idKeyDigest: Uint8Array;
  /** Null without an author key. */
  readonly authorKeyDigest: Uint8Array | null;
}

const ID_BLOCK_LENGTH = 96;
const ID_BLOCK_VERSION = 1;
const ID_AUTH_LENGTH = 4096;
const SIGNATURE_LENGTH = 512;

const isSigned = (message: Uint8Array, signature: Uint8Array, key: Uint8Array): boolean => {
  const publicKey = decodeEcPublicKey(key);
  return publicKey !== null && verifyEc('sha384', publicKey, message, signature);
};

const keyDigest = (key: Uint8Array): Uint8Array => createHash('sha384').update(key).digest();

/**
 * What an ID block and its authentication information say, or null if a signature is wrong.
 * @throws RangeError if something has a length that it cannot have
 */
export const verifyIdBlock = (block: Uint8Array, auth: Uint8Array): IdBlock | null => {
  requireLength('the ID block', block, ID_BLOCK_LENGTH);
  requireLength('the authentication information', auth, ID_AUTH_LENGTH);
  if (u32(block, 80) !== ID_BLOCK_VERSION) return null;
  const idKey = blob(auth, 0x240, EC_PUBLIC_KEY_LENGTH);
  const authorKey = blob(auth, 0x880, EC_PUBLIC_KEY_LENGTH);
  const hasAuthor = !isZero(authorKey);
  if (!isSigned(block, blob(auth, 0x40, SIGNATURE_LENGTH), idKey)) return null;
  if (hasAuthor && !isSigned(idKey, blob(auth, 0x680, SIGNATURE_LENGTH), authorKey)) return null;
  return {
    measurement: blob(block, 0, 48),
    familyId: blob(block, 48, 16),
    imageId: blob(block, 64, 16),
    guestSvn: u32(block, 84),
    policy: u64(block, 88),
    idKeyDigest: keyDigest(idKey),
    authorKeyDigest: hasAuthor ? keyDigest(authorKey) : null,
  };
};
