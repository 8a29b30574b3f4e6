import { PAGE_SIZE, type Uva } from '../../hardware/units.js';
import { Failure, failed, type Result } from '../failure.js';
import { type File, OPEN } from '../fs/file.js';
import { createMemFd, MFD } from '../fs/memfd.js';
import type { Kernel } from '../kernel.js';
import { type AddressSpace, TASK_SIZE } from '../mm/address-space.js';
import { type MemoryObject, ShmemObject } from '../mm/memory-object.js';
import { PageMissing, withMissingPages } from '../mm/missing-pages.js';
import type { Protection } from '../mm/vma.js';
import type { Task } from '../sched/task.js';
import type { MaySleep, MightSleep } from '../sched/wait.js';
import { MADV, MAP, PROT } from '../uapi/mman.js';
import { installFile } from './descriptors.js';

/** Arguments of mmap as the caller gave them; 64-bit ones unsigned. */
export interface MmapArguments {
  readonly address: bigint;
  readonly length: bigint;
  /** PROT. */
  readonly prot: number;
  /** MAP. */
  readonly flags: number;
  /** Not looked at with MAP_ANONYMOUS. */
  readonly fd: number;
  readonly offset: bigint;
}

const PAGE = BigInt(PAGE_SIZE);
const TASK_END = BigInt(TASK_SIZE);
/** PROT_SEM (8) is known and means nothing. */
const PROT_MASK = PROT.READ | PROT.WRITE | PROT.EXEC | 8;
/** Advice that changes nothing which a caller could see, beyond the check of the range. */
const ADVICE_WITHOUT_EFFECT: ReadonlySet<number> = new Set([
  MADV.NORMAL,
  MADV.RANDOM,
  MADV.SEQUENTIAL,
  MADV.WILLNEED,
  MADV.MERGEABLE,
  MADV.UNMERGEABLE,
  MADV.HUGEPAGE,
  MADV.NOHUGEPAGE,
  MADV.DONTDUMP,
  MADV.DODUMP,
]);

const hex = (value: bigint): string => `0x${value.toString(16)}`;

const refuse = (errno: Failure['errno'], reason: string, kernelRef: string, field: string, given: string): Failure =>
  new Failure(errno, reason, kernelRef, { field, given });

/** The caller's memory. A kernel thread makes no system calls. */
const memoryOf = (current: Task): AddressSpace => {
  const { mm } = current.process;
  if (mm === null) throw new Error(`${current.label}: a kernel thread has no memory`);
  return mm;
};

const protectionOf = (prot: number): Protection => ({
  read: (prot & PROT.READ) !== 0,
  write: (prot & PROT.WRITE) !== 0,
  execute: (prot & PROT.EXEC) !== 0,
});

/**
 * `mmap`: of anonymous memory, or of a file that agrees. EBADF, EINVAL (length, alignment, type of mapping), EACCES (the
 * file's mode), EPERM (code from an anonymous inode), ENODEV (the file cannot be mapped), EEXIST (MAP_FIXED_NOREPLACE),
 * ENOMEM. An address without MAP_FIXED is taken if it is free.
 */
export const mmap = (current: Task, args: MmapArguments): Result<Uva> => {
  const mm = memoryOf(current);
  if (args.offset % PAGE !== 0n) return refuse('EINVAL', 'MMAP_OFFSET_UNALIGNED', 'sys_mmap', 'offset', hex(args.offset));
  const anonymous = (args.flags & MAP.ANONYMOUS) !== 0;
  const file = anonymous ? null : current.process.files.get(args.fd, 'ksys_mmap_pgoff');
  if (failed(file)) return file;
  if ((args.flags & MAP.HUGETLB) !== 0)
    return anonymous
      ? refuse('ENOMEM', 'NO_HUGE_PAGES', 'hugetlb_file_setup', 'flags', hex(BigInt(args.flags)))
      : refuse('EINVAL', 'FILE_WITHOUT_HUGE_PAGES', 'ksys_mmap_pgoff', 'flags', hex(BigInt(args.flags)));
  const start = placeMapping(mm, args);
  if (failed(start)) return start;
  const shared = (args.flags & MAP.TYPE) !== MAP.PRIVATE;
  const failure = checkMappingType(file, args, anonymous);
  if (failure !== null) return failure;
  const protection = protectionOf(args.prot);
  const length = Number(args.length);
  // The offset is that of the file; anonymous memory has none, and the kernel drops it.
  const offset = anonymous ? 0 : Number(args.offset);
  const object =
    file === null ? anonymousObject(current, shared, length) : mapFile(current, file, { ...args, offset, length, shared });
  if (failed(object)) return object;
  const mapped = mm.mmap({ length, protection, shared, object, offset, ...(start === null ? {} : { fixedAddress: start }) });
  if (anonymous && object instanceof ShmemObject) object.release();
  return mapped;
};

