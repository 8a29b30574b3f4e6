import { describe, expect, it } from 'vitest';
import { Dram } from '../../../../server/hardware/dram.js';
import { Failure } from '../../../../server/kernel/failure.js';
import { AddressSpace } from '../../../../server/kernel/mm/address-space.js';
import { ShmemObject } from '../../../../server/kernel/mm/memory-object.js';
import type { MmuNotifierEvent } from '../../../../server/kernel/mm/mmu-notifier.js';
import { PageAllocator } from '../../../../server/kernel/mm/page.js';
import type { Protection } from '../../../../server/kernel/mm/vma.js';

const PAGE = 4096;
const RW: Protection = { read: true, write: true, execute: false };
const RO: Protection = { read: true, write: false, execute: false };

const must = <T>(result: T | Failure): T => {
  if (result instanceof Failure) throw new Error(`${result.errno} ${result.reason}`);
  return result;
};

const setUp = (frames = 1024) => {
  const dram = new Dram(16, frames);
  const pages = new PageAllocator(dram);
  const mm = new AddressSpace(pages);
  const events: [number, number, MmuNotifierEvent][] = [];
  mm.registerNotifier({ invalidateRange: (start, end, event) => events.push([start, end, event]) });
  const anonymous = (length: number, shared = false, fixedAddress?: number) => {
    const object = shared ? new ShmemObject(length, pages) : null;
    const at = must(
      mm.mmap({ length, protection: RW, shared, object, offset: 0, ...(fixedAddress === undefined ? {} : { fixedAddress }) }),
    );
    object?.release();
    return at;
  };
  return { dram, pages, mm, events, anonymous };
};

