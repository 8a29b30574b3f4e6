import { Failure, failed, type Result } from '../failure.js';
import type { File } from '../fs/file.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { FALLOC_FL } from '../uapi/falloc.js';
import { negative, notOpenFor, OFFSET_MAX, tooBig, unsupported, withFile, writable } from './with-file.js';

const S_IFMT = 0o170000;
const S_IFREG = 0o100000;
const S_IFIFO = 0o010000;

/** `fallocate`, with the checks that come before the file's own. `mode` is made of FALLOC_FL. */
export const fallocate = (current: Task, fd: number, mode: number, offset: bigint, length: bigint): MightSleep<Result<number>> =>
  withFile(current, fd, 'ksys_fallocate', function* vfsFallocate(file) {
    const failure = checkFallocate(file, mode, offset, length);
    if (failure !== null) return failure;
    if (file.ops.fallocate === undefined)
      return new Failure('EOPNOTSUPP', 'FALLOCATE_UNSUPPORTED', 'vfs_fallocate', { is: file.ops.name });
    return (yield* file.ops.fallocate(current, mode, Number(offset), Number(length))) ?? 0;
  });

/** `ftruncate`. EINVAL: a negative length, a file that is not regular, or that is not open for writing. */
export const ftruncate = (current: Task, fd: number, length: bigint): Result<number> => {
  if (length < 0n) return negative('length', length, 'do_sys_ftruncate');
  const file = current.process.files.get(fd, 'do_sys_ftruncate');
  if (failed(file)) return file;
  if ((file.ops.stat().mode & S_IFMT) !== S_IFREG || !writable(file) || file.ops.ftruncate === undefined)
    return unsupported('do_ftruncate', file);
  if (length > OFFSET_MAX) return tooBig('length', length, 'inode_newsize_ok');
  return file.ops.ftruncate(current, Number(length)) ?? 0;
};

const checkFallocate = (file: File, mode: number, offset: bigint, length: bigint): Failure | null => {
  const ref = 'vfs_fallocate';
  if (offset < 0n || length <= 0n)
    return new Failure('EINVAL', 'FALLOCATE_RANGE', ref, { field: 'offset, length', given: `${offset}, ${length}` });
  if (!knownFallocateMode(mode))
    return new Failure('EOPNOTSUPP', 'FALLOCATE_MODE', ref, { field: 'mode', given: `0x${mode.toString(16)}` });
  if (!writable(file)) return notOpenFor('WRITABLE', ref, file);
  const type = file.ops.stat().mode & S_IFMT;
  if (type === S_IFIFO) return new Failure('ESPIPE', 'FILE_NOT_SEEKABLE', ref, { is: file.ops.name });
  if (type !== S_IFREG) return new Failure('ENODEV', 'FILE_NOT_REGULAR', ref, { is: file.ops.name });
  return offset + length > OFFSET_MAX ? tooBig('offset, length', offset + length, ref) : null;
};

/** One operation at a time: punching needs KEEP_SIZE, collapsing and inserting forbid it. */
const knownFallocateMode = (mode: number): boolean => {
  const keepSize = (mode & FALLOC_FL.KEEP_SIZE) !== 0;
  switch (mode & ~FALLOC_FL.KEEP_SIZE) {
    case 0:
    case FALLOC_FL.UNSHARE_RANGE:
    case FALLOC_FL.ZERO_RANGE:
      return true;
    case FALLOC_FL.PUNCH_HOLE:
      return keepSize;
    case FALLOC_FL.COLLAPSE_RANGE:
    case FALLOC_FL.INSERT_RANGE:
      return !keepSize;
    default:
      return false;
  }
};
