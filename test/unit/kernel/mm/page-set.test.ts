import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { PageSet } from '../../../../server/kernel/mm/page-set.js';

/** Around the borders of chunks. */
const page = fc.oneof(fc.nat({ max: 80 }), fc.integer({ min: 4060, max: 4140 }), fc.integer({ min: 2 ** 34, max: 2 ** 34 + 70 }));
const step = fc.oneof(
  fc.record({ kind: fc.constant('add' as const), first: page, count: fc.nat({ max: 9000 }) }),
  fc.record({ kind: fc.constant('delete' as const), first: page, count: fc.constant(1) }),
);

describe('a set of pages', () => {
  it('is what a Set of their numbers is', () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 8 }), page, fc.nat({ max: 200 }), (steps, first, count) => {
        const set = new PageSet();
        const model = new Set<number>();
        for (const { kind, first: at, count: pages } of steps) {
          if (kind === 'delete') expect(set.delete(at)).toBe(model.delete(at));
          else set.addRange(at, at + pages);
          if (kind === 'add') for (let each = at; each < at + pages; each++) model.add(each);
        }
        expect(set.size).toBe(model.size);
        const within = [...model].filter((each) => each >= first && each < first + count);
        expect([...set.within(first, first + count)].sort((a, b) => a - b)).toEqual(within.sort((a, b) => a - b));
        expect(set.has(first)).toBe(model.has(first));
      }),
      { numRuns: 200 },
    );
  });

  it('may lose those that it is just telling of', () => {
    const set = new PageSet();
    set.addRange(10, 5000);
    for (const each of set.within(0, 6000)) set.delete(each);
    expect(set.size).toBe(0);
  });

  it('takes a range as large as an address space without a thought for each page', () => {
    const set = new PageSet();
    set.addRange(0, 2 ** 28);
    expect([set.size, set.has(2 ** 28 - 1), set.has(2 ** 28)]).toEqual([2 ** 28, true, false]);
  });
});
