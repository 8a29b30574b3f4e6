import { describe, expect, it } from 'vitest';
import { createEventFd } from '../../../../server/kernel/fs/eventfd.js';
import { File, type FileOperations, OPEN } from '../../../../server/kernel/fs/file.js';
import { createMemFd } from '../../../../server/kernel/fs/memfd.js';
import { stepsOf } from '../../../../server/kernel/sched/wait.js';
import {
  type MmapArguments,
  madvise,
  mmap,
  mprotect,
  munmap,
  readMemory,
  writeMemory,
} from '../../../../server/kernel/syscalls/memory.js';
import { MADV, MAP, PROT } from '../../../../server/kernel/uapi/mman.js';
import { atOnce, createTestProcess, errnoOf } from '../run-task.js';

const PAGE = 4096n;
const TASK_END = 0x7fff_ffff_f000n;
const RW = PROT.READ | PROT.WRITE;

const setUp = () => {
  const test = createTestProcess();
  const install = (file: File | { errno: string }): number => {
    const fd = file instanceof File ? test.process.files.install(file, true) : null;
    if (typeof fd !== 'number') throw new Error('no descriptor');
    return fd;
  };
  const ANONYMOUS: MmapArguments = {
    address: 0n,
    length: PAGE,
    prot: RW,
    flags: MAP.PRIVATE | MAP.ANONYMOUS,
    fd: -1,
    offset: 0n,
  };
  const map = (args: Partial<MmapArguments>) => errnoOf(test.call(atOnce((current) => mmap(current, { ...ANONYMOUS, ...args }))));
  const mapped = (args: Partial<MmapArguments>): bigint => {
    const address = map(args);
    if (typeof address !== 'number') throw new Error(`mmap: ${address}`);
    return BigInt(address);
  };
  return {
    ...test,
    install,
    map,
    mapped,
    unmap: (address: bigint, length: bigint) => errnoOf(test.call(atOnce((current) => munmap(current, address, length)))),
    protect: (address: bigint, length: bigint, prot: number) =>
      errnoOf(test.call(atOnce((current) => mprotect(current, address, length, prot)))),
    advise: (address: bigint, length: bigint, advice: number) =>
      errnoOf(test.call(atOnce((current) => madvise(current, address, length, advice)))),
    load: (address: bigint, length: number) => errnoOf(test.call((current) => stepsOf(readMemory(current, address, length)))),
    store: (address: bigint, bytes: Uint8Array) =>
      errnoOf(test.call(atOnce((current) => writeMemory(current, address, bytes) ?? 0))),
  };
};

describe('mmap', () => {
  it.each<[string, Partial<MmapArguments>, string]>([
    ['an empty mapping', { length: 0n }, 'EINVAL'],
    ['an offset within a page', { offset: 1n }, 'EINVAL'],
    ['neither shared nor private', { flags: MAP.ANONYMOUS }, 'EINVAL'],
    ['a descriptor that is not open', { flags: MAP.SHARED, fd: 88 }, 'EBADF'],
    ['more than there is', { length: 2n ** 64n - 1n }, 'ENOMEM'],
    ['huge pages', { flags: MAP.PRIVATE | MAP.ANONYMOUS | MAP.HUGETLB }, 'ENOMEM'],
    ['a fixed address within a page', { flags: MAP.PRIVATE | MAP.ANONYMOUS | MAP.FIXED, address: 0x1_0001n }, 'EINVAL'],
    [
      'a fixed address in the kernel half',
      { flags: MAP.PRIVATE | MAP.ANONYMOUS | MAP.FIXED, address: 2n ** 64n - PAGE },
      'ENOMEM',
    ],
    ['the last page of the user half', { flags: MAP.PRIVATE | MAP.ANONYMOUS | MAP.FIXED, address: TASK_END }, 'ENOMEM'],
  ])('refuses %s', (_what, args, errno) => {
    expect(setUp().map(args)).toBe(errno);
  });

  it('gives zeroed memory, wherever there is room', () => {
    const { mapped, load, store } = setUp();
    const first = mapped({});
    const second = mapped({});
    expect(first).not.toBe(second);
    expect(load(first, 4)).toEqual(new Uint8Array(4));
    store(first, Uint8Array.of(1));
    expect(load(second, 1)).toEqual(new Uint8Array(1));
  });

  it('takes an address that is free as a hint, and only with MAP_FIXED one that is not', () => {
    const { mapped, map, store, load } = setUp();
    const at = mapped({ address: 0x10_0123n });
    expect(at).toBe(0x10_0000n);
    store(at, Uint8Array.of(9));
    expect(mapped({ address: at })).not.toBe(at);
    const fixed = MAP.PRIVATE | MAP.ANONYMOUS;
    expect(map({ address: at, flags: fixed | MAP.FIXED_NOREPLACE })).toBe('EEXIST');
    expect(mapped({ address: at, flags: fixed | MAP.FIXED })).toBe(at);
    expect(load(at, 1)).toEqual(Uint8Array.of(0));
  });

  it('asks the file: its mode, whether code may lie there, whether it can be mapped at all', () => {
    const { install, map, pages } = setUp();
    const event = install(createEventFd(0, 0));
    expect(map({ flags: MAP.SHARED, fd: event })).toBe('ENODEV');
    expect(map({ flags: MAP.SHARED, fd: event, prot: RW | PROT.EXEC })).toBe('EPERM');
    const memfd = createMemFd('ram', 0, 1, pages);
    if (!(memfd instanceof File)) throw new Error('no memfd');
    const readOnly: FileOperations = memfd.ops;
    const fd = install(new File(readOnly, OPEN.RDONLY));
    expect(map({ flags: MAP.SHARED, fd })).toBe('EACCES');
    expect(map({ flags: MAP.PRIVATE, fd, offset: PAGE })).toEqual(expect.any(Number));
  });
});

