import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Dram } from '../../../../server/hardware/dram.js';
import { pfn } from '../../../../server/hardware/units.js';
import { Failure } from '../../../../server/kernel/failure.js';
import { AddressSpace } from '../../../../server/kernel/mm/address-space.js';
import { PageAllocator } from '../../../../server/kernel/mm/page.js';

const PAGE = 4096;
const FIRST = 16;
const PAGES = 64;
/** Enough for one write to be stored in one piece. */
const MANY = 24;

const must = <T>(result: T | Failure): T => {
  if (result instanceof Failure) throw new Error(`${result.errno} ${result.reason}`);
  return result;
};

const setUp = () => {
  const dram = new Dram(FIRST, 1024);
  const mm = new AddressSpace(new PageAllocator(dram));
  const protection = { read: true, write: true, execute: false };
  const at = must(mm.mmap({ length: PAGES * PAGE, protection, shared: false, object: null, offset: 0 }));
  const pageAt = (index: number): number => at + index * PAGE;
  const snapshotOf = (first: number, end: number) => must(mm.snapshot([{ start: pageAt(first), end: pageAt(end) }]));
  return { dram, mm, at, pageAt, snapshotOf };
};

const content = (pages: number, seed = 1): Uint8Array =>
  Uint8Array.from({ length: pages * PAGE }, (_, index) => (index + seed * (1 + Math.floor(index / PAGE))) % 251);

const taken = (snapshot: { take(address: number, out: Uint8Array): void }, address: number, pages: number): Uint8Array => {
  const out = new Uint8Array(pages * PAGE);
  snapshot.take(address, out);
  return out;
};

/** How many frames somebody has asked for. */
const known = (dram: Dram): number =>
  Array.from({ length: dram.total }, (_, index) => dram.known(pfn(FIRST + index))).filter((frame) => frame !== undefined).length;

