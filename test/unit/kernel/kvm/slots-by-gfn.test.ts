import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Gfn, gfn } from '../../../../server/hardware/units.js';
import { type FrameRange, SlotsByGfn } from '../../../../server/kernel/kvm/slots-by-gfn.js';

const rangeAt = (place: number): FrameRange => ({ baseGfn: gfn(place * 10), endGfn: gfn(place * 10 + 1 + ((place * 7) % 10)) });

/** What a walk through all of them finds. */
const firstEndingAbove = (ranges: readonly FrameRange[], frame: Gfn): FrameRange | undefined =>
  ranges.find(({ endGfn }) => endGfn > frame);

const PLACES = 1000;
const places = fc.uniqueArray(fc.nat({ max: PLACES - 1 }), { minLength: 300, maxLength: 600 });

describe('slots by guest frame', () => {
  it('are found in an empty set nowhere', () => {
    expect(new SlotsByGfn().firstEndingAbove(gfn(0))).toBeUndefined();
  });

  it('agree with a walk through all of them, in whatever order they came and went', () => {
    fc.assert(
      fc.property(places, fc.nat({ max: 3 }), (order, keepEvery) => {
        const slots = new SlotsByGfn<FrameRange>();
        const all = order.map(rangeAt);
        for (const range of all) slots.add(range);
        const kept = all.filter((range, index) => {
          const stays = keepEvery !== 0 && index % keepEvery === 0;
          if (!stays) slots.remove(range);
          return stays;
        });
        kept.sort((a, b) => a.baseGfn - b.baseGfn);
        expect([...slots]).toEqual(kept);
        for (let frame = 0; frame < PLACES * 10; frame += 37)
          expect(slots.firstEndingAbove(gfn(frame))).toBe(firstEndingAbove(kept, gfn(frame)));
      }),
      { numRuns: 20 },
    );
  });

  it('are not taken out twice', () => {
    const slots = new SlotsByGfn<FrameRange>();
    const range = rangeAt(3);
    slots.add(range);
    slots.remove(range);
    expect(() => slots.remove(range)).toThrow('guest frame 30');
  });
});
