import { createCipheriv, createHmac } from 'node:crypto';
import { u32Bytes } from './bytes.js';

const KEY_LENGTH = 16;

export const hmac = (key: Uint8Array, ...parts: Uint8Array[]): Uint8Array => {
  const mac = createHmac('sha256', key);
  for (const part of parts) mac.update(part);
  return mac.digest();
};

/** The SEV API's key derivation: SP 800-108 in counter mode with HMAC-SHA-256; 16 bytes. Counter and length are little-endian. */
export const deriveKey = (key: Uint8Array, label: string, context: Uint8Array = new Uint8Array(0)): Uint8Array =>
  hmac(key, u32Bytes(1), Buffer.from(label), Uint8Array.of(0), context, u32Bytes(KEY_LENGTH * 8)).subarray(0, KEY_LENGTH);

/** AES-128-CTR; the whole IV is the first counter block. Encrypts and decrypts. */
export const counterMode = (key: Uint8Array, iv: Uint8Array, data: Uint8Array): Uint8Array =>
  createCipheriv('aes-128-ctr', key, iv).update(data);