describe('a snapshot of memory', () => {
  it('takes neither memory nor an object for any page, and gives what was there', () => {
    const { dram, mm, at, snapshotOf } = setUp();
    mm.write(at, content(MANY));
    const snapshot = snapshotOf(0, MANY);
    expect([dram.used, known(dram), snapshot.size]).toEqual([MANY, 0, MANY]);
    expect(Buffer.compare(taken(snapshot, at, MANY), content(MANY))).toBe(0);
    expect([known(dram), snapshot.size]).toEqual([0, 0]);
  });

  it('stays as it is when its process writes, which gets a copy of that page alone', () => {
    const { dram, mm, at, pageAt, snapshotOf } = setUp();
    mm.write(at, content(MANY));
    const snapshot = snapshotOf(0, MANY);
    mm.write(pageAt(3) + 7, Uint8Array.of(0xee));
    mm.write(pageAt(3) + 8, Uint8Array.of(0xee));
    expect(dram.used).toBe(MANY + 1);
    expect(Buffer.compare(taken(snapshot, at, MANY), content(MANY))).toBe(0);
    expect(mm.read(pageAt(3) + 7, 2)).toEqual(Uint8Array.of(0xee, 0xee));
    expect(dram.used).toBe(MANY);
  });

  it('stays when its process unmaps its memory, puts other memory there, and ends', () => {
    const { dram, mm, at, snapshotOf } = setUp();
    mm.write(at, content(MANY));
    const snapshot = snapshotOf(0, MANY);
    mm.dontNeed(at, MANY * PAGE);
    mm.write(at, content(MANY, 5));
    expect(Buffer.compare(taken(snapshot, at, 2), content(2))).toBe(0);
    mm.exit();
    expect([dram.used, known(dram)]).toEqual([MANY - 2, 0]);
    expect(Buffer.compare(taken(snapshot, at + 2 * PAGE, MANY - 2), content(MANY).subarray(2 * PAGE))).toBe(0);
    expect(dram.used).toBe(0);
  });

  it('leaves pages that are written in place once nobody wants them any more', () => {
    const { dram, mm, at, pageAt, snapshotOf } = setUp();
    mm.write(at, content(MANY));
    const snapshot = snapshotOf(0, MANY);
    taken(snapshot, at, 1);
    mm.write(at, Uint8Array.of(9));
    expect(dram.used).toBe(MANY);
    mm.write(pageAt(1), Uint8Array.of(9));
    expect(dram.used).toBe(MANY + 1);
    snapshot.release();
    mm.write(pageAt(2), Uint8Array.of(9));
    expect([dram.used, snapshot.size]).toEqual([MANY, 0]);
  });

  it('has zeros where nobody has been', () => {
    const { dram, at, snapshotOf } = setUp();
    expect(taken(snapshotOf(0, 2), at, 2)).toEqual(new Uint8Array(2 * PAGE));
    expect(dram.used).toBe(2);
  });

  it('is of what can be read, or is not taken at all', () => {
    const { dram, mm, at, pageAt } = setUp();
    mm.write(at, content(MANY));
    const whole = { start: at, end: pageAt(2) };
    expect(mm.snapshot([whole, { start: pageAt(PAGES - 1), end: pageAt(PAGES + 1) }])).toMatchObject({ errno: 'EFAULT' });
    mm.mprotect(pageAt(4), PAGE, { read: false, write: false, execute: false });
    expect(mm.snapshot([whole, { start: pageAt(3), end: pageAt(6) }])).toMatchObject({ errno: 'EFAULT' });
    mm.exit();
    expect(dram.used).toBe(0);
  });

  it('is what it was, whoever does what with the memory of the process or of its children', () => {
    const range = fc.record({ first: fc.nat(PAGES - 1), count: fc.integer({ min: 1, max: 40 }), seed: fc.nat(9) });
    const action = fc.oneof(
      range.map((where) => ({ kind: 'write' as const, ...where })),
      range.map((where) => ({ kind: 'forget' as const, ...where })),
      range.map((where) => ({ kind: 'touch' as const, ...where })),
      range.map((where) => ({ kind: 'snapshot' as const, ...where })),
      range.map((where) => ({ kind: 'take' as const, ...where })),
      range.map((where) => ({ kind: 'fork' as const, ...where })),
    );
    fc.assert(
      fc.property(fc.array(action, { maxLength: 30 }), (actions) => {
        const { dram, mm, at, pageAt, snapshotOf } = setUp();
        const snapshots: { readonly first: number; end: number; left: Uint8Array; snapshot: ReturnType<typeof snapshotOf> }[] =
          [];
        const children: AddressSpace[] = [];
        for (const { kind, first, count, seed } of actions) {
          const end = Math.min(PAGES, first + count);
          const writer = children[seed] ?? mm;
          if (kind === 'write') writer.write(pageAt(first) + seed, content(end - first, seed).subarray(seed));
          else if (kind === 'forget') writer.dontNeed(pageAt(first), (end - first) * PAGE);
          else if (kind === 'touch') writer.fault(pageAt(first), seed % 2 === 0);
          else if (kind === 'fork') children.push(must(mm.fork()));
          else if (kind === 'snapshot') {
            const left = must(mm.read(pageAt(first), (end - first) * PAGE));
            snapshots.push({ first, end, left, snapshot: snapshotOf(first, end) });
          } else {
            const chosen = snapshots[seed % Math.max(1, snapshots.length)];
            if (chosen === undefined || chosen.left.length === 0) continue;
            const pages = Math.min(count, chosen.left.length / PAGE);
            const out = taken(chosen.snapshot, pageAt(chosen.end) - chosen.left.length, pages);
            expect(Buffer.compare(out, chosen.left.subarray(0, pages * PAGE))).toBe(0);
            chosen.left = chosen.left.subarray(pages * PAGE);
          }
        }
        mm.munmap(at, PAGES * PAGE);
        for (const { end, left, snapshot } of snapshots) {
          expect(snapshot.size).toBe(left.length / PAGE);
          const half = (left.length / PAGE) >> 1;
          const out = taken(snapshot, pageAt(end) - left.length, half);
          expect(Buffer.compare(out, left.subarray(0, half * PAGE))).toBe(0);
          snapshot.release();
        }
        for (const each of [mm, ...children]) each.exit();
        expect(dram.used).toBe(0);
      }),
      { numRuns: 200 },
    );
  });
});
