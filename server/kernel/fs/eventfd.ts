import { Failure, type Result } from '../failure.js';
import type { Task } from '../sched/task.js';
import { type MightSleep, WaitQueue } from '../sched/wait.js';
import { ANON_INODE_STAT, File, type FileOperations, type FileStat, noopLlseek, OPEN, POLL } from './file.js';

/** Flags of eventfd2 beside O_CLOEXEC and O_NONBLOCK. */
export const EFD_SEMAPHORE = 1;

const COUNT_MAX = 0xffff_ffff_ffff_ffffn;
/** Bytes of a read or write: the count as a little-endian u64. */
const COUNT_SIZE = 8;

/**
 * `struct eventfd_ctx` (fs/eventfd.c): a counter that can be waited for. It outlives its file for whoever in the kernel
 * signals it (an ioeventfd) or waits for it (an irqfd).
 */
export class EventFd implements FileOperations {
  readonly name = 'anon_inode:[eventfd]';
  readonly llseek = noopLlseek;
  /**
   * Readers, writers, pollers and irqfds. Wakes with POLL.IN when the count has grown, POLL.OUT when it has shrunk,
   * POLL.HUP when the file's last reference is gone.
   */
  readonly queue = new WaitQueue();
  readonly pollQueue = this.queue;

  constructor(
    private count: bigint,
    private readonly semaphore: boolean,
  ) {}

  /** What a read would find; 0n: it would wait. */
  get value(): bigint {
    return this.count;
  }

  /** `eventfd_signal`: adds 1; a counter that is full goes to 2^64-1, which reads as POLLERR. */
  signal(): void {
    if (this.count < COUNT_MAX) this.count++;
    this.queue.wakeAll(POLL.IN);
  }

  /** `eventfd_ctx_do_read`: what one read takes from the counter, 0n if there is nothing. Wakes nobody. */
  take(): bigint {
    const taken = this.semaphore && this.count > 0n ? 1n : this.count;
    this.count -= taken;
    return taken;
  }

  /** Takes so many of what is counted, at most all: somebody else counts them now. */
  withdraw(count: bigint): void {
    const taken = count < this.count ? count : this.count;
    this.count -= taken;
    if (taken > 0n) this.queue.wakeAll(POLL.OUT);
  }

  *read(current: Task, file: File, length: number): MightSleep<Result<Uint8Array>> {
    if (length < COUNT_SIZE)
      return new Failure('EINVAL', 'EVENTFD_BUFFER_TOO_SHORT', 'eventfd_read', { field: 'length', given: String(length) });
    const failure = yield* this.waitUntil(current, file, () => this.count > 0n, 'eventfd_read');
    if (failure !== null) return failure;
    const out = new Uint8Array(COUNT_SIZE);
    new DataView(out.buffer).setBigUint64(0, this.take(), true);
    this.queue.wakeAll(POLL.OUT);
    return out;
  }

  *write(current: Task, file: File, bytes: Uint8Array): MightSleep<Result<number>> {
    if (bytes.length !== COUNT_SIZE)
      return new Failure('EINVAL', 'EVENTFD_WRITE_LENGTH', 'eventfd_write', { given: String(bytes.length), allowed: '8' });
    const added = new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true);
    if (added === COUNT_MAX) return new Failure('EINVAL', 'EVENTFD_VALUE', 'eventfd_write', { given: `0x${added.toString(16)}` });
    const failure = yield* this.waitUntil(current, file, () => COUNT_MAX - this.count > added, 'eventfd_write');
    if (failure !== null) return failure;
    this.count += added;
    this.queue.wakeAll(POLL.IN);
    return COUNT_SIZE;
  }

  poll(): number {
    const readable = this.count > 0n ? POLL.IN : 0;
    const writable = COUNT_MAX - 1n > this.count ? POLL.OUT : 0;
    return readable | writable | (this.count === COUNT_MAX ? POLL.ERR : 0);
  }

  stat(): FileStat {
    return ANON_INODE_STAT;
  }

  *release(): MightSleep<void> {
    this.queue.wakeAll(POLL.HUP);
  }

  private *waitUntil(current: Task, file: File, ready: () => boolean, site: string): MightSleep<Failure | null> {
    while (!ready()) {
      if ((file.flags & OPEN.NONBLOCK) !== 0)
        return new Failure('EAGAIN', 'EVENTFD_WOULD_BLOCK', site, { count: String(this.count) });
      if (current.thread.signalPending || (yield { kind: 'interruptible', queue: this.queue, site }) === 'signal')
        return new Failure('EINTR', 'SIGNAL_PENDING', site);
    }
    return null;
  }
}

/** `eventfd2`: a file over a new counter. EINVAL for unknown flags. */
export const createEventFd = (initial: number, flags: number): Result<File> => {
  if ((flags & ~(EFD_SEMAPHORE | OPEN.CLOEXEC | OPEN.NONBLOCK)) !== 0)
    return new Failure('EINVAL', 'EVENTFD_FLAGS', 'do_eventfd', { field: 'flags', given: `0x${flags.toString(16)}` });
  return new File(new EventFd(BigInt(initial), (flags & EFD_SEMAPHORE) !== 0), OPEN.RDWR | (flags & OPEN.NONBLOCK));
};

/** `eventfd_ctx_fdget`: EBADF for a descriptor that is not open, EINVAL for one that is no eventfd. */
export const eventFdGet = (current: Task, fd: number, field: string): Result<EventFd> => {
  const file = current.process.files.get(fd, 'eventfd_ctx_fdget');
  if (file instanceof Failure) return file.with({ field });
  if (file.ops instanceof EventFd) return file.ops;
  return new Failure('EINVAL', 'FD_NOT_EVENTFD', 'eventfd_ctx_fileget', { field, fd: String(fd), is: file.ops.name });
};