/** `munmap`. EINVAL: unaligned, empty, or beyond the user's half. A hole is no error. */
export const munmap = (current: Task, address: bigint, length: bigint): Result<number> => {
  const mm = memoryOf(current);
  if (address % PAGE !== 0n) return refuse('EINVAL', 'ADDRESS_UNALIGNED', 'do_vmi_munmap', 'address', hex(address));
  if (length === 0n || address > TASK_END || length > TASK_END - address)
    return refuse('EINVAL', 'MUNMAP_RANGE', 'do_vmi_munmap', 'length', hex(length));
  return mm.munmap(Number(address), Number(length)) ?? 0;
};

/** `mprotect`. EINVAL: unaligned address or unknown bits; ENOMEM: part of the range is not mapped. */
export const mprotect = (current: Task, address: bigint, length: bigint, prot: number): Result<number> => {
  const mm = memoryOf(current);
  if (address % PAGE !== 0n) return refuse('EINVAL', 'ADDRESS_UNALIGNED', 'do_mprotect_pkey', 'address', hex(address));
  if (length === 0n) return 0;
  if (address >= TASK_END || length > TASK_END - address)
    return refuse('ENOMEM', 'RANGE_NOT_MAPPED', 'do_mprotect_pkey', 'length', hex(length));
  if ((prot & ~PROT_MASK) !== 0) return refuse('EINVAL', 'PROT_BITS', 'do_mprotect_pkey', 'prot', hex(BigInt(prot)));
  return mm.mprotect(Number(address), Number(length), protectionOf(prot)) ?? 0;
};

/**
 * `madvise`: MADV_DONTNEED, MADV_REMOVE, and the advice that changes nothing visible. EINVAL for other; ENOMEM for a hole
 * in the mapping.
 */
export const madvise = (current: Task, address: bigint, length: bigint, advice: number): Result<number> => {
  const mm = memoryOf(current);
  if (advice !== MADV.DONTNEED && advice !== MADV.REMOVE && !ADVICE_WITHOUT_EFFECT.has(advice))
    return refuse('EINVAL', 'MADVISE_ADVICE', 'madvise_behavior_valid', 'advice', String(advice));
  if (address % PAGE !== 0n) return refuse('EINVAL', 'ADDRESS_UNALIGNED', 'do_madvise', 'address', hex(address));
  if (length === 0n) return 0;
  if (address >= TASK_END || length > TASK_END - address)
    return refuse('ENOMEM', 'RANGE_NOT_MAPPED', 'do_madvise', 'length', hex(length));
  if (advice === MADV.DONTNEED) return mm.dontNeed(Number(address), Number(length)) ?? 0;
  if (advice === MADV.REMOVE) return mm.remove(Number(address), Number(length)) ?? 0;
  return mm.covers(Number(address), Number(address + length)) ? 0 : new Failure('ENOMEM', 'RANGE_NOT_MAPPED', 'do_madvise');
};

/** `memfd_create`: a descriptor of an empty file of pages. */
export function* memfdCreate(kernel: Kernel, current: Task, name: string, flags: number): MightSleep<Result<number>> {
  const file = createMemFd(name, flags, kernel.allocateInode(), kernel.pages);
  return yield* installFile(current, file, (flags & MFD.CLOEXEC) !== 0);
}

