import { Failure, failed, type Result } from '../failure.js';
import { createEventFd } from '../fs/eventfd.js';
import { OPEN } from '../fs/file.js';
import { createPipe } from '../fs/pipe.js';
import type { Kernel } from '../kernel.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { installFile } from './descriptors.js';

/** `eventfd2`. @param initial 32 bits, unsigned @param flags EFD_SEMAPHORE, O_NONBLOCK, O_CLOEXEC */
export function* eventfd(current: Task, initial: number, flags: number): MightSleep<Result<number>> {
  return yield* installFile(current, createEventFd(initial, flags), (flags & OPEN.CLOEXEC) !== 0);
}

/** `pipe2`: the descriptors to read from and to write to. EINVAL: flags other than O_CLOEXEC and O_NONBLOCK. */
export function* pipe(kernel: Kernel, current: Task, flags: number): MightSleep<Result<{ reader: number; writer: number }>> {
  if ((flags & ~(OPEN.CLOEXEC | OPEN.NONBLOCK)) !== 0)
    return new Failure('EINVAL', 'PIPE_FLAGS', 'do_pipe2', { field: 'flags', given: `0x${flags.toString(16)}` });
  const closeOnExec = (flags & OPEN.CLOEXEC) !== 0;
  const ends = createPipe(kernel.allocateInode(), flags & OPEN.NONBLOCK);
  const reader = yield* installFile(current, ends.reader, closeOnExec);
  if (failed(reader)) {
    yield* ends.writer.put(current);
    return reader;
  }
  const writer = yield* installFile(current, ends.writer, closeOnExec);
  if (!failed(writer)) return { reader, writer };
  yield* current.process.files.close(current, reader);
  return writer;
}
