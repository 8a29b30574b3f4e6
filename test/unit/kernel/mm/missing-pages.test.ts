import { beforeEach, describe, expect, it } from 'vitest';
import { failed } from '../../../../server/kernel/failure.js';
import { AddressSpace } from '../../../../server/kernel/mm/address-space.js';
import { MissingPages } from '../../../../server/kernel/mm/missing-pages.js';
import { stepsOf } from '../../../../server/kernel/sched/wait.js';
import { madvise, munmap, readMemory, writeMemory } from '../../../../server/kernel/syscalls/memory.js';
import { MADV } from '../../../../server/kernel/uapi/mman.js';
import { atOnce, createTestProcess, errnoOf } from '../run-task.js';

const PAGE = 4096;
const PAGES = 4;
const SIGUSR1 = 10;
const CONTENT = 0x5a;

let test: ReturnType<typeof createTestProcess>;
let mm: AddressSpace;
let start: number;
let missing: MissingPages;
let wanted: number[];
let whole: number;

const pageAt = (index: number): number => start + index * PAGE;
const protection = { read: true, write: true, execute: false };
const contents = (byte = CONTENT): Uint8Array => new Uint8Array(PAGE).fill(byte);

beforeEach(() => {
  test = createTestProcess();
  if (test.process.mm === null) throw new Error('a process without memory');
  mm = test.process.mm;
  const mapped = mm.mmap({
    length: PAGES * PAGE,
    protection,
    shared: false,
    object: null,
    offset: 0,
  });
  if (failed(mapped)) throw new Error(mapped.reason);
  start = mapped;
  mm.write(start, new Uint8Array(PAGES * PAGE).fill(1));
  wanted = [];
  whole = 0;
  missing = new MissingPages({ wanted: (addresses) => wanted.push(...addresses), whole: () => whole++ });
  mm.expect(missing, pageAt(1), pageAt(3));
});

const startLoad = (address: number, length: number) =>
  test.start((current) => stepsOf(readMemory(current, BigInt(address), length)));

describe('a page that is missing', () => {
  it('has nothing of what was there before, and takes no memory', () => {
    expect(mm.usage.present).toBe(2);
    expect(missing.size).toBe(2);
  });

  it('is asked for once, whoever touches it, and everybody goes on when it has come', () => {
    const [first, second] = [startLoad(pageAt(1), 2), startLoad(pageAt(1) + 5, 1)];
    expect([first.result, second.result]).toEqual([undefined, undefined]);
    expect(wanted).toEqual([pageAt(1)]);
    mm.fill(missing, pageAt(1), contents());
    test.scheduler.run();
    expect([first.result, second.result]).toEqual([Uint8Array.of(CONTENT, CONTENT), Uint8Array.of(CONTENT)]);
  });

  it('does not hold up other pages, nor those who touch them', () => {
    startLoad(pageAt(1), 1);
    expect(test.call((current) => stepsOf(readMemory(current, BigInt(pageAt(0)), 1)))).toEqual(Uint8Array.of(1));
  });

  it('is asked for together with the others that a load is going to touch', () => {
    const running = startLoad(pageAt(0), PAGES * PAGE);
    expect(wanted).toEqual([pageAt(1), pageAt(2)]);
    mm.fill(missing, pageAt(2), contents(2));
    test.scheduler.run();
    expect(running.result).toBeUndefined();
    mm.fill(missing, pageAt(1), contents(1));
    test.scheduler.run();
    expect(running.result).toEqual(new Uint8Array(PAGES * PAGE).fill(1).fill(2, 2 * PAGE, 3 * PAGE));
    expect(whole).toBe(1);
  });

  it('lets a signal end the wait', () => {
    const running = startLoad(pageAt(1), 1);
    test.process.signal(SIGUSR1);
    test.scheduler.run();
    expect(errnoOf(running.result)).toBe('EINTR');
  });

  it('keeps what is written to it meanwhile, over the contents that come', () => {
    expect(test.call(atOnce((current) => writeMemory(current, BigInt(pageAt(1) + 8), Uint8Array.of(7, 8)) ?? 0))).toBe(0);
    expect(test.call(atOnce((current) => writeMemory(current, BigInt(pageAt(1) + 9), Uint8Array.of(9)) ?? 0))).toBe(0);
    mm.fill(missing, pageAt(1), contents());
    expect(mm.read(pageAt(1) + 7, 4)).toEqual(Uint8Array.of(CONTENT, 7, 9, CONTENT));
  });

  it('takes a write across its border on both sides', () => {
    mm.write(pageAt(1) - 1, Uint8Array.of(3, 4));
    mm.fill(missing, pageAt(1), contents());
    expect(mm.read(pageAt(1) - 1, 3)).toEqual(Uint8Array.of(3, 4, CONTENT));
  });

  it('is not overwritten by contents that come a second time', () => {
    mm.fill(missing, pageAt(1), contents());
    mm.write(pageAt(1), Uint8Array.of(9));
    mm.fill(missing, pageAt(1), contents());
    expect(mm.read(pageAt(1), 1)).toEqual(Uint8Array.of(9));
  });

  it('has a copy of the bytes that come', () => {
    const bytes = contents();
    mm.fill(missing, pageAt(1), bytes);
    const [first] = bytes;
    bytes[0] = 3;
    expect(mm.read(pageAt(1), 1)).toEqual(Uint8Array.of(first));
  });

  it('is not missing any more once it is unmapped, and nobody waits for it', () => {
    const running = startLoad(pageAt(1), 1);
    test.call(atOnce((current) => munmap(current, BigInt(pageAt(1)), BigInt(PAGE))));
    test.scheduler.run();
    expect(errnoOf(running.result)).toBe('EFAULT');
    expect([missing.size, whole]).toEqual([1, 0]);
    expect(mm.fill(missing, pageAt(1), contents())).toBeNull();
    expect(mm.overlaps(pageAt(1), pageAt(2))).toBe(false);
  });

  it('reads as zero once it has been given up with MADV_DONTNEED, also for who waits', () => {
    const running = startLoad(pageAt(2), 1);
    test.call(atOnce((current) => madvise(current, BigInt(start), BigInt(PAGES * PAGE), MADV.DONTNEED)));
    test.scheduler.run();
    expect(running.result).toEqual(Uint8Array.of(0));
    expect([missing.size, whole]).toEqual([0, 1]);
  });

  it('is there for a process that forks only when it has come', () => {
    expect(errnoOf(mm.fork())).toBe('EAGAIN');
    mm.fill(missing, pageAt(1), contents());
    mm.fill(missing, pageAt(2), contents());
    const child = mm.fork();
    expect(child).toBeInstanceOf(AddressSpace);
    if (!failed(child)) child.exit();
  });

  it('is given up by a process that exits, with everybody who waits', () => {
    const running = startLoad(pageAt(1), 1);
    mm.exit();
    test.scheduler.run();
    expect(errnoOf(running.result)).toBe('EFAULT');
    expect(whole).toBe(1);
    expect(test.dram.used).toBe(0);
  });

  it('has to be mapped', () => {
    expect(errnoOf(mm.expect(missing, pageAt(0), pageAt(PAGES + 1)))).toBe('ENOMEM');
    expect(missing.size).toBe(2);
    expect(mm.read(pageAt(0), 1)).toEqual(Uint8Array.of(1));
  });

  it('may be touched only where the process may touch it', () => {
    mm.mprotect(pageAt(1), PAGE, { read: false, write: false, execute: false });
    expect(errnoOf(startLoad(pageAt(1), 1).result)).toBe('EFAULT');
    expect(wanted).toEqual([]);
  });
});