describe('two mappings of a memfd', () => {
  it('show the same memory if they are shared, and a copy after a write if one is private', () => {
    const { install, mapped, store, load, pages, process } = setUp();
    const memfd = createMemFd('ram', 0, 1, pages);
    const fd = install(memfd);
    process.files.lookup(fd)?.ops.ftruncate?.(createTestProcess().start(function* none() {}).task, Number(2n * PAGE));
    const a = mapped({ flags: MAP.SHARED, fd, length: 2n * PAGE });
    const b = mapped({ flags: MAP.SHARED, fd, offset: PAGE });
    const c = mapped({ flags: MAP.PRIVATE, fd });
    store(a + PAGE, Uint8Array.of(4));
    expect(load(b, 1)).toEqual(Uint8Array.of(4));
    store(c, Uint8Array.of(5));
    expect(load(a, 1)).toEqual(Uint8Array.of(0));
    expect(load(c, 1)).toEqual(Uint8Array.of(5));
  });
});

describe('munmap', () => {
  it('takes away part of a mapping, and nothing where nothing is', () => {
    const { mapped, unmap, load } = setUp();
    const at = mapped({ length: 3n * PAGE });
    expect(unmap(at + PAGE, PAGE)).toBe(0);
    expect(load(at, 1)).toEqual(new Uint8Array(1));
    expect(load(at + PAGE, 1)).toBe('EFAULT');
    expect(load(at + 2n * PAGE, 1)).toEqual(new Uint8Array(1));
    expect(unmap(at + PAGE, PAGE)).toBe(0);
  });

  it.each<[string, bigint, bigint]>([
    ['an address within a page', 1n, PAGE],
    ['nothing', 0x1_0000n, 0n],
    ['the kernel half', 2n ** 64n - PAGE, PAGE],
    ['a length that wraps', 0x1_0000n, 2n ** 64n - PAGE],
  ])('refuses %s', (_what, address, length) => {
    expect(setUp().unmap(address, length)).toBe('EINVAL');
  });

  it('gives the memory back', () => {
    const { mapped, unmap, store, dram } = setUp();
    const at = mapped({ length: 2n * PAGE });
    store(at, new Uint8Array(8192).fill(1));
    expect(dram.used).toBe(2);
    unmap(at, 2n * PAGE);
    expect(dram.used).toBe(0);
  });
});

describe('mprotect', () => {
  it('decides which touches fault, and keeps the contents', () => {
    const { mapped, protect, load, store } = setUp();
    const at = mapped({});
    store(at, Uint8Array.of(3));
    expect(protect(at, PAGE, PROT.READ)).toBe(0);
    expect(store(at, Uint8Array.of(4))).toBe('EFAULT');
    expect(protect(at, PAGE, PROT.NONE)).toBe(0);
    expect(load(at, 1)).toBe('EFAULT');
    protect(at, PAGE, RW);
    expect(load(at, 1)).toEqual(Uint8Array.of(3));
  });

  it('refuses unknown bits and ranges with holes', () => {
    const { mapped, protect } = setUp();
    const at = mapped({});
    expect(protect(at, PAGE, 0x10)).toBe('EINVAL');
    expect(protect(at + 1n, PAGE, RW)).toBe('EINVAL');
    expect(protect(at, 2n ** 64n - 1n, RW)).toBe('ENOMEM');
    expect(protect(0x10_0000n, PAGE, RW)).toBe('ENOMEM');
    expect(protect(at, 0n, 0x10)).toBe(0);
  });
});

describe('madvise', () => {
  it('MADV_DONTNEED forgets private memory', () => {
    const { mapped, advise, load, store, dram } = setUp();
    const at = mapped({});
    store(at, Uint8Array.of(3));
    expect(advise(at, PAGE, MADV.DONTNEED)).toBe(0);
    expect(dram.used).toBe(0);
    expect(load(at, 1)).toEqual(Uint8Array.of(0));
  });

  it('MADV_REMOVE punches a hole into shared memory, for everybody', () => {
    const { mapped, advise, load, store, protect, dram } = setUp();
    const shared = mapped({ flags: MAP.SHARED | MAP.ANONYMOUS, length: 2n * PAGE });
    store(shared, new Uint8Array(8192).fill(3));
    expect(advise(shared + PAGE, PAGE, MADV.REMOVE)).toBe(0);
    expect(dram.used).toBe(1);
    expect(load(shared + PAGE - 1n, 2)).toEqual(Uint8Array.of(3, 0));
    expect(advise(mapped({}), PAGE, MADV.REMOVE)).toBe('EINVAL');
    protect(shared, PAGE, PROT.READ);
    expect(advise(shared, PAGE, MADV.REMOVE)).toBe('EACCES');
  });

  it('refuses unknown advice and holes', () => {
    const { mapped, advise } = setUp();
    const at = mapped({});
    expect(advise(at, PAGE, 99)).toBe('EINVAL');
    expect(advise(at, PAGE, MADV.HUGEPAGE)).toBe(0);
    expect(advise(0x10_0000n, PAGE, MADV.WILLNEED)).toBe('ENOMEM');
    expect(advise(at + 1n, PAGE, MADV.NORMAL)).toBe('EINVAL');
  });
});
