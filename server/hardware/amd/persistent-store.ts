import { createCipheriv, createDecipheriv, createHmac } from 'node:crypto';
import { blob, struct, u8, u32 } from './byte-layout.js';
import { SEV_CERTIFICATE } from './certificates.js';
import type { FirmwareMemory } from './firmware-memory.js';
import { type IdentityFactory, type Owner, type PlatformIdentity, restoredEndorsed } from './identity.js';

/** Where the secure processor keeps the platform's identity across SHUTDOWN and power cycles. */
export interface PersistentStore {
  /** Null when there is none yet, `corrupt` when it fails its integrity check. */
  load(): PlatformIdentity | 'corrupt' | null;
  save(identity: PlatformIdentity): void;
  /** Deletes everything, as PLATFORM_RESET and a failed integrity check do. */
  erase(): void;
}

/** The chip's own flash, used after INIT. */
export function createFlashStore(): PersistentStore {
  let stored: PlatformIdentity | null = null;
  return {
    load: () => stored,
    save: (identity) => {
      stored = identity;
    },
    erase: () => {
      stored = null;
    },
  };
}

/** Bytes of the buffer that INIT_EX hands over; the operating system keeps a copy of it in a file. */
export const NV_LENGTH = 0x8000;

/** An image of the identity: an initialisation vector, a tag, and the encrypted record. The format is ours: AMD's is not public. */
const NV_IMAGE_HEADER = struct(28, { iv: blob(0, 12), tag: blob(12, 16) });

const SELF_OWNED = 0;
const EXTERNALLY_OWNED = 1;

const NV_RECORD = struct(NV_LENGTH - NV_IMAGE_HEADER.size, {
  owner: u8(0),
  ocaKey: blob(4, 48),
  pekKey: blob(52, 48),
  pdhKey: blob(100, 48),
  ocaCertificate: blob(148, SEV_CERTIFICATE.size),
  pekCertificate: blob(2232, SEV_CERTIFICATE.size),
  pdhCertificate: blob(4316, SEV_CERTIFICATE.size),
  /** Keys that the chip has made: one that starts again from its seed must not make the same ones. */
  keysMade: u32(6400),
});

/**
 * A buffer of the operating system, used after INIT_EX: encrypted and authenticated under a key of this chip. An older image
 * than the last is as good: nothing in the chip remembers which that was.
 */
export function createBufferStore(
  memory: FirmwareMemory,
  address: number,
  chipSecret: Uint8Array,
  identities: IdentityFactory,
): PersistentStore {
  const key = createHmac('sha256', chipSecret).update('non-volatile storage').digest();
  const empty = new Uint8Array(NV_LENGTH).fill(0xff);

  function load(): PlatformIdentity | 'corrupt' | null {
    const image = memory.read(address, NV_LENGTH, null);
    if (image === null || image.every((byte) => byte === 0xff)) return null;
    const record = open(key, image);
    if (record === null) return 'corrupt';
    identities.resumeAfter(NV_RECORD.keysMade.get(record));
    return decodeIdentity(record);
  }

  return {
    load,
    save: (identity) => {
      const record = encodeIdentity(identity);
      NV_RECORD.keysMade.set(record, identities.keysMade);
      memory.write(address, seal(key, record), null);
    },
    erase: () => {
      memory.write(address, empty, null);
    },
  };
}

/** The vector follows from the record: a chip that starts again from its seed must not use one for two of them. */
function seal(key: Uint8Array, record: Uint8Array): Uint8Array {
  const iv = createHmac('sha256', key).update(record).digest().subarray(0, NV_IMAGE_HEADER.iv.size);
  const cipher = createCipheriv('aes-256-gcm', key, iv);
  const image = new Uint8Array(NV_LENGTH);
  image.set(cipher.update(record), NV_IMAGE_HEADER.size);
  cipher.final();
  NV_IMAGE_HEADER.iv.set(image, iv);
  NV_IMAGE_HEADER.tag.set(image, cipher.getAuthTag());
  return image;
}

function open(key: Uint8Array, image: Uint8Array): Uint8Array | null {
  const decipher = createDecipheriv('aes-256-gcm', key, NV_IMAGE_HEADER.iv.get(image));
  decipher.setAuthTag(NV_IMAGE_HEADER.tag.get(image));
  const record = decipher.update(image.subarray(NV_IMAGE_HEADER.size));
  try {
    decipher.final();
    return record;
  } catch {
    return null;
  }
}

function encodeIdentity({ owner, pek, pdh }: PlatformIdentity): Uint8Array {
  const record = new Uint8Array(NV_RECORD.size);
  NV_RECORD.owner.set(record, owner.kind === 'self' ? SELF_OWNED : EXTERNALLY_OWNED);
  if (owner.kind === 'self') NV_RECORD.ocaKey.set(record, owner.key().privateKey);
  NV_RECORD.ocaCertificate.set(record, owner.certificate());
  NV_RECORD.pekKey.set(record, pek.key().privateKey);
  NV_RECORD.pekCertificate.set(record, pek.certificate());
  NV_RECORD.pdhKey.set(record, pdh.key().privateKey);
  NV_RECORD.pdhCertificate.set(record, pdh.certificate());
  return record;
}

function decodeIdentity(record: Uint8Array): PlatformIdentity {
  const ocaCertificate = NV_RECORD.ocaCertificate.get(record);
  const owner: Owner =
    NV_RECORD.owner.get(record) === SELF_OWNED
      ? { kind: 'self', ...restoredEndorsed(NV_RECORD.ocaKey.get(record), ocaCertificate) }
      : { kind: 'external', certificate: () => ocaCertificate };
  return {
    owner,
    pek: restoredEndorsed(NV_RECORD.pekKey.get(record), NV_RECORD.pekCertificate.get(record)),
    pdh: restoredEndorsed(NV_RECORD.pdhKey.get(record), NV_RECORD.pdhCertificate.get(record)),
  };
}
