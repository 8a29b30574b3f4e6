import type { Failure, Result } from '../failure.js';
import type { MemoryObject } from '../mm/memory-object.js';
import type { Task } from '../sched/task.js';
import type { MaySleep, MightSleep, WaitQueue } from '../sched/wait.js';
import type { IoctlArg } from './ioctl-arg.js';

/** What fstat shows. */
export interface FileStat {
  readonly size: number;
  readonly blksize: number;
  readonly blocks: number;
  readonly inode: number;
  /** File type and permission bits, as in `st_mode`. */
  readonly mode: number;
}

/** Poll events, `include/uapi/asm-generic/poll.h`. */
export const POLL = { IN: 0x1, OUT: 0x4, ERR: 0x8, HUP: 0x10, NVAL: 0x20 } as const;

/** An `mmap` as it reaches the file: what may be refused depends on all of it. */
export interface MmapRequest {
  readonly length: number;
  readonly offset: number;
  readonly shared: boolean;
  readonly read: boolean;
  readonly write: boolean;
  readonly execute: boolean;
}

/**
 * `struct file_operations`. What a kind of file leaves out gets the errno of the real system call on a file without
 * that operation: ENOTTY for ioctl, EINVAL for read and write, ESPIPE for lseek, ENODEV for mmap, EOPNOTSUPP for
 * fallocate.
 */
export interface FileOperations {
  /** As a link in /proc/PID/fd shows it, for example `anon_inode:kvm-vm`. */
  readonly name: string;
  /** At once for a request that need not wait, so that the most frequent ones cost next to nothing. */
  ioctl?(current: Task, file: File, request: number, arg: IoctlArg): MaySleep<Result<number>>;
  read?(current: Task, file: File, length: number): MightSleep<Result<Uint8Array>>;
  write?(current: Task, file: File, bytes: Uint8Array): MightSleep<Result<number>>;
  /** Positioned read; a file without it cannot seek, and pread gives ESPIPE. */
  pread?(current: Task, length: number, offset: number): Result<Uint8Array>;
  pwrite?(current: Task, bytes: Uint8Array, offset: number): Result<number>;
  /** New position of plain read and write; `whence` is one of SEEK. */
  llseek?(file: File, offset: number, whence: number): Result<number>;
  /** Present events out of POLL; a file without it is always readable and writable. */
  poll?(): number;
  /** Woken when the answer of `poll` may have changed. */
  readonly pollQueue?: WaitQueue;
  mmap?(current: Task, request: MmapRequest): Result<MemoryObject>;
  fallocate?(current: Task, mode: number, offset: number, length: number): MightSleep<Failure | null>;
  ftruncate?(current: Task, size: number): Failure | null;
  stat(): FileStat;
  /** The last reference is gone. */
  release?(current: Task): MightSleep<void>;
}

/** `whence` of lseek. */
export const SEEK = { SET: 0, CUR: 1, END: 2, DATA: 3, HOLE: 4 } as const;

/** `noop_llseek`: every seek of an anonymous inode or a character device succeeds and moves nothing. */
export const noopLlseek = (file: File): number => file.position;

/** What fstat shows of the one inode behind all files of `anon_inode_getfile`: no type, 0600, nothing in it. */
export const ANON_INODE_STAT: FileStat = { size: 0, blksize: 4096, blocks: 0, inode: 1, mode: 0o600 };

/** O_* bits of open and fcntl that the simulated files look at. */
export const OPEN = { RDONLY: 0, WRONLY: 1, RDWR: 2, ACCMODE: 3, NONBLOCK: 0o4000, CLOEXEC: 0o2000000 } as const;

/** `struct file`: an open file with its references (descriptors, mappings, and whoever holds it inside the kernel). */
export class File {
  private references = 1;
  /** Position of plain read and write. */
  position = 0;

  constructor(
    readonly ops: FileOperations,
    /** Access mode and status flags (OPEN). */
    public flags: number,
  ) {}

  get referenceCount(): number {
    return this.references;
  }

  /** `get_file`. */
  get(): this {
    if (this.references === 0) throw new Error(`${this.ops.name}: reference taken after release`);
    this.references++;
    return this;
  }

  /** `fput`: the release runs with the last reference, as a part of the task that drops it. */
  *put(current: Task): MightSleep<void> {
    if (--this.references === 0 && this.ops.release !== undefined) yield* this.ops.release(current);
  }
}
