import { createCipheriv, createHmac } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { PacketCipher, PREFIX } from '../../../../server/hardware/amd/packet-cipher.js';

const keys = { tek: new Uint8Array(16).fill(7), tik: Uint8Array.from({ length: 16 }, (_, index) => index) };
const bytes = (length: number): Uint8Array => Uint8Array.from({ length }, (_, index) => (index * 37) & 0xff);
const exactly = (length: number) => fc.uint8Array({ minLength: length, maxLength: length });
/** Whole blocks and others, up to more than a page. */
const lengths = fc.oneof(
  fc.integer({ min: 1, max: 300 }).map((blocks) => 16 * blocks),
  fc.nat(5000),
);

const reference = (iv: Uint8Array, data: Uint8Array): string =>
  createCipheriv('aes-128-ctr', keys.tek, iv).update(data).toString('hex');
const hex = (data: Uint8Array): string => Buffer.from(data).toString('hex');

const crypted = (cipher: PacketCipher, iv: Uint8Array, data: Uint8Array): string => {
  cipher.load(data);
  cipher.crypt(iv);
  return hex(cipher.data);
};

describe('the cipher of packets', () => {
  const cipher = new PacketCipher(keys);

  it('is AES-128-CTR, whatever the length', () => {
    fc.assert(
      fc.property(exactly(16), lengths, (iv, length) => {
        expect(crypted(cipher, iv, bytes(length))).toBe(reference(iv, bytes(length)));
      }),
    );
  });

  it('goes on behind the last block of a packet that ends inside of it', () => {
    const first = new Uint8Array(16).fill(9);
    crypted(cipher, first, bytes(40));
    const next = new Uint8Array(cipher.stream.next);
    expect(hex(next)).toBe(`${'09'.repeat(15)}0c`);
    expect(crypted(cipher, next, bytes(100))).toBe(reference(next, bytes(100)));
  });

  it('takes data that lies anywhere, and leaves it as it is', () => {
    const iv = new Uint8Array(16);
    for (const offset of [0, 1, 4, 16]) {
      const data = bytes(4096 + offset).subarray(offset);
      expect(crypted(cipher, iv, data)).toBe(reference(iv, data));
      expect(hex(data)).toBe(hex(bytes(4096 + offset).subarray(offset)));
    }
  });

  it('authenticates by HMAC-SHA-256', () => {
    fc.assert(
      fc.property(exactly(PREFIX), lengths, fc.uint8Array({ maxLength: 32 }), (prefix, length, suffix) => {
        const mac = createHmac('sha256', keys.tik).update(prefix).update(bytes(length)).update(suffix).digest('hex');
        cipher.load(bytes(length));
        cipher.prefix.set(prefix);
        expect(hex(cipher.mac(suffix))).toBe(mac);
        expect(hex(cipher.data)).toBe(hex(bytes(length)));
      }),
    );
  });
});
