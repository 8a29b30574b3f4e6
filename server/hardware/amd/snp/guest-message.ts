import { createCipheriv, createDecipheriv } from 'node:crypto';
import { PAGE_SIZE } from '../../units.js';
import { blob, struct, u8, u16, u64 } from '../byte-layout.js';

/** Messages between an SNP guest and the firmware, which the host carries and cannot read (sev-firmware.md 3.11). */
export const MESSAGE_HEADER = struct(0x60, {
  authTag: blob(0x00, 32),
  seqno: u64(0x20),
  algo: u8(0x30),
  headerVersion: u8(0x31),
  headerSize: u16(0x32),
  type: u8(0x34),
  version: u8(0x35),
  payloadSize: u16(0x36),
  vmpck: u8(0x3c),
});

export const MESSAGE_TYPE = {
  CPUID_REQ: 1,
  CPUID_RSP: 2,
  KEY_REQ: 3,
  KEY_RSP: 4,
  REPORT_REQ: 5,
  REPORT_RSP: 6,
  TSC_INFO_REQ: 17,
  TSC_INFO_RSP: 18,
} as const;

const AES_256_GCM = 1;
const HEADER_VERSION = 1;
const MESSAGE_VERSION = 1;
const TAG_LENGTH = 16;
const VMPCK_COUNT = 4;

/** Where the bytes of the header begin that are authenticated. */
const AAD_OFFSET = MESSAGE_HEADER.algo.offset;

export interface GuestMessage {
  readonly type: number;
  readonly seqno: bigint;
  /** Number of the key that protects it. */
  readonly vmpck: number;
  readonly payload: Uint8Array;
}

/** What the header of a well-formed message says; it is not authenticated yet. */
export type MessageEnvelope = Pick<GuestMessage, 'vmpck' | 'seqno'>;

/** Looks at a page that should hold a message; null if its header is malformed. */
export function parseMessage(page: Uint8Array): MessageEnvelope | null {
  if (!MESSAGE_HEADER.reservedIsZero(page) || MESSAGE_HEADER.algo.get(page) !== AES_256_GCM) return null;
  if (MESSAGE_HEADER.headerVersion.get(page) !== HEADER_VERSION || MESSAGE_HEADER.version.get(page) !== MESSAGE_VERSION)
    return null;
  if (MESSAGE_HEADER.headerSize.get(page) !== MESSAGE_HEADER.size) return null;
  if (MESSAGE_HEADER.size + MESSAGE_HEADER.payloadSize.get(page) > PAGE_SIZE) return null;
  const vmpck = MESSAGE_HEADER.vmpck.get(page);
  return vmpck < VMPCK_COUNT ? { vmpck, seqno: MESSAGE_HEADER.seqno.get(page) } : null;
}

/** Decrypts a message whose header is well formed; null if its tag is wrong. */
export function openMessage(key: Uint8Array, page: Uint8Array): GuestMessage | null {
  const seqno = MESSAGE_HEADER.seqno.get(page);
  const decipher = createDecipheriv('aes-256-gcm', key, messageIv(seqno));
  decipher.setAAD(page.subarray(AAD_OFFSET, MESSAGE_HEADER.size));
  decipher.setAuthTag(MESSAGE_HEADER.authTag.get(page).subarray(0, TAG_LENGTH));
  const payload = decipher.update(page.subarray(MESSAGE_HEADER.size, MESSAGE_HEADER.size + MESSAGE_HEADER.payloadSize.get(page)));
  try {
    decipher.final();
  } catch {
    return null;
  }
  return { type: MESSAGE_HEADER.type.get(page), seqno, vmpck: MESSAGE_HEADER.vmpck.get(page), payload };
}

/** A page with a message, as either side makes it. */
export function sealMessage(key: Uint8Array, { type, seqno, vmpck, payload }: GuestMessage): Uint8Array {
  const page = new Uint8Array(PAGE_SIZE);
  MESSAGE_HEADER.seqno.set(page, seqno);
  MESSAGE_HEADER.algo.set(page, AES_256_GCM);
  MESSAGE_HEADER.headerVersion.set(page, HEADER_VERSION);
  MESSAGE_HEADER.headerSize.set(page, MESSAGE_HEADER.size);
  MESSAGE_HEADER.type.set(page, type);
  MESSAGE_HEADER.version.set(page, MESSAGE_VERSION);
  MESSAGE_HEADER.payloadSize.set(page, payload.length);
  MESSAGE_HEADER.vmpck.set(page, vmpck);
  const cipher = createCipheriv('aes-256-gcm', key, messageIv(seqno));
  cipher.setAAD(page.subarray(AAD_OFFSET, MESSAGE_HEADER.size));
  page.set(cipher.update(payload), MESSAGE_HEADER.size);
  cipher.final();
  MESSAGE_HEADER.authTag.set(page, cipher.getAuthTag());
  return page;
}

function messageIv(seqno: bigint): Uint8Array {
  const iv = new Uint8Array(12);
  new DataView(iv.buffer).setBigUint64(0, seqno, true);
  return iv;
}
