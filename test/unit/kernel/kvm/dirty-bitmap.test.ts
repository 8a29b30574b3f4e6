import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { DirtyBitmap } from '../../../../server/kernel/kvm/dirty-bitmap.js';

describe('dirty bitmap', () => {
  it('is as long as userspace expects: whole 64-bit words', () => {
    expect(new DirtyBitmap(1).bytes).toBe(8);
    expect(new DirtyBitmap(64).bytes).toBe(8);
    expect(new DirtyBitmap(65).bytes).toBe(16);
  });

  it('sets exactly the pages of the slot, and none behind them', () => {
    const bitmap = new DirtyBitmap(32_768 + 13);
    bitmap.setAll();
    expect([...bitmap.pages(0, 40_000)]).toHaveLength(32_768 + 13);
    expect(bitmap.test(32_768 + 12)).toBe(true);
    expect(bitmap.test(32_768 + 13)).toBe(false);
  });

  it('behaves as a set of page numbers, and reads as little-endian bits', () => {
    const page = fc.integer({ min: 0, max: 70_000 });
    fc.assert(
      fc.property(fc.array(page), fc.array(page), page, fc.integer({ min: 0, max: 70_000 }), (set, cleared, first, length) => {
        const bitmap = new DirtyBitmap(70_001);
        const model = new Set(set);
        for (const each of set) bitmap.set(each);
        for (const each of cleared) {
          bitmap.clear(each);
          model.delete(each);
        }
        const range = [...model].filter((each) => each >= first && each < first + length).sort((a, b) => a - b);
        expect([...bitmap.pages(first, first + length)]).toEqual(range);
        const bytes = bitmap.read(0, bitmap.bytes);
        for (const each of [...set, ...cleared]) {
          expect(bitmap.test(each)).toBe(model.has(each));
          expect(((bytes[each >>> 3] ?? 0) >>> (each & 7)) & 1).toBe(model.has(each) ? 1 : 0);
        }
      }),
      { numRuns: 50 },
    );
  });
});
