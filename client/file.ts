import type { FileServiceReadResponse } from '../gen/messages.js';
import { FileService } from '../gen/services.js';
import { withForms } from './forms.js';
import { Handle } from './handle.js';
import { bare, ioctl, out, ret } from './syscall.js';

/** The system calls on an open file. */
export const fileCalls = {
  /**
   * read(2), or pread(2) with an offset.
   * Errno: EINVAL (a file that cannot be read), ESPIPE (no offsets here), EAGAIN (O_NONBLOCK), EINTR, EISDIR.
   * @param count bytes, at most 1 MiB
   */
  read: ioctl(
    FileService.read,
    (fd, count: number, offset?: number) => ({ fd, count, offset }),
    ({ data }: FileServiceReadResponse) => data,
  ),
  /**
   * write(2), or pwrite(2) with an offset: the number of bytes written.
   * Errno: EINVAL (a file that cannot be written), ESPIPE (no offsets here), EAGAIN (O_NONBLOCK), EINTR, EPIPE, ENOSPC, EFBIG.
   * @param raw at most 1 MiB
   */
  write: ioctl(FileService.write, (fd, raw: Uint8Array, offset?: number) => ({ fd, raw, offset }), ret),
  /**
   * fallocate(2).
   * Errno: EINVAL (range, alignment), EOPNOTSUPP (mode), ESPIPE, ENODEV, EFBIG, EINTR, ENOSPC.
   * @param mode bits of FALLOC_FL; offset and len in bytes
   */
  fallocate: ioctl(FileService.fallocate, (fd, mode: number, offset: number, len: number) => ({ fd, mode, offset, len }), ret),
  /**
   * ftruncate(2).
   * Errno: EINVAL (negative; not such a file), EFBIG, EPERM (seal).
   * @param length bytes
   */
  ftruncate: ioctl(FileService.ftruncate, (fd, length: number) => ({ fd, length }), ret),
  /** fstat(2). */
  fstat: ioctl(FileService.fstat, bare, out('stat')),
  /**
   * lseek(2): the new offset, in bytes.
   * Errno: ESPIPE (no offsets here), EINVAL (whence, negative result), ENXIO (SEEK_DATA or SEEK_HOLE past the end).
   * @param whence one of SEEK
   */
  lseek: ioctl(FileService.lseek, (fd, offset: number, whence: number) => ({ fd, offset, whence }), ret),
  /**
   * fcntl(2); the value is as there.
   * Errno: EINVAL (cmd, arg), EMFILE, EPERM (seal).
   * @param cmd one of F
   */
  fcntl: ioctl(FileService.fcntl, (fd, cmd: number, arg: number = 0) => ({ fd, cmd, arg }), ret),
} as const;

/** An open file of a process: a memfd, one end of a pipe, the statistics of a VM. */
export class File extends withForms(class extends Handle {}, fileCalls) {}
