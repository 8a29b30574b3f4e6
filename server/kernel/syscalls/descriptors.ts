import { Failure, failed, type Result } from '../failure.js';
import { type File, type FileStat, OPEN } from '../fs/file.js';
import type { Kernel } from '../kernel.js';
import type { Process } from '../process/process.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { F, FD_CLOEXEC } from '../uapi/fcntl.js';

/** Status flags that F_SETFL can change here. */
const SETFL_MASK = OPEN.NONBLOCK;

/** Puts a new file into the caller's table; when the table is full the file is closed again. */
export function* installFile(current: Task, file: Result<File>, closeOnExec: boolean): MightSleep<Result<number>> {
  if (failed(file)) return file;
  const fd = current.process.files.install(file, closeOnExec);
  if (failed(fd)) yield* file.put(current);
  return fd;
}

/**
 * `openat`: opens a device by its path. ENOENT: there is no such file here; EINVAL: an access mode that is none. Neither
 * `/dev/kvm` nor `/dev/sev` looks at the mode later.
 * @param flags OPEN
 */
export function* open(kernel: Kernel, current: Task, path: string, flags: number): MightSleep<Result<number>> {
  if ((flags & OPEN.ACCMODE) === OPEN.ACCMODE)
    return new Failure('EINVAL', 'OPEN_ACCESS_MODE', 'build_open_flags', { field: 'flags', given: `0x${flags.toString(16)}` });
  const device = kernel.devices.get(path);
  if (device === undefined) return new Failure('ENOENT', 'NO_SUCH_FILE', 'do_sys_openat2', { field: 'path', given: path });
  return yield* installFile(current, device(flags & (OPEN.ACCMODE | OPEN.NONBLOCK)), (flags & OPEN.CLOEXEC) !== 0);
}

/** `close`: EBADF if it is not open. Whatever the release does belongs to this call. */
export function* close(current: Task, fd: number): MightSleep<Result<number>> {
  return (yield* current.process.files.close(current, fd)) ?? 0;
}

/** `dup`: another descriptor of the same file, without close-on-exec. */
export function* dup(current: Task, fd: number): MightSleep<Result<number>> {
  return yield* duplicate(current, current.process, fd, false, 'ksys_dup');
}

/**
 * `dup3`: the same file under `newFd`, which is closed first if it is open. EINVAL: both numbers are the same, or flags
 * other than O_CLOEXEC; EBADF: `fd` is not open, or `newFd` is no possible number.
 */
export function* dup3(current: Task, fd: number, newFd: number, flags: number): MightSleep<Result<number>> {
  const { files } = current.process;
  if ((flags & ~OPEN.CLOEXEC) !== 0)
    return new Failure('EINVAL', 'DUP_FLAGS', 'ksys_dup3', {
      field: 'flags',
      given: `0x${flags.toString(16)}`,
      allowed: 'O_CLOEXEC',
    });
  if (fd === newFd) return new Failure('EINVAL', 'DUP_ONTO_ITSELF', 'ksys_dup3', { field: 'newfd', given: String(newFd) });
  const file = files.get(fd, 'ksys_dup3');
  if (failed(file)) return file;
  const before = files.replace(newFd, file.get(), (flags & OPEN.CLOEXEC) !== 0);
  if (failed(before)) yield* file.put(current);
  else if (before !== null) yield* before.put(current);
  return failed(before) ? before : newFd;
}

/**
 * What SCM_RIGHTS or pidfd_getfd do: the receiver gets a descriptor of the caller's file, close-on-exec as pidfd_getfd
 * has it. Whether it wants one is not asked here. Returns the receiver's number.
 */
export function* sendFd(current: Task, fd: number, receiver: Process): MightSleep<Result<number>> {
  if (receiver.state.kind !== 'running')
    return new Failure('ESRCH', 'PROCESS_EXITED', 'receive_fd', { pid: String(receiver.pid) });
  return yield* duplicate(current, receiver, fd, true, 'receive_fd');
}

/** `fcntl`: F_DUPFD, F_DUPFD_CLOEXEC, and the flags of descriptor and file. EINVAL for any other command. */
export function* fcntl(current: Task, fd: number, command: number, argument: number): MightSleep<Result<number>> {
  const { files } = current.process;
  const file = files.get(fd, 'do_fcntl');
  if (failed(file)) return file;
  switch (command) {
    case F.DUPFD:
    case F.DUPFD_CLOEXEC:
      return yield* duplicate(current, current.process, fd, command === F.DUPFD_CLOEXEC, 'f_dupfd', argument);
    case F.GETFD:
      return files.closeOnExec(fd) === true ? FD_CLOEXEC : 0;
    case F.SETFD:
      return files.setCloseOnExec(fd, (argument & FD_CLOEXEC) !== 0) ?? 0;
    case F.GETFL:
      return file.flags;
    case F.SETFL:
      file.flags = (file.flags & ~SETFL_MASK) | (argument & SETFL_MASK);
      return 0;
    default:
      return new Failure('EINVAL', 'FCNTL_COMMAND', 'do_fcntl', { field: 'cmd', given: String(command) });
  }
}

/** `fstat`. */
export const fstat = (current: Task, fd: number): Result<FileStat> => {
  const file = current.process.files.get(fd, 'vfs_fstat');
  return failed(file) ? file : file.ops.stat();
};

/** What `readlink` of /proc/self/fd/N shows. */
export const describeFd = (current: Task, fd: number): Result<string> => {
  const file = current.process.files.get(fd, 'proc_fd_link');
  return failed(file) ? file : file.ops.name;
};

function* duplicate(
  current: Task,
  receiver: Process,
  fd: number,
  closeOnExec: boolean,
  kernelRef: string,
  lowest = 0,
): MightSleep<Result<number>> {
  const file = current.process.files.get(fd, kernelRef);
  if (failed(file)) return file;
  const copy = receiver.files.install(file.get(), closeOnExec, lowest);
  if (failed(copy)) yield* file.put(current);
  return copy;
}
