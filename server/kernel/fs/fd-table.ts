import { Failure, type Result } from '../failure.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import type { File } from './file.js';

/** Lowest descriptor handed out: 0 to 2 are never KVM's here, so that an unset field cannot name one. */
const FIRST_FD = 3;
/** RLIMIT_NOFILE of a simulated process. */
const NOFILE = 65_536;

interface Descriptor {
  readonly file: File;
  closeOnExec: boolean;
}

const badFd = (fd: number, kernelRef: string): Failure => new Failure('EBADF', 'FD_NOT_OPEN', kernelRef, { fd: String(fd) });

/** `struct files_struct`: the descriptors of one process, lowest free number first. */
export class FdTable {
  private readonly open = new Map<number, Descriptor>();
  private lowestFree = FIRST_FD;

  /**
   * Puts a file under the lowest free number that is not below `lowest`; the table takes over the caller's reference.
   * EMFILE when full, EINVAL when no descriptor can be as high as `lowest`.
   */
  install(file: File, closeOnExec: boolean, lowest = FIRST_FD): Result<number> {
    if (lowest < 0 || lowest >= NOFILE)
      return new Failure('EINVAL', 'FD_OUT_OF_RANGE', 'f_dupfd', {
        field: 'argument',
        given: String(lowest),
        limit: String(NOFILE),
      });
    const fd = lowest <= FIRST_FD ? this.reserve() : this.firstFree(lowest);
    if (fd === null) return FdTable.full();
    this.open.set(fd, { file, closeOnExec });
    return fd;
  }

  /**
   * `replace_fd`: puts a file under `fd` itself; the table takes over the caller's reference. What was there is returned,
   * with its reference, for the caller to drop. EBADF for a number that no descriptor can have.
   */
  replace(fd: number, file: File, closeOnExec: boolean): Result<File | null> {
    if (fd < 0 || fd >= NOFILE)
      return new Failure('EBADF', 'FD_OUT_OF_RANGE', 'replace_fd', { field: 'newfd', given: String(fd), limit: String(NOFILE) });
    const before = this.open.get(fd)?.file ?? null;
    this.open.set(fd, { file, closeOnExec });
    return before;
  }

  /** What `install` says when it has no number left. */
  static full(): Failure {
    return new Failure('EMFILE', 'FD_TABLE_FULL', 'get_unused_fd_flags', { limit: String(NOFILE) });
  }

  /** Descriptors that can be installed now. */
  get room(): number {
    return NOFILE - FIRST_FD - this.open.size;
  }

  /** True if `install` would succeed: KVM reserves a number before it makes the object. */
  get full(): boolean {
    return this.reserve() === null;
  }

  /** `fget`, without taking a reference: valid until the next wait. */
  lookup(fd: number): File | undefined {
    return this.open.get(fd)?.file;
  }

  /** `fdget` or EBADF. */
  get(fd: number, kernelRef = 'fdget'): Result<File> {
    return this.open.get(fd)?.file ?? badFd(fd, kernelRef);
  }

  closeOnExec(fd: number): Result<boolean> {
    return this.open.get(fd)?.closeOnExec ?? badFd(fd, 'do_fcntl');
  }

  setCloseOnExec(fd: number, on: boolean): Failure | null {
    const descriptor = this.open.get(fd);
    if (descriptor === undefined) return badFd(fd, 'do_fcntl');
    descriptor.closeOnExec = on;
    return null;
  }

  *close(current: Task, fd: number): MightSleep<Failure | null> {
    const descriptor = this.open.get(fd);
    if (descriptor === undefined) return badFd(fd, 'close_fd');
    this.open.delete(fd);
    if (fd < this.lowestFree && fd >= FIRST_FD) this.lowestFree = fd;
    yield* descriptor.file.put(current);
    return null;
  }

  /** `exit_files`: closes everything, lowest number first. */
  *closeAll(current: Task): MightSleep<void> {
    for (const fd of [...this.open.keys()].sort((a, b) => a - b)) yield* this.close(current, fd);
  }

  /** `dup_fd`: the table of a forked child. */
  clone(): FdTable {
    const copy = new FdTable();
    for (const [fd, { file, closeOnExec }] of this.open) copy.open.set(fd, { file: file.get(), closeOnExec });
    copy.lowestFree = this.lowestFree;
    return copy;
  }

  entries(): IterableIterator<[number, Descriptor]> {
    return this.open.entries();
  }

  get size(): number {
    return this.open.size;
  }

  private reserve(): number | null {
    this.lowestFree = this.firstFree(this.lowestFree) ?? NOFILE;
    return this.lowestFree < NOFILE ? this.lowestFree : null;
  }

  private firstFree(from: number): number | null {
    let fd = from;
    while (this.open.has(fd)) fd++;
    return fd < NOFILE ? fd : null;
  }
}
