import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { gfn } from '../../../../server/hardware/units.js';
import { KmemOwner } from '../../../../server/kernel/kmem.js';
import { MemoryAttributes } from '../../../../server/kernel/kvm/memory-attributes.js';

const NODE = 576;

describe('memory attributes', () => {
  it('starts with everything shared and nothing charged', () => {
    const kmem = new KmemOwner('test');
    const attributes = new MemoryAttributes(kmem);
    expect(attributes.isPrivate(gfn(0))).toBe(false);
    expect(attributes.allAre(false, gfn(0), gfn(1000))).toBe(true);
    expect(kmem.chargedBytes).toBe(0);
  });

  it('is charged for the nodes of an xarray with an entry for each private frame', () => {
    const kmem = new KmemOwner('test');
    const attributes = new MemoryAttributes(kmem);
    attributes.set(true, gfn(0), gfn(64));
    expect(kmem.chargedBytes).toBe(NODE);
    // Frame 64 needs a second leaf and a level above both.
    attributes.set(true, gfn(64), gfn(65));
    expect(kmem.chargedBytes).toBe(3 * NODE);
    attributes.set(false, gfn(0), gfn(65));
    expect(kmem.chargedBytes).toBe(0);
    attributes.free();
    expect(kmem.chargedBytes).toBe(0);
  });

  it('behaves as one bit for each frame', () => {
    const operation = fc.tuple(fc.boolean(), fc.integer({ min: 0, max: 60 }), fc.integer({ min: 1, max: 20 }));
    fc.assert(
      fc.property(
        fc.array(operation, { maxLength: 20 }),
        fc.integer({ min: 0, max: 70 }),
        fc.integer({ min: 1, max: 20 }),
        (ops, at, n) => {
          const attributes = new MemoryAttributes(new KmemOwner('test'));
          const model = new Set<number>();
          for (const [priv, first, count] of ops) {
            attributes.set(priv, gfn(first), gfn(first + count));
            for (let frame = first; frame < first + count; frame++) {
              if (priv) model.add(frame);
              else model.delete(frame);
            }
          }
          for (let frame = 0; frame < 90; frame++) expect(attributes.isPrivate(gfn(frame))).toBe(model.has(frame));
          const range = Array.from({ length: n }, (_, index) => model.has(at + index));
          expect(attributes.allAre(true, gfn(at), gfn(at + n))).toBe(range.every((priv) => priv));
          expect(attributes.allAre(false, gfn(at), gfn(at + n))).toBe(range.every((priv) => !priv));
        },
      ),
    );
  });
});