describe('an address space', () => {
  it('gives zeroed memory that reads back what was written, across pages', () => {
    const { mm, anonymous } = setUp();
    const at = anonymous(3 * PAGE);
    expect(must(mm.read(at, 8))).toEqual(new Uint8Array(8));
    const data = Uint8Array.from({ length: PAGE + 10 }, (_, index) => index % 251);
    expect(mm.write(at + PAGE - 5, data)).toBeNull();
    expect(must(mm.read(at + PAGE - 5, data.length))).toEqual(data);
  });

  it('allocates a frame only when a page is touched, and frees it with munmap', () => {
    const { dram, mm, anonymous } = setUp();
    const at = anonymous(64 * PAGE);
    expect(dram.used).toBe(0);
    mm.write(at + 5 * PAGE, Uint8Array.of(1));
    expect(dram.used).toBe(1);
    expect(mm.munmap(at, 64 * PAGE)).toBeNull();
    expect(dram.used).toBe(0);
  });

  it('EFAULT outside of every mapping, in a hole that munmap made, and for a write to a read-only page', () => {
    const { mm, anonymous } = setUp();
    const at = anonymous(3 * PAGE);
    mm.munmap(at + PAGE, PAGE);
    expect(mm.read(at + PAGE, 1)).toMatchObject({ errno: 'EFAULT' });
    expect(must(mm.read(at + 2 * PAGE, 1))).toEqual(new Uint8Array(1));
    expect(mm.mprotect(at, PAGE, RO)).toBeNull();
    expect(mm.write(at, Uint8Array.of(1))).toMatchObject({ errno: 'EFAULT' });
    expect(mm.copyIn(2n ** 64n - 1n, 8)).toMatchObject({ errno: 'EFAULT' });
  });

  it('mprotect over a hole is ENOMEM and changes what comes before it', () => {
    const { mm, anonymous } = setUp();
    const at = anonymous(3 * PAGE);
    mm.munmap(at + PAGE, PAGE);
    expect(mm.mprotect(at, 3 * PAGE, RO)).toMatchObject({ errno: 'ENOMEM' });
    expect(mm.write(at, Uint8Array.of(1))).toMatchObject({ errno: 'EFAULT' });
    expect(mm.write(at + 2 * PAGE, Uint8Array.of(1))).toBeNull();
  });

  it('a fixed mapping replaces what was there', () => {
    const { mm, anonymous } = setUp();
    const at = anonymous(2 * PAGE);
    mm.write(at, Uint8Array.of(7));
    anonymous(PAGE, false, at);
    expect(must(mm.read(at, 1))).toEqual(Uint8Array.of(0));
  });

  it('two mappings of one object see the same bytes; a hole punched in it reads as zero in both', () => {
    const { mm, pages, dram } = setUp();
    const object = new ShmemObject(4 * PAGE, pages);
    const map = () => must(mm.mmap({ length: 4 * PAGE, protection: RW, shared: true, object, offset: 0 }));
    const [one, two] = [map(), map()];
    mm.write(one + 100, Uint8Array.of(1, 2, 3));
    expect(must(mm.read(two + 100, 3))).toEqual(Uint8Array.of(1, 2, 3));
    object.punch(0, 1);
    expect(must(mm.read(two + 100, 3))).toEqual(new Uint8Array(3));
    mm.exit();
    object.release();
    expect(dram.used).toBe(0);
  });

  it('a touch past the end of an object is EFAULT (SIGBUS)', () => {
    const { mm, pages } = setUp();
    const object = new ShmemObject(PAGE, pages);
    const at = must(mm.mmap({ length: 2 * PAGE, protection: RW, shared: true, object, offset: 0 }));
    expect(mm.read(at + PAGE, 1)).toMatchObject({ errno: 'EFAULT', reason: 'SIGBUS' });
  });

  it('a private file mapping copies on write', () => {
    const { mm, pages } = setUp();
    const object = new ShmemObject(PAGE, pages);
    const shared = must(mm.mmap({ length: PAGE, protection: RW, shared: true, object, offset: 0 }));
    const copy = must(mm.mmap({ length: PAGE, protection: RW, shared: false, object, offset: 0 }));
    mm.write(shared, Uint8Array.of(1));
    expect(must(mm.read(copy, 1))).toEqual(Uint8Array.of(1));
    mm.write(copy, Uint8Array.of(2));
    expect(must(mm.read(shared, 1))).toEqual(Uint8Array.of(1));
    expect(must(mm.read(copy, 1))).toEqual(Uint8Array.of(2));
  });

  it('fork: private memory is copied on write, shared memory is shared, pinned pages are copied at once', () => {
    const { mm, anonymous, dram } = setUp();
    const own = anonymous(PAGE);
    const common = anonymous(PAGE, true);
    const pinned = anonymous(PAGE);
    mm.write(own, Uint8Array.of(1));
    const pin = must(mm.pin(pinned, true));
    const child = must(mm.fork());
    mm.write(own, Uint8Array.of(2));
    mm.write(common, Uint8Array.of(3));
    expect(must(child.read(own, 1))).toEqual(Uint8Array.of(1));
    expect(must(child.read(common, 1))).toEqual(Uint8Array.of(3));
    expect(must(mm.fault(pinned, true))).toBe(pin);
    expect(must(child.fault(pinned, false))).not.toBe(pin);
    child.exit();
    AddressSpace.unpin(pin);
    mm.exit();
    expect(dram.used).toBe(0);
  });

  it('tells its notifiers before a translation changes', () => {
    const { mm, anonymous, events } = setUp();
    const at = anonymous(2 * PAGE);
    mm.mprotect(at, PAGE, RO);
    mm.munmap(at + PAGE, PAGE);
    mm.dontNeed(at, PAGE);
    mm.exit();
    expect(events.map(([, , event]) => event)).toEqual(['protection', 'unmap', 'clear', 'release']);
    expect(events[1]).toEqual([at + PAGE, at + 2 * PAGE, 'unmap']);
  });

  it('ENOMEM when the host has no frame left', () => {
    const { mm, anonymous } = setUp(2);
    const at = anonymous(3 * PAGE);
    expect(mm.write(at, new Uint8Array(3 * PAGE))).toMatchObject({ errno: 'ENOMEM' });
  });
});