describe('memory for pages that are missing', () => {
  const FRAMES = 1024;

  /** Everything that is free goes to others. */
  const takeTheRest = (): number => {
    let taken = 0;
    while (test.dram.allocate() !== null) taken++;
    return taken;
  };

  it('is theirs, whoever else wants some: what comes finds room', () => {
    expect(test.dram.reserved).toBe(2);
    expect(takeTheRest()).toBe(FRAMES - 4);
    expect(mm.fill(missing, pageAt(1), contents())).toBeNull();
    expect(mm.fill(missing, pageAt(2), contents())).toBeNull();
    expect(mm.read(pageAt(1), 1)).toEqual(Uint8Array.of(CONTENT));
    expect(test.dram).toMatchObject({ used: FRAMES, reserved: 0 });
  });

  it('is everybody’s once they are unmapped, lost, or have ended with their process', () => {
    mm.munmap(pageAt(1), PAGE);
    expect(test.dram.reserved).toBe(1);
    mm.lose(missing);
    expect(test.dram.reserved).toBe(0);
    mm.munmap(pageAt(2), PAGE);
    mm.exit();
    expect(test.dram).toMatchObject({ used: 0, reserved: 0 });
  });

  it('has to be there when they are expected, and not only when they come', () => {
    takeTheRest();
    // The two pages that are there make room for two more, and there are to be three.
    mm.munmap(pageAt(1), 2 * PAGE);
    const more = mm.mmap({ length: 3 * PAGE, protection, shared: false, object: null, offset: 0 });
    if (failed(more)) throw new Error(more.reason);
    expect(mm.expect(missing, more, more + 3 * PAGE)).toMatchObject({ errno: 'ENOMEM', reason: 'HOST_MEMORY_EXHAUSTED' });
    expect([missing.size, test.dram.reserved]).toEqual([0, 0]);
    expect(mm.expect(missing, more, more + 2 * PAGE)).toBeNull();
  });
});

describe('pages that nobody has any more', () => {
  it('fail for who waits and for who comes, and for a write too', () => {
    const running = startLoad(pageAt(1), 1);
    mm.lose(missing);
    test.scheduler.run();
    expect(running.result).toMatchObject({ errno: 'EFAULT', reason: 'PAGE_LOST' });
    expect(mm.read(pageAt(2), 1)).toMatchObject({ reason: 'PAGE_LOST' });
    expect(mm.write(pageAt(2), Uint8Array.of(1))).toMatchObject({ reason: 'PAGE_LOST' });
    expect(wanted).toEqual([pageAt(1)]);
  });

  it('can be mapped again', () => {
    mm.lose(missing);
    mm.dontNeed(pageAt(1), 2 * PAGE);
    expect(mm.read(pageAt(1), 1)).toEqual(Uint8Array.of(0));
  });
});
