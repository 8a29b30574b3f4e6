import { createCipheriv, createDecipheriv } from 'node:crypto';
import { blob, struct, u32, u64 } from '../byte-layout.js';

/** A page of a guest outside of its memory: its ciphertext, and the entry that says what it is (sev-firmware.md 3.18). */
export const METADATA_ENTRY = struct(64, {
  softwareData: u64(0x00),
  iv: u64(0x08),
  authTag: blob(0x10, 16),
  /** `ENTRY_FLAG` bits, and the guest's address in bits 63:12. */
  flagsAndGpa: u64(0x20),
  /** Permissions of VMPL 0 to 3, one byte each. */
  permissions: u32(0x28),
});

export const ENTRY_FLAG = {
  VALID: 1n << 0n,
  PAGE_VALIDATED: 1n << 1n,
  VMSA: 1n << 2n,
  METADATA: 1n << 3n,
  PAGE_SIZE: 1n << 4n,
} as const;

export interface SwappedPage {
  readonly ciphertext: Uint8Array;
  readonly entry: Uint8Array;
}

/** What is authenticated beside the page: its entry without the tag. */
function authenticated(entry: Uint8Array): Uint8Array {
  const bytes = Uint8Array.from(entry);
  METADATA_ENTRY.authTag.set(bytes, new Uint8Array(0));
  return bytes;
}

function ivOf(entry: Uint8Array): Uint8Array {
  const iv = new Uint8Array(12);
  new DataView(iv.buffer).setBigUint64(0, METADATA_ENTRY.iv.get(entry), true);
  return iv;
}

/**
 * Encrypts a page under a guest's offline key and completes its entry, whose IV must never repeat under the key. AES-256-GCM
 * over the page with the entry as associated data is a model: AMD's format is not public in this detail.
 */
export function swapOutPage(oek: Uint8Array, entry: Uint8Array, plaintext: Uint8Array): SwappedPage {
  const cipher = createCipheriv('aes-256-gcm', oek, ivOf(entry));
  cipher.setAAD(authenticated(entry));
  const ciphertext = cipher.update(plaintext);
  cipher.final();
  const complete = Uint8Array.from(entry);
  METADATA_ENTRY.authTag.set(complete, cipher.getAuthTag());
  return { ciphertext, entry: complete };
}

/** The page, or null if page or entry were altered. */
export function swapInPage(oek: Uint8Array, { ciphertext, entry }: SwappedPage): Uint8Array | null {
  const decipher = createDecipheriv('aes-256-gcm', oek, ivOf(entry));
  decipher.setAAD(authenticated(entry));
  decipher.setAuthTag(METADATA_ENTRY.authTag.get(entry));
  const plaintext = decipher.update(ciphertext);
  try {
    decipher.final();
    return plaintext;
  } catch {
    return null;
  }
}
