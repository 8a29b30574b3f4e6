import { Failure, failed, type Result } from '../failure.js';
import type { File } from '../fs/file.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { negative, notOpenFor, OFFSET_MAX, readable, tooBig, unsupported, withFile, writable } from './with-file.js';

/** MAX_RW_COUNT: a read or write moves no more. */
const RW_COUNT_MAX = 0x7fff_f000;
const WHENCE_MAX = 4;

/** A file without positions. One that was opened by its path passes the test for them and fails later (FMODE_PREAD). */
const noPosition = (kernelRef: string, file: File): Failure =>
  file.ops.name.startsWith('/')
    ? unsupported(kernelRef, file)
    : new Failure('ESPIPE', 'FILE_NOT_SEEKABLE', kernelRef, { field: 'fd', is: file.ops.name });

/** `read`: at most `length` bytes from the file's position. */
export const read = (current: Task, fd: number, length: number): MightSleep<Result<Uint8Array>> =>
  withFile(current, fd, 'ksys_read', function* vfsRead(file) {
    if (!readable(file)) return notOpenFor('READABLE', 'vfs_read', file);
    if (file.ops.read === undefined) return unsupported('vfs_read', file);
    return yield* file.ops.read(current, file, Math.min(length, RW_COUNT_MAX));
  });

/** `write`; the result is the number of bytes written. */
export const write = (current: Task, fd: number, bytes: Uint8Array): MightSleep<Result<number>> =>
  withFile(current, fd, 'ksys_write', function* vfsWrite(file) {
    if (!writable(file)) return notOpenFor('WRITABLE', 'vfs_write', file);
    if (file.ops.write === undefined) return unsupported('vfs_write', file);
    return yield* file.ops.write(current, file, bytes.subarray(0, RW_COUNT_MAX));
  });

/** `pread64`: does not move the file's position. ESPIPE for a file without positions. */
export const pread = (current: Task, fd: number, length: number, offset: bigint): Result<Uint8Array> => {
  if (offset < 0n) return negative('offset', offset, 'ksys_pread64');
  const file = current.process.files.get(fd, 'ksys_pread64');
  if (failed(file)) return file;
  if (file.ops.pread === undefined) return noPosition('ksys_pread64', file);
  if (!readable(file)) return notOpenFor('READABLE', 'vfs_read', file);
  if (offset > OFFSET_MAX) return new Uint8Array(0);
  return file.ops.pread(current, Math.min(length, RW_COUNT_MAX), Number(offset));
};

/** `pwrite64`. */
export const pwrite = (current: Task, fd: number, bytes: Uint8Array, offset: bigint): Result<number> => {
  if (offset < 0n) return negative('offset', offset, 'ksys_pwrite64');
  const file = current.process.files.get(fd, 'ksys_pwrite64');
  if (failed(file)) return file;
  if (file.ops.pwrite === undefined) return noPosition('ksys_pwrite64', file);
  if (!writable(file)) return notOpenFor('WRITABLE', 'vfs_write', file);
  if (offset + BigInt(bytes.length) > OFFSET_MAX) return tooBig('offset', offset, 'generic_write_checks');
  return file.ops.pwrite(current, bytes.subarray(0, RW_COUNT_MAX), Number(offset));
};

/** `lseek`: the new position. EINVAL: an unknown `whence`, a position out of range; ESPIPE: a file without positions. */
export const lseek = (current: Task, fd: number, offset: bigint, whence: number): Result<number> => {
  const file = current.process.files.get(fd, 'ksys_lseek');
  if (failed(file)) return file;
  if (whence < 0 || whence > WHENCE_MAX)
    return new Failure('EINVAL', 'LSEEK_WHENCE', 'ksys_lseek', { field: 'whence', given: String(whence) });
  if (file.ops.llseek === undefined) return new Failure('ESPIPE', 'FILE_NOT_SEEKABLE', 'vfs_llseek', { is: file.ops.name });
  if (offset > OFFSET_MAX || offset < -OFFSET_MAX)
    return new Failure('EINVAL', 'LSEEK_RANGE', 'vfs_llseek', { field: 'offset', given: String(offset) });
  return file.ops.llseek(file, Number(offset), whence);
};
