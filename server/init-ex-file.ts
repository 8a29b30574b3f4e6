import { closeSync, constants, fsyncSync, openSync, readSync, writeSync } from 'node:fs';
import type { InitExFile } from './kernel/drivers/ccp/init-ex.js';
import { ERRNO, type Errno } from './kernel/errno.js';
import type { Log } from './log.js';

const OWNER_ONLY = 0o600;

const isErrno = (code: unknown): code is Errno => typeof code === 'string' && Object.hasOwn(ERRNO, code);

/** Of what node:fs has thrown. */
const errnoOf = (error: unknown): Errno =>
  error instanceof Error && 'code' in error && isErrno(error.code) ? error.code : 'EIO';

/** `kernel_read`: as much as there is, up to `length`. */
const readAll = (fd: number, length: number): Uint8Array => {
  const bytes = Buffer.alloc(length);
  let done = 0;
  for (;;) {
    const count = readSync(fd, bytes, done, length - done, done);
    done += count;
    if (count === 0 || done === length) return bytes.subarray(0, done);
  }
};

const open = (path: string, flags: number): number | Errno => {
  try {
    return openSync(path, flags, OWNER_ONLY);
  } catch (error) {
    return errnoOf(error);
  }
};

/** The file of `--init-ex-path`. What the kernel says about it in its own log is said in the daemon's. */
export const openInitExFile = (path: string, log: Log): InitExFile => ({
  path,

  read: (length) => {
    const fd = open(path, constants.O_RDONLY);
    if (fd === 'ENOENT') log.info('SEV: the file of --init-ex-path does not exist and will be created later', { path });
    else if (typeof fd === 'string') log.warn('SEV: the file of --init-ex-path cannot be opened', { path, errno: fd });
    if (typeof fd === 'string') return fd;
    try {
      const bytes = readAll(fd, length);
      if (bytes.length < length)
        log.warn('SEV: the file of --init-ex-path is too short', { path, bytes: bytes.length, expected: length });
      return bytes;
    } catch (error) {
      log.warn('SEV: the file of --init-ex-path cannot be read', { path, errno: errnoOf(error) });
      return new Uint8Array(0);
    } finally {
      closeSync(fd);
    }
  },

  write: (bytes) => {
    const fd = open(path, constants.O_CREAT | constants.O_WRONLY);
    if (typeof fd === 'string') {
      log.warn('SEV: the file of --init-ex-path cannot be opened for writing', { path, errno: fd });
      return fd;
    }
    try {
      for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done, done);
      fsyncSync(fd);
      return null;
    } catch (error) {
      log.warn('SEV: the file of --init-ex-path cannot be written', { path, errno: errnoOf(error) });
      // `sev_write_init_ex_file` keeps the errno of opening only.
      return 'EIO';
    } finally {
      closeSync(fd);
    }
  },
});
