import { createHash } from 'node:crypto';
import { blob, struct, u32, u64 } from '../byte-layout.js';
import { decodeEcPublicKey, decodeEcSignature, EC_PUBLIC_KEY } from '../certificates.js';
import { verifySignature } from '../p384.js';
import { STATUS, type Status } from '../status.js';
import { SNP_DIGEST_LENGTH } from './snp-launch-digest.js';

/** The identity that a guest owner signs for a launch (sev-firmware.md 3.14). */
export const ID_BLOCK = struct(96, {
  ld: blob(0, SNP_DIGEST_LENGTH),
  familyId: blob(48, 16),
  imageId: blob(64, 16),
  version: u32(80),
  guestSvn: u32(84),
  policy: u64(88),
});

export const ID_AUTH = struct(4096, {
  idKeyAlgo: u32(0x000),
  authKeyAlgo: u32(0x004),
  idBlockSig: blob(0x040, 512),
  idKey: blob(0x240, EC_PUBLIC_KEY.size),
  idKeySig: blob(0x680, 512),
  authorKey: blob(0x880, EC_PUBLIC_KEY.size),
});

const ECDSA_P384_SHA384 = 1;
const ID_BLOCK_VERSION = 1;

/** What a launched guest keeps of its ID block. */
export interface IdBlock {
  readonly familyId: Uint8Array;
  readonly imageId: Uint8Array;
  readonly guestSvn: number;
  readonly idKeyDigest: Uint8Array;
  /** Null without an author key. */
  readonly authorKeyDigest: Uint8Array | null;
}

export interface IdBlockRequest {
  readonly block: Uint8Array;
  readonly auth: Uint8Array;
  readonly hasAuthorKey: boolean;
  /** Of the guest that is being launched. */
  readonly digest: Uint8Array;
  readonly policy: bigint;
}

/** Checks an ID block against a launch, in this order: must-be-zero bytes, digest, policy, its signature, its key's signature. */
export function checkIdBlock({ block, auth, hasAuthorKey, digest, policy }: IdBlockRequest): IdBlock | Status {
  if (!ID_AUTH.reservedIsZero(auth) || ID_BLOCK.version.get(block) !== ID_BLOCK_VERSION) return STATUS.INVALID_PARAM;
  if (ID_AUTH.idKeyAlgo.get(auth) !== ECDSA_P384_SHA384) return STATUS.INVALID_PARAM;
  if (hasAuthorKey && ID_AUTH.authKeyAlgo.get(auth) !== ECDSA_P384_SHA384) return STATUS.INVALID_PARAM;
  if (!Buffer.from(ID_BLOCK.ld.get(block)).equals(digest)) return STATUS.BAD_MEASUREMENT;
  if (ID_BLOCK.policy.get(block) !== policy) return STATUS.POLICY_FAILURE;
  const idKey = ID_AUTH.idKey.get(auth);
  if (!isSignedBy(block, ID_AUTH.idBlockSig.get(auth), idKey)) return STATUS.BAD_SIGNATURE;
  const authorKey = ID_AUTH.authorKey.get(auth);
  if (hasAuthorKey && !isSignedBy(idKey, ID_AUTH.idKeySig.get(auth), authorKey)) return STATUS.BAD_SIGNATURE;
  return {
    familyId: ID_BLOCK.familyId.get(block),
    imageId: ID_BLOCK.imageId.get(block),
    guestSvn: ID_BLOCK.guestSvn.get(block),
    idKeyDigest: keyDigest(idKey),
    authorKeyDigest: hasAuthorKey ? keyDigest(authorKey) : null,
  };
}

/** The digest of a public key that reports name: SHA-384 over its 1028 bytes. */
const keyDigest = (key: Uint8Array): Uint8Array => createHash('sha384').update(key).digest();

function isSignedBy(message: Uint8Array, signature: Uint8Array, key: Uint8Array): boolean {
  const publicKey = decodeEcPublicKey(key);
  const decoded = decodeEcSignature(signature);
  return publicKey !== null && decoded !== null && verifySignature('sha384', publicKey, message, decoded);
}
