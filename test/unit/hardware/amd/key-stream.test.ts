import { createCipheriv } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { KeyStream } from '../../../../server/hardware/amd/key-stream.js';

const key = new Uint8Array(16).fill(7);
const BLOCK = 16;

/** Blocks of key stream from a counter block on, by an object that is made for them. */
const reference = (iv: Uint8Array, blocks: number): string =>
  createCipheriv('aes-128-ctr', key, iv)
    .update(new Uint8Array(BLOCK * blocks))
    .toString('hex');

const taken = (stream: KeyStream, iv: Uint8Array, blocks: number, first = 0): string => {
  const words = new BigUint64Array(first + 2 * blocks);
  stream.add(iv, words, first, blocks);
  expect(words.subarray(0, first).every((word) => word === 0n)).toBe(true);
  return Buffer.from(words.buffer, 8 * first).toString('hex');
};

const counter = (value: bigint): Uint8Array => Buffer.from(BigInt.asUintN(128, value).toString(16).padStart(32, '0'), 'hex');
const anyCounter = fc.oneof(
  fc.bigInt({ min: 0n, max: 2n ** 128n - 1n }),
  fc
    .tuple(fc.constantFrom(8n, 16n, 32n, 64n, 128n), fc.integer({ min: 1, max: 3000 }))
    .map(([bits, below]) => 2n ** bits - BigInt(below)),
);
const anyBlocks = fc.oneof(fc.integer({ min: 1, max: 8 }), fc.constant(256), fc.integer({ min: 1, max: 3000 }));

describe('the key stream of packets', () => {
  it('is AES-128-CTR of each packet, whether it continues the one before or not, and where the counter wraps', () => {
    const steps = fc.array(fc.record({ jump: fc.option(anyCounter, { freq: 3 }), blocks: anyBlocks, first: fc.nat(3) }), {
      minLength: 1,
      maxLength: 12,
    });
    fc.assert(
      fc.property(anyCounter, steps, (begin, packets) => {
        const stream = new KeyStream(key);
        let at = begin;
        for (const { jump, blocks, first } of packets) {
          at = jump ?? at;
          expect(taken(stream, counter(at), blocks, first)).toBe(reference(counter(at), blocks));
          at += BigInt(blocks);
          expect(Buffer.from(stream.next)).toEqual(Buffer.from(counter(at)));
        }
      }),
    );
  });

  it('goes back, and takes up where it has been', () => {
    const stream = new KeyStream(key);
    for (const at of [5n, 261n, 5n, 5n, 261n, 517n]) expect(taken(stream, counter(at), 256)).toBe(reference(counter(at), 256));
  });

  it('goes on only where all of a vector is the next counter block', () => {
    for (let byte = 0; byte < BLOCK; byte++) {
      const stream = new KeyStream(key);
      taken(stream, counter(0n), 1);
      const other = stream.next.map((value, at) => (at === byte ? value ^ 0x80 : value));
      expect(taken(stream, other, 1)).toBe(reference(other, 1));
    }
  });

  it('has not begun before a packet: a first one that begins with zeros is no continuation', () => {
    const stream = new KeyStream(key);
    expect(stream.hasBegun).toBe(false);
    expect(taken(stream, new Uint8Array(BLOCK), 1)).toBe(reference(new Uint8Array(BLOCK), 1));
    expect(stream.hasBegun).toBe(true);
  });
});
