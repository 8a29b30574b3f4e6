import { describe, expect, it } from 'vitest';
import { Dram } from '../../../server/hardware/dram.js';
import { PAGE_SIZE, type Pfn } from '../../../server/hardware/units.js';

const FIRST = 0x100;

/** Pages with a byte of each their own. */
const pages = (...bytes: number[]): Uint8Array => Uint8Array.from(bytes.flatMap((byte) => Array(PAGE_SIZE).fill(byte)));

const store = (dram: Dram, bytes: Uint8Array): readonly Pfn[] => {
  const stored = dram.store(bytes);
  if (stored === null) throw new Error('no memory');
  return stored;
};

describe('bytes that are stored in DRAM', () => {
  it('take a frame for each page, with the numbers that frames of their own would have', () => {
    const [dram, other] = [new Dram(FIRST, 8), new Dram(FIRST, 8)];
    expect(store(dram, pages(1, 2, 3))).toEqual([1, 2, 3].map(() => other.allocate()?.pfn));
    expect(dram.used).toBe(3);
    expect(dram.allocate()?.pfn).toBe(other.allocate()?.pfn);
  });

  it('are a copy, which can be read together, or as the frames that they are', () => {
    const dram = new Dram(FIRST, 8);
    const bytes = pages(1, 2, 3);
    const [first, second, third] = store(dram, bytes);
    bytes.fill(9);
    expect(dram.adjoins(first, second) && dram.adjoins(second, third)).toBe(true);
    expect(dram.adjoins(first, third)).toBe(false);
    expect(Buffer.compare(dram.contents(first, 3), pages(1, 2, 3))).toBe(0);
    expect(Buffer.compare(dram.at(second)?.view(null) ?? pages(), pages(2))).toBe(0);
    expect(dram.at(second)).toBe(dram.at(second));
  });

  it('do not adjoin a frame that somebody has asked for: what he writes is seen', () => {
    const dram = new Dram(FIRST, 8);
    const [first, second] = store(dram, pages(1, 2));
    dram.at(second)?.viewForWrite(null).fill(7);
    expect(dram.known(first)).toBeUndefined();
    expect(dram.known(second)).toBe(dram.at(second));
    expect(dram.adjoins(first, second)).toBe(false);
    expect(Buffer.compare(dram.contents(second, 1), pages(7))).toBe(0);
  });

  it('are stored as a whole or not at all', () => {
    const dram = new Dram(FIRST, 2);
    expect(dram.store(pages(1, 2, 3))).toBeNull();
    expect(dram.used).toBe(0);
    expect(dram.store(pages(1, 2))).toHaveLength(2);
  });

  it('leave cells for the next ones, unless somebody may still hold them, and never for a frame that has to be zero', () => {
    const dram = new Dram(FIRST, 64);
    const [first, second, third] = store(dram, pages(1, 2, 3));
    const held = dram.at(second)?.view(null);
    for (const number of [first, second, third]) dram.release(number);
    expect(dram.used).toBe(0);
    expect(
      dram
        .allocate()
        ?.view(null)
        .every((byte) => byte === 0),
    ).toBe(true);
    const again = store(dram, pages(4, 5, 6));
    expect(again.map((number) => dram.contents(number, 1)[0])).toEqual([4, 5, 6]);
    expect(held?.every((byte) => byte === 2)).toBe(true);
  });

  it('a frame is freed once', () => {
    const dram = new Dram(FIRST, 4);
    const [number] = store(dram, pages(1));
    dram.release(number);
    expect(() => dram.release(number)).toThrow('freed twice');
    expect(() => dram.contents(number, 1)).toThrow('not in use');
    expect(dram.at(number)).toBeUndefined();
  });
});
