import { Failure, failed, type Result } from '../failure.js';
import { type File, OPEN } from '../fs/file.js';
import type { IoctlArg } from '../fs/ioctl-arg.js';
import { PageMissing, withMissingPages } from '../mm/missing-pages.js';
import type { Task } from '../sched/task.js';
import { type MaySleep, type MightSleep, stepsOf } from '../sched/wait.js';
import { FIOCLEX, FIONBIO, FIONCLEX } from '../uapi/fcntl.js';

/**
 * `ioctl`: what every file knows (FIOCLEX, FIONCLEX, FIONBIO), else the file's own. ENOTTY: the file takes none.
 * @param request 32 bits, unsigned; the kernel looks at no more
 */
export const ioctlMaySleep = (current: Task, fd: number, request: number, arg: IoctlArg): MaySleep<Result<number>> => {
  const file = current.process.files.get(fd, 'sys_ioctl');
  if (failed(file)) return file;
  const result = vfsIoctl(current, fd, file, request, arg);
  if (typeof result === 'number') return result;
  if (failed(result) && !(result instanceof PageMissing)) return result;
  return holding(current, fd, file, request, arg, result);
};

/** The same for whoever waits anyway. */
export const ioctl = (current: Task, fd: number, request: number, arg: IoctlArg): MightSleep<Result<number>> =>
  stepsOf(ioctlMaySleep(current, fd, request, arg));

/** A call that may wait: the file stays as long, whoever closes the descriptor meanwhile. */
function* holding(
  current: Task,
  fd: number,
  file: File,
  request: number,
  arg: IoctlArg,
  begun: MightSleep<Result<number>> | PageMissing,
): MightSleep<Result<number>> {
  file.get();
  const result = begun instanceof PageMissing ? begun : yield* begun;
  // An argument lies in a page whose contents are still to come. The real kernel sleeps in copy_from_user(); here the call is
  // made again from its start, which is the same, since a handler reads its arguments before it does anything.
  const outcome =
    result instanceof PageMissing
      ? yield* withMissingPages(result, () => stepsOf(vfsIoctl(current, fd, file, request, arg)))
      : result;
  yield* file.put(current);
  return outcome;
}

const vfsIoctl = (current: Task, fd: number, file: File, request: number, arg: IoctlArg): MaySleep<Result<number>> => {
  if (request === FIOCLEX || request === FIONCLEX) return current.process.files.setCloseOnExec(fd, request === FIOCLEX) ?? 0;
  if (request === FIONBIO) return setNonBlocking(file, arg);
  if (file.ops.ioctl === undefined) return new Failure('ENOTTY', 'IOCTL_UNSUPPORTED', 'vfs_ioctl', { is: file.ops.name });
  return file.ops.ioctl(current, file, request, arg);
};

const setNonBlocking = (file: File, arg: IoctlArg): Result<number> => {
  const word = arg.user.copyIn(arg.value, 4);
  if (failed(word)) return word;
  const on = word.some((byte) => byte !== 0);
  file.flags = on ? file.flags | OPEN.NONBLOCK : file.flags & ~OPEN.NONBLOCK;
  return 0;
};
