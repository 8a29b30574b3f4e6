import { createCipheriv, createHmac } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { PacketCipher } from '../../../../server/hardware/amd/packet-cipher.js';

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

describe('the cipher of packets', () => {
  const cipher = new PacketCipher(keys);

  it('is AES-128-CTR, whatever the length, and where the counter carries', () => {
    const nearCarry = fc.tuple(exactly(12), fc.integer({ min: -300, max: 0 })).map(([head, below]) => {
      const iv = new Uint8Array(16);
      iv.set(head);
      new DataView(iv.buffer).setUint32(12, 2 ** 32 + below - 1);
      return iv;
    });
    fc.assert(
      fc.property(fc.oneof(exactly(16), nearCarry), lengths, (iv, length) => {
        expect(hex(cipher.crypt(iv, bytes(length)))).toBe(reference(iv, bytes(length)));
      }),
    );
  });

  it('takes data that lies anywhere', () => {
    const iv = new Uint8Array(16);
    for (const offset of [0, 1, 4, 16]) {
      const data = bytes(4096 + offset).subarray(offset);
      expect(hex(cipher.crypt(iv, data))).toBe(reference(iv, data));
    }
  });

  it('authenticates by HMAC-SHA-256', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 40 }), lengths, fc.uint8Array({ maxLength: 32 }), (prefix, length, suffix) => {
        const mac = createHmac('sha256', keys.tik).update(prefix).update(bytes(length)).update(suffix).digest('hex');
        expect(hex(cipher.mac(prefix, bytes(length), suffix))).toBe(mac);
      }),
    );
  });
});
