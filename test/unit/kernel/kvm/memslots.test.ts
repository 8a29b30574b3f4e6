import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { gfn, uva } from '../../../../server/hardware/units.js';
import { KmemOwner } from '../../../../server/kernel/kmem.js';
import { Memslot, Memslots } from '../../../../server/kernel/kvm/memslots.js';

const slotAt = (id: number, base: number, npages: number, kmem = new KmemOwner('test')): Memslot =>
  new Memslot({ id, baseGfn: gfn(base), npages, userspaceAddr: uva(0x10000 * id), flags: 0 }, kmem);

describe('memslots', () => {
  it('does not find what is not there', () => {
    const slots = new Memslots();
    expect(slots.find(gfn(0))).toBeUndefined();
    slots.add(slotAt(1, 10, 5));
    expect(slots.find(gfn(9))).toBeUndefined();
    expect(slots.find(gfn(15))).toBeUndefined();
  });

  it('finds no slot that is invalid, even right after a hit', () => {
    const slots = new Memslots();
    const slot = slotAt(1, 10, 5);
    slots.add(slot);
    expect(slots.find(gfn(12))).toBe(slot);
    slots.invalidate([slot]);
    expect(slots.find(gfn(12))).toBeUndefined();
    slots.remove(slot);
    slots.add(slot);
    expect(slots.find(gfn(12))).toBe(slot);
  });

  it('does not hold a slot against itself when it moves onto part of its own range', () => {
    const slots = new Memslots();
    slots.add(slotAt(1, 10, 5));
    expect(slots.overlaps(gfn(12), 5, 1)).toBe(false);
    expect(slots.overlaps(gfn(12), 5, 2)).toBe(true);
    expect(slots.overlaps(gfn(15), 5, 2)).toBe(false);
    expect(slots.overlaps(gfn(5), 5, 2)).toBe(false);
  });

  it('agrees with a search through all slots', () => {
    const ranges = fc.uniqueArray(fc.integer({ min: 0, max: 40 }), { maxLength: 20 });
    fc.assert(
      fc.property(ranges, fc.array(fc.integer({ min: 0, max: 20 })), (places, removals) => {
        const slots = new Memslots();
        const model = places.map((place, id) => slotAt(id, place * 10, 1 + ((place * 7) % 10)));
        for (const slot of model) slots.add(slot);
        for (const id of removals) {
          const at = model.findIndex((slot) => slot.id === id);
          const [slot] = at < 0 ? [] : model.splice(at, 1);
          if (slot !== undefined) slots.remove(slot);
        }
        for (let frame = 0; frame < 420; frame++)
          expect(slots.find(gfn(frame))).toBe(model.find((slot) => slot.contains(gfn(frame))));
        expect(slots.size).toBe(model.length);
      }),
      { numRuns: 50 },
    );
  });

  it('charges what the kernel allocates for a slot: reverse map and large-page info grow with its size', () => {
    const kmem = new KmemOwner('test');
    const slot = slotAt(0, 0, 262_144, kmem);
    expect(kmem.chargedByType.get('kvm_rmap_head')).toBe(262_144 * 8 + 512 * 8 + 8);
    expect(kmem.chargedByType.get('kvm_lpage_info')).toBe(512 * 4 + 8);
    expect(kmem.chargedByType.get('kvm_memory_slot')).toBe(512);
    slot.allocateDirtyBitmap();
    expect(kmem.chargedByType.get('dirty_bitmap')).toBe(2 * (262_144 / 8));
    slot.free();
    expect([kmem.chargedBytes, kmem.reachableBytes]).toEqual([0, 0]);
  });

  it('counts one more large page where a slot is moved across a border', () => {
    const kmem = new KmemOwner('test');
    const slot = slotAt(0, 0, 512, kmem);
    const before = kmem.chargedByType.get('kvm_rmap_head') ?? 0;
    slot.moveTo(gfn(256));
    expect(kmem.chargedByType.get('kvm_rmap_head')).toBe(before + 8);
  });
});
