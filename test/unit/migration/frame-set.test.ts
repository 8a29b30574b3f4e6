import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { FrameSet } from '../../../server/migration/frame-set.js';

const BASE = 0x100;
const COUNT = 200;
const frames = fc.array(fc.integer({ min: BASE, max: BASE + COUNT - 1 }), { maxLength: 100 });

const all = (set: FrameSet): number[] => {
  const found: number[] = [];
  for (let frame = set.next(BASE); frame !== null; frame = set.next(frame + 1)) found.push(frame);
  return found;
};

describe('a set of guest frames', () => {
  it('is what a set is, in ascending order', () => {
    fc.assert(
      fc.property(frames, frames, (added, deleted) => {
        const set = new FrameSet(BASE, COUNT);
        const model = new Set(added);
        for (const frame of added) set.add(frame);
        for (const frame of deleted) {
          set.delete(frame);
          model.delete(frame);
        }
        expect(all(set)).toEqual([...model].sort((a, b) => a - b));
        expect(set.size).toBe(model.size);
        const runs = [...set.runs()];
        expect(runs.flatMap(({ first, count }) => Array.from({ length: count }, (_, index) => first + index))).toEqual(all(set));
        // None could be longer.
        expect(runs.filter(({ first, count }) => set.has(first - 1) || set.has(first + count))).toEqual([]);
      }),
    );
  });

  it('has one run where it is full, up to the end of the slot', () => {
    const set = new FrameSet(BASE, COUNT);
    for (let frame = BASE; frame < BASE + COUNT; frame++) set.add(frame);
    expect([...set.runs()]).toEqual([{ first: BASE, count: COUNT }]);
  });

  it('finds the next one from anywhere, also from before and after the slot', () => {
    const set = new FrameSet(BASE, COUNT);
    set.add(BASE + 31);
    set.add(BASE + COUNT - 1);
    expect([0, BASE, BASE + 31, BASE + 32, BASE + COUNT].map((from) => set.next(from))).toEqual([
      BASE + 31,
      BASE + 31,
      BASE + 31,
      BASE + COUNT - 1,
      null,
    ]);
  });
});
