import { PAGE_SIZE } from '../../hardware/units.js';
import { Failure, failed, type Result } from '../failure.js';
import { type MemoryObject, ShmemObject } from '../mm/memory-object.js';
import type { PageProvider } from '../mm/page-provider.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { FALLOC_FL } from '../uapi/falloc.js';
import { File, type FileOperations, type FileStat, OPEN, SEEK } from './file.js';

/** Flags of memfd_create that are simulated; there are no huge pages (MFD_HUGETLB) and no seals to add. */
export const MFD = { CLOEXEC: 0x1, ALLOW_SEALING: 0x2, NOEXEC_SEAL: 0x8, EXEC: 0x10 } as const;
const MFD_ALL = MFD.CLOEXEC | MFD.ALLOW_SEALING | MFD.NOEXEC_SEAL | MFD.EXEC;
/** Longest name, without the prefix "memfd:". */
const NAME_MAX = 249;
const S_IFREG = 0o100000;

/** A file of pages without a name in any directory (mm/memfd.c over mm/shmem.c): guest RAM that two processes share. */
export class MemFd implements FileOperations {
  readonly name: string;
  readonly object: ShmemObject;

  constructor(
    label: string,
    private readonly inode: number,
    private readonly permissions: number,
    provider: PageProvider,
  ) {
    this.name = `/memfd:${label} (deleted)`;
    this.object = new ShmemObject(0, provider);
  }

  *read(_current: Task, file: File, length: number): MightSleep<Result<Uint8Array>> {
    const data = this.pread(_current, length, file.position);
    file.position += data.length;
    return data;
  }

  *write(current: Task, file: File, bytes: Uint8Array): MightSleep<Result<number>> {
    const written = this.pwrite(current, bytes, file.position);
    if (!failed(written)) file.position += written;
    return written;
  }

  /** `shmem_file_read_iter`: ends at the end of the file; holes read as zero and stay holes. */
  pread(_current: Task, length: number, offset: number): Uint8Array {
    const out = new Uint8Array(Math.max(0, Math.min(length, this.object.size - offset)));
    for (let done = 0; done < out.length; ) {
      const within = (offset + done) % PAGE_SIZE;
      const count = Math.min(PAGE_SIZE - within, out.length - done);
      const page = this.object.peek(Math.floor((offset + done) / PAGE_SIZE));
      if (page !== undefined) out.set(page.frame.view(null).subarray(within, within + count), done);
      done += count;
    }
    return out;
  }

  /** `shmem_file_write_iter`: extends the file; fewer bytes than asked for when memory runs out on the way. */
  pwrite(_current: Task, bytes: Uint8Array, offset: number): Result<number> {
    let done = 0;
    while (done < bytes.length) {
      const within = (offset + done) % PAGE_SIZE;
      const count = Math.min(PAGE_SIZE - within, bytes.length - done);
      const page = this.object.allocate(Math.floor((offset + done) / PAGE_SIZE));
      if (failed(page)) {
        if (done === 0) return page;
        break;
      }
      page.frame.viewForWrite(null).set(bytes.subarray(done, done + count), within);
      done += count;
      if (offset + done > this.object.size) this.object.resize(offset + done);
    }
    return done;
  }

  /** `shmem_file_llseek`. ENXIO: SEEK_DATA or SEEK_HOLE from beyond the end, or no more data. */
  llseek(file: File, offset: number, whence: number): Result<number> {
    const position = this.seekTarget(file, offset, whence);
    if (failed(position)) return position;
    if (position < 0)
      return new Failure('EINVAL', 'SEEK_BEFORE_START', 'generic_file_llseek', { field: 'offset', given: String(offset) });
    file.position = position;
    return position;
  }

  mmap(): MemoryObject {
    return this.object;
  }

