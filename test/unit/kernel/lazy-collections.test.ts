import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { LazyMap } from '../../../server/kernel/lazy-map.js';
import { LazySet } from '../../../server/kernel/lazy-set.js';

const step = fc.record({ what: fc.constantFrom('add', 'delete', 'clear'), key: fc.integer({ min: 0, max: 4 }) });
const steps = fc.array(step, { maxLength: 30 });

describe('collections whose table is made when it is needed', () => {
  it('are sets as any other', () => {
    fc.assert(
      fc.property(steps, (all) => {
        const [lazy, plain] = [new LazySet<number>(), new Set<number>()];
        for (const { what, key } of all) {
          if (what === 'delete') expect(lazy.delete(key)).toBe(plain.delete(key));
          else if (what === 'add') for (const set of [lazy, plain]) set.add(key);
          else for (const set of [lazy, plain]) set.clear();
          expect([[...lazy], lazy.size, lazy.has(key)]).toEqual([[...plain], plain.size, plain.has(key)]);
        }
      }),
    );
  });

  it('are maps as any other', () => {
    fc.assert(
      fc.property(steps, (all) => {
        const [lazy, plain] = [new LazyMap<number, string>(), new Map<number, string>()];
        for (const [index, { what, key }] of all.entries()) {
          for (const map of [lazy, plain]) {
            if (what === 'delete') map.delete(key);
            else if (what === 'add') map.set(key, `${index}`);
            else map.clear();
          }
          expect([[...lazy], [...lazy.values()], lazy.get(key), lazy.has(key)]).toEqual([
            [...plain],
            [...plain.values()],
            plain.get(key),
            plain.has(key),
          ]);
        }
      }),
    );
  });
});