/**
 * A load by the process itself: EFAULT with reason SIGBUS or BAD_ADDRESS where it would get a signal. Waits for pages whose
 * contents are still to come; EINTR if a signal comes first.
 */
export const readMemory = (current: Task, address: bigint, length: number): MaySleep<Result<Uint8Array>> => {
  const mm = memoryOf(current);
  const bytes = mm.copyIn(address, length);
  if (!(bytes instanceof PageMissing)) return bytes;
  return withMissingPages(bytes, function* again() {
    return mm.copyIn(address, length);
  });
};

/** A store by the process itself; it waits for nothing. What lies before the page that faults has been written. */
export const writeMemory = (current: Task, address: bigint, bytes: Uint8Array): Failure | null =>
  memoryOf(current).copyOut(address, bytes);

/** Where the mapping shall go: null for wherever there is room (`get_unmapped_area`). */
const placeMapping = (mm: AddressSpace, { address, length, flags }: MmapArguments): Result<number | null> => {
  if (length === 0n) return refuse('EINVAL', 'MMAP_LENGTH', 'do_mmap', 'length', '0');
  const fixed = (flags & (MAP.FIXED | MAP.FIXED_NOREPLACE)) !== 0;
  if (length > TASK_END || (fixed && address > TASK_END - length))
    return refuse('ENOMEM', 'MMAP_RANGE', '__get_unmapped_area', 'address, length', `${hex(address)}, ${hex(length)}`);
  const end = Number(address + length);
  if (!fixed) {
    const hint = Number(address - (address % PAGE));
    return address !== 0n && end <= TASK_SIZE && !mm.overlaps(hint, end) ? hint : null;
  }
  if (address % PAGE !== 0n) return refuse('EINVAL', 'ADDRESS_UNALIGNED', '__get_unmapped_area', 'address', hex(address));
  if ((flags & MAP.FIXED_NOREPLACE) !== 0 && mm.overlaps(Number(address), end))
    return refuse('EEXIST', 'RANGE_IS_MAPPED', 'do_mmap', 'address', hex(address));
  return Number(address);
};

const checkMappingType = (file: File | null, { flags, prot }: MmapArguments, anonymous: boolean): Failure | null => {
  const type = flags & MAP.TYPE;
  const known = type === MAP.SHARED || type === MAP.PRIVATE || (type === MAP.SHARED_VALIDATE && !anonymous);
  if (!known) return refuse('EINVAL', 'MMAP_TYPE', 'do_mmap', 'flags', hex(BigInt(flags)));
  if (file === null) return null;
  const access = file.flags & OPEN.ACCMODE;
  const writesFile = type !== MAP.PRIVATE && (prot & PROT.WRITE) !== 0;
  if (access === OPEN.WRONLY || (writesFile && access === OPEN.RDONLY))
    return refuse('EACCES', 'FILE_ACCESS_MODE', 'do_mmap', 'prot', String(prot));
  if ((prot & PROT.EXEC) !== 0 && file.ops.name.startsWith('anon_inode:'))
    return refuse('EPERM', 'ANON_INODE_NOEXEC', 'do_mmap', 'prot', String(prot));
  return null;
};

const anonymousObject = (current: Task, shared: boolean, length: number): MemoryObject | null =>
  shared ? new ShmemObject(Math.ceil(length / PAGE_SIZE) * PAGE_SIZE, memoryOf(current).provider) : null;

const mapFile = (
  current: Task,
  file: File,
  { prot, shared, offset, length }: { prot: number; shared: boolean; offset: number; length: number },
): Result<MemoryObject> => {
  if (file.ops.mmap === undefined)
    return new Failure('ENODEV', 'FILE_NOT_MAPPABLE', 'do_mmap', { field: 'fd', is: file.ops.name });
  const { read, write, execute } = protectionOf(prot);
  return file.ops.mmap(current, { length, offset, shared, read, write, execute });
};