  /** `shmem_fallocate`: allocates pages, with KEEP_SIZE also beyond the end, or punches a hole. EOPNOTSUPP otherwise. */
  *fallocate(current: Task, mode: number, offset: number, length: number): MightSleep<Failure | null> {
    if ((mode & ~(FALLOC_FL.KEEP_SIZE | FALLOC_FL.PUNCH_HOLE)) !== 0)
      return new Failure('EOPNOTSUPP', 'FALLOCATE_MODE', 'shmem_fallocate', { field: 'mode', given: String(mode) });
    if ((mode & FALLOC_FL.PUNCH_HOLE) !== 0) {
      this.punchHole(offset, offset + length);
      return null;
    }
    const end = Math.ceil((offset + length) / PAGE_SIZE);
    for (let index = Math.floor(offset / PAGE_SIZE); index < end; index++) {
      if (current.thread.signalPending) return new Failure('EINTR', 'SIGNAL_PENDING', 'shmem_fallocate');
      const page = this.object.allocate(index);
      if (failed(page)) return new Failure('ENOSPC', 'HOST_MEMORY_EXHAUSTED', 'shmem_fallocate', page.details);
    }
    if ((mode & FALLOC_FL.KEEP_SIZE) === 0 && offset + length > this.object.size) this.object.resize(offset + length);
    return null;
  }

  ftruncate(_current: Task, size: number): null {
    this.object.resize(size);
    return null;
  }

  stat(): FileStat {
    return {
      size: this.object.size,
      blksize: PAGE_SIZE,
      blocks: this.object.pageCount * (PAGE_SIZE / 512),
      inode: this.inode,
      mode: S_IFREG | this.permissions,
    };
  }

  *release(): MightSleep<void> {
    this.object.release();
  }

  private seekTarget(file: File, offset: number, whence: number): Result<number> {
    if (whence === SEEK.SET) return offset;
    if (whence === SEEK.CUR) return file.position + offset;
    if (whence === SEEK.END) return this.object.size + offset;
    if (offset < 0 || offset >= this.object.size)
      return new Failure('ENXIO', 'SEEK_BEYOND_END', 'mapping_seek_hole_data', {
        field: 'offset',
        size: String(this.object.size),
      });
    const wantData = whence === SEEK.DATA;
    for (let position = offset; position < this.object.size; position = (Math.floor(position / PAGE_SIZE) + 1) * PAGE_SIZE)
      if ((this.object.peek(Math.floor(position / PAGE_SIZE)) !== undefined) === wantData) return position;
    return wantData ? new Failure('ENXIO', 'NO_MORE_DATA', 'mapping_seek_hole_data') : this.object.size;
  }

  /** Whole pages go, the parts of pages at both ends become zero. */
  private punchHole(start: number, end: number): void {
    const first = Math.ceil(start / PAGE_SIZE);
    const last = Math.floor(end / PAGE_SIZE);
    if (first > last) {
      this.zero(last, start % PAGE_SIZE, end % PAGE_SIZE);
      return;
    }
    if (start % PAGE_SIZE !== 0) this.zero(first - 1, start % PAGE_SIZE, PAGE_SIZE);
    if (end % PAGE_SIZE !== 0) this.zero(last, 0, end % PAGE_SIZE);
    if (first < last) this.object.punch(first, last);
  }

  private zero(index: number, from: number, to: number): void {
    this.object.peek(index)?.frame.viewForWrite(null).fill(0, from, to);
  }
}

/** `memfd_create`: an empty file, readable and writable. EINVAL: unknown flags, or a name that is too long. */
export const createMemFd = (name: string, flags: number, inode: number, provider: PageProvider): Result<File> => {
  if ((flags & ~MFD_ALL) !== 0 || (flags & (MFD.EXEC | MFD.NOEXEC_SEAL)) === (MFD.EXEC | MFD.NOEXEC_SEAL))
    return new Failure('EINVAL', 'MEMFD_FLAGS', 'memfd_create', { field: 'flags', given: `0x${flags.toString(16)}` });
  if (Buffer.byteLength(name) > NAME_MAX)
    return new Failure('EINVAL', 'MEMFD_NAME_TOO_LONG', 'memfd_create', { field: 'name', allowed: `${NAME_MAX} bytes` });
  const permissions = (flags & MFD.NOEXEC_SEAL) !== 0 ? 0o666 : 0o777;
  return new File(new MemFd(name, inode, permissions, provider), OPEN.RDWR);
};
