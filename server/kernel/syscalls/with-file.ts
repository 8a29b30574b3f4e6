import { Failure, failed, type Result } from '../failure.js';
import { type File, OPEN } from '../fs/file.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';

/** Largest position that is kept exactly here; the kernel's own limit is 2^63 - 1. */
export const OFFSET_MAX = BigInt(Number.MAX_SAFE_INTEGER);

/**
 * `fdget` and `fdput` around a call that may wait: the file stays as long as the call needs it, whoever closes the
 * descriptor meanwhile.
 */
export function* withFile<T>(
  current: Task,
  fd: number,
  kernelRef: string,
  body: (file: File) => MightSleep<Result<T>>,
): MightSleep<Result<T>> {
  const file = current.process.files.get(fd, kernelRef);
  if (failed(file)) return file;
  file.get();
  const result = yield* body(file);
  yield* file.put(current);
  return result;
}

export const readable = (file: File): boolean => (file.flags & OPEN.ACCMODE) !== OPEN.WRONLY;
export const writable = (file: File): boolean => (file.flags & OPEN.ACCMODE) !== OPEN.RDONLY;

export const notOpenFor = (access: 'READABLE' | 'WRITABLE', kernelRef: string, file: File): Failure =>
  new Failure('EBADF', `FD_NOT_${access}`, kernelRef, { field: 'fd', is: file.ops.name });

/** The file has no such operation, and the call has no errno of its own for that. */
export const unsupported = (kernelRef: string, file: File): Failure =>
  new Failure('EINVAL', 'FILE_OPERATION_UNSUPPORTED', kernelRef, { field: 'fd', is: file.ops.name });

export const negative = (field: string, given: bigint, kernelRef: string): Failure =>
  new Failure('EINVAL', 'NEGATIVE_OFFSET', kernelRef, { field, given: String(given) });

export const tooBig = (field: string, given: bigint, kernelRef: string): Failure =>
  new Failure('EFBIG', 'OFFSET_TOO_LARGE', kernelRef, { field, given: String(given), limit: String(OFFSET_MAX) });
