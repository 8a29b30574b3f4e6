import { createCipheriv } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  createMemoryEncryptionEngine,
  createMemoryEncryptionEngineWith,
} from '../../../../server/hardware/amd/memory-encryption.js';
import { Dram } from '../../../../server/hardware/dram.js';
import { createEntropy } from '../../../../server/hardware/entropy.js';
import { hpa, PAGE_SIZE } from '../../../../server/hardware/units.js';
import { hex, jsonVector, unhex, VECTORS_NEEDED, vectorsAbsent } from './rig.js';

interface XexVectors {
  readonly vek: string;
  readonly constants: Readonly<Record<string, string>>;
  readonly rows: readonly { readonly pa: string; readonly plain: string; readonly xex: string }[];
}

function isXexVectors(value: unknown): value is XexVectors {
  return typeof value === 'object' && value !== null && 'rows' in value;
}

const engine = createMemoryEncryptionEngine(createEntropy('engine'));
const key = (name: string) => engine.createKey(name, createEntropy(name).bytes(16));

const number = (block: Uint8Array): bigint => BigInt(`0x${hex(block)}`);
const bytes = (block: bigint): Uint8Array => unhex(block.toString(16).padStart(32, '0'));

/** The definition, in one number for each block: C = AES(M xor T(p)) xor T(p), where T(p) sums a constant for each address bit. */
function sealByDefinition(key: Uint8Array, constants: readonly bigint[], address: number, plain: Uint8Array): Uint8Array {
  const sealed = new Uint8Array(plain.length);
  for (let at = 0; at < plain.length; at += 16) {
    const bits = BigInt(address + at);
    const tweak = constants.reduce((sum, constant, bit) => sum ^ (((bits >> BigInt(bit)) & 1n) * constant), 0n);
    const block = createCipheriv('aes-128-ecb', key, null).update(bytes(number(plain.subarray(at, at + 16)) ^ tweak));
    sealed.set(bytes(number(block) ^ tweak), at);
  }
  return sealed;
}

const pattern = (length: number): Uint8Array => Uint8Array.from({ length }, (_, index) => index);

