import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Dram } from '../../../../server/hardware/dram.js';
import { pfn } from '../../../../server/hardware/units.js';
import { Failure } from '../../../../server/kernel/failure.js';
import { AddressSpace } from '../../../../server/kernel/mm/address-space.js';
import { PageAllocator } from '../../../../server/kernel/mm/page.js';
import type { Protection } from '../../../../server/kernel/mm/vma.js';

const PAGE = 4096;
const FIRST = 16;
/** Enough for one write to be stored in one piece. */
const MANY = 24;
const RW: Protection = { read: true, write: true, execute: false };

const must = <T>(result: T | Failure): T => {
  if (result instanceof Failure) throw new Error(`${result.errno} ${result.reason}`);
  return result;
};

const setUp = (frames = 1024) => {
  const dram = new Dram(FIRST, frames);
  const pages = new PageAllocator(dram);
  const freed: number[] = [];
  pages.onFree = ({ pfn }) => void freed.push(pfn);
  const mm = new AddressSpace(pages);
  const at = must(mm.mmap({ length: 64 * PAGE, protection: RW, shared: false, object: null, offset: 0 }));
  return { dram, pages, mm, at, freed };
};

const content = (count: number, seed = 1): Uint8Array =>
  Uint8Array.from({ length: count * PAGE }, (_, index) => (index + seed * Math.floor(index / PAGE)) % 251);

/** How many frames somebody has asked for. */
const known = (dram: Dram): number =>
  Array.from({ length: dram.total }, (_, index) => dram.known(pfn(FIRST + index))).filter((frame) => frame !== undefined).length;

describe('pages that are written together', () => {
  it('are present and in use, and read back, without an object for any', () => {
    const { dram, mm, at } = setUp();
    expect(mm.write(at, content(MANY))).toBeNull();
    expect([dram.used, mm.usage.present, known(dram)]).toEqual([MANY, MANY, 0]);
    expect(Buffer.compare(must(mm.read(at, MANY * PAGE)), content(MANY))).toBe(0);
    expect(known(dram)).toBe(0);
    expect([...mm.touchedPages(at, at + 64 * PAGE)]).toEqual([{ first: at / PAGE, count: MANY }]);
  });

  it('become pages one by one, when somebody touches them, with what is in them', () => {
    const { dram, mm, at } = setUp();
    mm.write(at, content(MANY));
    const page = must(mm.fault(at + 5 * PAGE, true));
    expect(must(mm.fault(at + 5 * PAGE, false))).toBe(page);
    page.frame.viewForWrite(null).fill(0xee, 0, 16);
    expect(known(dram)).toBe(1);
    const expected = content(MANY);
    expected.fill(0xee, 5 * PAGE, 5 * PAGE + 16);
    expect(Buffer.compare(must(mm.read(at, MANY * PAGE)), expected)).toBe(0);
  });

  it('are told to nobody when they are freed, but those that somebody has known', () => {
    const { dram, mm, at, freed } = setUp();
    mm.write(at, content(MANY));
    const { frame } = must(mm.fault(at + 5 * PAGE, false));
    const bus = must(mm.fault(at + 7 * PAGE, false)).frame.pfn;
    mm.munmap(at, 64 * PAGE);
    expect([dram.used, mm.usage.present]).toEqual([0, 0]);
    expect(freed).toEqual([frame.pfn, bus]);
  });

  it('are shared with a child until one side writes', () => {
    const { dram, mm, at } = setUp();
    mm.write(at, content(MANY));
    const child = must(mm.fork());
    expect(dram.used).toBe(MANY);
    child.write(at, Uint8Array.of(0xee));
    expect(must(mm.read(at, 1))).toEqual(content(1).slice(0, 1));
    expect(must(child.read(at, 2))).toEqual(Uint8Array.of(0xee, content(1)[1]));
    expect(dram.used).toBe(MANY + 1);
    mm.exit();
    child.exit();
    expect(dram.used).toBe(0);
  });

  it('can be read no more where the process may not read', () => {
    const { mm, at } = setUp();
    mm.write(at, content(MANY));
    mm.mprotect(at + 3 * PAGE, PAGE, { read: false, write: false, execute: false });
    expect(mm.read(at, MANY * PAGE)).toMatchObject({ errno: 'EFAULT' });
    expect(Buffer.compare(must(mm.read(at, 3 * PAGE)), content(3))).toBe(0);
  });

  it('are as many as there is memory for', () => {
    const { mm, at } = setUp(20);
    expect(mm.write(at, content(MANY))).toMatchObject({ errno: 'ENOMEM' });
    expect(Buffer.compare(must(mm.read(at, 20 * PAGE)), content(MANY).subarray(0, 20 * PAGE))).toBe(0);
  });

  it('are, for whoever reads and writes, what pages are that are written one by one', () => {
    const action = fc.oneof(
      fc.record({
        kind: fc.constant('write' as const),
        first: fc.nat(47),
        count: fc.integer({ min: 1, max: 40 }),
        seed: fc.nat(9),
      }),
      fc.record({ kind: fc.constant('touch' as const), first: fc.nat(63), count: fc.constant(1), seed: fc.nat(9) }),
      fc.record({
        kind: fc.constant('forget' as const),
        first: fc.nat(47),
        count: fc.integer({ min: 1, max: 40 }),
        seed: fc.nat(9),
      }),
    );
    fc.assert(
      fc.property(fc.array(action, { maxLength: 12 }), (actions) => {
        const { dram, mm, at } = setUp();
        const model = new Uint8Array(64 * PAGE);
        for (const { kind, first, count, seed } of actions) {
          const [start, pages] = [first * PAGE, Math.min(count, 64 - first)];
          if (kind === 'write') {
            const bytes = content(pages, seed);
            expect(mm.write(at + start, bytes)).toBeNull();
            model.set(bytes, start);
          } else if (kind === 'touch') {
            must(mm.fault(at + start, true)).frame.viewForWrite(null)[seed] = seed;
            model[start + seed] = seed;
          } else {
            expect(mm.dontNeed(at + start, pages * PAGE)).toBeNull();
            model.fill(0, start, start + pages * PAGE);
          }
        }
        expect(Buffer.compare(must(mm.read(at, 64 * PAGE)), model)).toBe(0);
        mm.exit();
        expect(dram.used).toBe(0);
      }),
    );
  });
});
