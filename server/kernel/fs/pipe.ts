import { Failure, type Result } from '../failure.js';
import type { Task } from '../sched/task.js';
import { type MightSleep, WaitQueue } from '../sched/wait.js';
import { File, type FileOperations, type FileStat, OPEN, POLL } from './file.js';

/** Bytes that a pipe holds: PIPE_DEF_BUFFERS pages. */
const PIPE_CAPACITY = 16 * 4096;
/** A write of at most so many bytes is not torn apart. */
const PIPE_BUF = 4096;
/** S_IFIFO, readable and writable by the owner. */
const FIFO_MODE = 0o010600;

/** `struct pipe_inode_info`: the bytes between the two ends. */
class Pipe {
  private chunks: Uint8Array[] = [];
  private held = 0;
  readers = 1;
  writers = 1;
  readonly queue = new WaitQueue();

  constructor(readonly inode: number) {}

  get length(): number {
    return this.held;
  }

  get room(): number {
    return PIPE_CAPACITY - this.held;
  }

  push(bytes: Uint8Array): void {
    this.chunks.push(bytes.slice());
    this.held += bytes.length;
    this.queue.wakeAll(POLL.IN);
  }

  pull(length: number): Uint8Array {
    const out = new Uint8Array(Math.min(length, this.held));
    let done = 0;
    while (done < out.length) {
      const [chunk] = this.chunks;
      if (chunk === undefined) throw new Error('a pipe holds fewer bytes than it counts');
      const part = chunk.subarray(0, out.length - done);
      out.set(part, done);
      done += part.length;
      if (part.length === chunk.length) this.chunks.shift();
      else this.chunks[0] = chunk.subarray(part.length);
    }
    this.held -= done;
    if (done > 0) this.queue.wakeAll(POLL.OUT);
    return out;
  }
}

abstract class PipeEnd implements FileOperations {
  constructor(protected readonly pipe: Pipe) {}

  get name(): string {
    return `pipe:[${this.pipe.inode}]`;
  }

  get pollQueue(): WaitQueue {
    return this.pipe.queue;
  }

  stat(): FileStat {
    return { size: 0, blksize: 4096, blocks: 0, inode: this.pipe.inode, mode: FIFO_MODE };
  }

  /** EAGAIN on a non-blocking end, else an interruptible wait for the other end. */
  protected *wait(current: Task, file: File, site: string): MightSleep<Failure | null> {
    if ((file.flags & OPEN.NONBLOCK) !== 0) return new Failure('EAGAIN', 'PIPE_WOULD_BLOCK', site);
    if (current.thread.signalPending || (yield { kind: 'interruptible', queue: this.pipe.queue, site }) === 'signal')
      return new Failure('EINTR', 'SIGNAL_PENDING', site);
    return null;
  }
}

class ReadEnd extends PipeEnd {
  /** `pipe_read`: nothing once every writer is gone. */
  *read(current: Task, file: File, length: number): MightSleep<Result<Uint8Array>> {
    while (length > 0 && this.pipe.length === 0 && this.pipe.writers > 0) {
      const failure = yield* this.wait(current, file, 'pipe_read');
      if (failure !== null) return failure;
    }
    return this.pipe.pull(length);
  }

  poll(): number {
    return (this.pipe.length > 0 ? POLL.IN : 0) | (this.pipe.writers === 0 ? POLL.HUP : 0);
  }

  *release(): MightSleep<void> {
    this.pipe.readers--;
    this.pipe.queue.wakeAll(POLL.ERR);
  }
}

class WriteEnd extends PipeEnd {
  /**
   * `pipe_write`: EPIPE without a reader; SIGPIPE is taken as ignored. What has been written before a signal or a full
   * non-blocking pipe is the result.
   */
  *write(current: Task, file: File, bytes: Uint8Array): MightSleep<Result<number>> {
    let done = 0;
    while (done < bytes.length || (bytes.length === 0 && this.pipe.readers === 0)) {
      if (this.pipe.readers === 0) return done > 0 ? done : new Failure('EPIPE', 'PIPE_WITHOUT_READER', 'pipe_write');
      const left = bytes.length - done;
      const needed = bytes.length <= PIPE_BUF ? left : 1;
      if (this.pipe.room >= needed) {
        const count = Math.min(left, this.pipe.room);
        this.pipe.push(bytes.subarray(done, done + count));
        done += count;
        continue;
      }
      const failure = yield* this.wait(current, file, 'pipe_write');
      if (failure !== null) return done > 0 ? done : failure;
    }
    return done;
  }

  poll(): number {
    return (this.pipe.room >= PIPE_BUF ? POLL.OUT : 0) | (this.pipe.readers === 0 ? POLL.ERR : 0);
  }

  *release(): MightSleep<void> {
    this.pipe.writers--;
    this.pipe.queue.wakeAll(POLL.HUP);
  }
}

/** `create_pipe_files`: both ends of a new pipe. @param status O_NONBLOCK or 0 */
export const createPipe = (inode: number, status: number): { readonly reader: File; readonly writer: File } => {
  const pipe = new Pipe(inode);
  return {
    reader: new File(new ReadEnd(pipe), OPEN.RDONLY | status),
    writer: new File(new WriteEnd(pipe), OPEN.WRONLY | status),
  };
};