describe('the memory encryption engine', () => {
  it.skipIf(vectorsAbsent)(`computes AES-128-XEX as the model's vectors have it (${VECTORS_NEEDED})`, () => {
    const vectors = jsonVector('selfcomputed-xex.json');
    if (!isXexVectors(vectors)) throw new Error('not the vectors of XEX');
    const constants = new Map(
      Object.entries(vectors.constants).map(([bit, word]) => [Number(bit), new BigUint64Array(unhex(word.repeat(4)).buffer)]),
    );
    const vek = createMemoryEncryptionEngineWith(constants).createKey('vek', unhex(vectors.vek));
    for (const row of vectors.rows) {
      const bytes = unhex(row.plain);
      vek.seal(hpa(Number(row.pa)), bytes);
      expect(hex(bytes)).toBe(row.xex);
      vek.open(hpa(Number(row.pa)), bytes);
      expect(hex(bytes)).toBe(row.plain);
    }
  });

  /** Part of a larger buffer, at any byte of it. */
  const ranges = fc.record({
    block: fc.oneof(fc.nat(2 ** 10), fc.nat(2 ** 47 - 2 ** 10)),
    blocks: fc.oneof(fc.integer({ min: 1, max: 8 }), fc.constant(256), fc.integer({ min: 200, max: 600 })),
    before: fc.nat(20),
  });

  /** Two engines with a key each. */
  const [ours, theirs] = [createEntropy('ours'), createEntropy('theirs')].map((entropy) => {
    const constants = Array.from({ length: 51 }, (_, bit) => (bit < 4 ? 0n : number(entropy.bytes(16))));
    const words = new Map(constants.map((constant, bit) => [bit, new BigUint64Array(bytes(constant).buffer)]));
    const key = entropy.bytes(16);
    return { constants, key, subject: createMemoryEncryptionEngineWith(words).createKey('vek', key) };
  });

  it('seals by the definition at any address, in any length, wherever the bytes lie, whoever else is at work', () => {
    fc.assert(
      fc.property(ranges, ({ block, blocks, before }) => {
        for (const { constants, key, subject } of [ours, theirs, ours]) {
          const address = block * 16;
          const length = blocks * 16;
          const around = pattern(before + length + 40);
          const expected = around.slice();
          expected.set(sealByDefinition(key, constants, address, around.slice(before, before + length)), before);
          const range = around.subarray(before, before + length);
          subject.seal(hpa(address), range);
          expect(hex(around)).toBe(hex(expected));
          subject.open(hpa(address), range);
          expect(hex(around)).toBe(hex(pattern(before + length + 40)));
        }
      }),
      { numRuns: 30, examples: [[{ block: 0, blocks: 256, before: 0 }], [{ block: 255, blocks: 258, before: 3 }]] },
    );
  });

  it('seals a page by the definition, whoever else is at work', () => {
    fc.assert(
      fc.property(fc.nat(2 ** 39 - 1), (page) => {
        for (const { constants, key, subject } of [ours, theirs, ours]) {
          const address = page * PAGE_SIZE;
          const converted = pattern(PAGE_SIZE);
          subject.sealPage(hpa(address), converted);
          expect(hex(converted)).toBe(hex(sealByDefinition(key, constants, address, pattern(PAGE_SIZE))));
          subject.openPage(hpa(address), converted);
          expect(hex(converted)).toBe(hex(pattern(PAGE_SIZE)));
        }
      }),
      { numRuns: 10, examples: [[0], [2 ** 39 - 1]] },
    );
  });

  it('opens what it sealed, in any range of blocks, and block by block as in one piece', () => {
    fc.assert(
      fc.property(fc.nat(2 ** 20), fc.integer({ min: 1, max: 600 }), (block, blocks) => {
        const subject = key('a');
        const address = block * 16;
        const plain = pattern(blocks * 16);
        const whole = plain.slice();
        subject.seal(hpa(address), whole);
        const pieces = plain.slice();
        for (let at = 0; at < pieces.length; at += 16) subject.seal(hpa(address + at), pieces.subarray(at, at + 16));
        expect(hex(pieces)).toBe(hex(whole));
        subject.open(hpa(address), whole);
        expect(hex(whole)).toBe(hex(plain));
      }),
      { numRuns: 50 },
    );
  });

  it('is tweaked by every bit of the physical address', () => {
    const seen = new Set<string>();
    for (let bit = 4; bit <= 50; bit++) {
      const bytes = new Uint8Array(16);
      key('a').seal(hpa(2 ** bit), bytes);
      seen.add(hex(bytes));
    }
    expect(seen.size).toBe(47);
  });

  it('refuses part of a block', () => {
    expect(() => key('a').seal(hpa(8), new Uint8Array(16))).toThrow();
    expect(() => key('a').seal(hpa(0), new Uint8Array(15))).toThrow();
  });
});

describe('a frame under a key', () => {
  function frame() {
    const allocated = new Dram(1, 4).allocate();
    if (allocated === null) throw new Error('no frame');
    return allocated;
  }

  it('reads as ciphertext without the key, as garbage with another, and as itself with its own', () => {
    const subject = frame();
    const [a, b] = [key('a'), key('b')];
    subject.viewForWrite(a).set(pattern(PAGE_SIZE));
    const plain = hex(pattern(PAGE_SIZE));
    expect(hex(subject.view(null))).not.toBe(plain);
    expect(hex(subject.view(b))).not.toBe(plain);
    expect(hex(subject.view(a))).toBe(plain);
  });

  it('gives the same ciphertext for the same plaintext, key and address: replay works', () => {
    const subject = frame();
    const a = key('a');
    subject.view(a).fill(1);
    const old = subject.view(null).slice();
    subject.view(a).fill(2);
    subject.view(null).set(old);
    expect(subject.view(a).every((byte) => byte === 1)).toBe(true);
  });

  it('gives garbage for ciphertext that was moved to another address', () => {
    const dram = new Dram(1, 4);
    const [first, second] = [dram.allocate(), dram.allocate()];
    if (first === null || second === null) throw new Error('no frames');
    const a = key('a');
    first.view(a).fill(1);
    second.view(null).set(first.view(null));
    expect(second.view(a).some((byte) => byte !== 1)).toBe(true);
  });

  it('is encrypted in place without a look at it, and the ciphertext is there when somebody looks', () => {
    const subject = frame();
    const a = key('a');
    subject.view(null).set(pattern(PAGE_SIZE));
    subject.retype(null, a);
    expect(subject.dirtyUnder).toBe(null);
    const sealed = pattern(PAGE_SIZE);
    a.sealPage(subject.hpa, sealed);
    expect(hex(subject.view(null))).toBe(hex(sealed));
  });
});
