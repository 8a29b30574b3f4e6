import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { gfn, PAGE_SIZE, uva } from '../../../server/hardware/units.js';
import { KmemOwner } from '../../../server/kernel/kmem.js';
import { Memslot, Memslots } from '../../../server/kernel/kvm/memslots.js';
import { Aliases } from '../../../server/migration/aliases.js';

/** Frames of guest memory between the first frames of two slots. */
const APART = 100;

/** Slots that are windows into one mapping of the process, `page` being their first page of it. */
const windows = fc.array(fc.record({ page: fc.nat(30), npages: fc.integer({ min: 1, max: 20 }) }), { maxLength: 5 });

describe('frames that show the same memory', () => {
  it('are known by the first of them, however their slots overlap', () => {
    fc.assert(
      fc.property(windows, (shapes) => {
        const slots = new Memslots();
        const frames = new Map<number, number>();
        for (const [id, { page, npages }] of shapes.entries()) {
          const at = { baseGfn: gfn(id * APART), npages, userspaceAddr: uva(page * PAGE_SIZE) };
          slots.add(new Memslot({ id, ...at, flags: 0 }, new KmemOwner('test')));
          for (let index = 0; index < npages; index++) frames.set(id * APART + index, page + index);
        }
        const aliases = new Aliases(slots);
        for (const [frame, page] of frames) {
          const same = [...frames].filter(([, other]) => other === page).map(([other]) => other);
          expect(aliases.firstOf(frame)).toBe(Math.min(...same));
        }
      }),
      { numRuns: 500 },
    );
  });
});
