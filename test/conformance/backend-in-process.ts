import { Failure, failed, type Result } from '../../server/kernel/failure.js';
import { poll } from '../../server/kernel/fs/poll.js';
import type { Kernel } from '../../server/kernel/kernel.js';
import type { AddressSpace } from '../../server/kernel/mm/address-space.js';
import type { Process } from '../../server/kernel/process/process.js';
import type { Thread } from '../../server/kernel/process/thread.js';
import type { Task } from '../../server/kernel/sched/task.js';
import { type MightSleep, stepsOf } from '../../server/kernel/sched/wait.js';
import { fallocate, ftruncate } from '../../server/kernel/syscalls/allocate.js';
import { close, describeFd, dup, fcntl, fstat, open } from '../../server/kernel/syscalls/descriptors.js';
import { eventfd, pipe } from '../../server/kernel/syscalls/events.js';
import { lseek, pread, pwrite, read, write } from '../../server/kernel/syscalls/io.js';
import { ioctl } from '../../server/kernel/syscalls/ioctl.js';
import { madvise, mmap, mprotect, munmap, readMemory, writeMemory } from '../../server/kernel/syscalls/memory.js';
import { fork, kill, SIG, sigprocmask } from '../../server/kernel/syscalls/process.js';
import {
  failedWith,
  type MmapCall,
  type Outcome,
  type ReadOutcome,
  type Stat,
  type SystemCalls,
  succeeded,
  type Timer,
  type TouchOutcome,
} from './system-calls.js';
import type { VirtualTime } from './virtual-time.js';

const NO_BYTES = new Uint8Array(0);

const outcome = (result: Result<number>): Outcome => (failed(result) ? failedWith(result.errno) : succeeded(result));

const readOutcome = (result: Result<Uint8Array>): ReadOutcome =>
  failed(result) ? { ...failedWith(result.errno), data: NO_BYTES } : { ...succeeded(result.length), data: result };

const touchOutcome = (failure: Failure | null, data: Uint8Array): TouchOutcome =>
  failure === null
    ? { ...succeeded(0), data, signal: null }
    : { ...failedWith(failure.errno), data, signal: failure.reason === 'BAD_ADDRESS' ? 'SIGSEGV' : 'SIGBUS' };

/** A system call that never waits, as a task. */
const atOnce = <T>(body: (current: Task) => T) =>
  function* call(current: Task): MightSleep<T> {
    return body(current);
  };

/** How a process reaches its own memory, if not as the kernel does. */
export interface OwnMemory {
  load(mm: AddressSpace, address: bigint, length: number): Result<Uint8Array>;
  store(mm: AddressSpace, address: bigint, bytes: Uint8Array): Failure | null;
}

/** System calls of a thread of a simulated kernel in this process. */
export class InProcessCalls implements SystemCalls {
  private readonly self: Thread;

  constructor(
    private readonly kernel: Kernel,
    private readonly time: VirtualTime,
    private readonly process: Process,
    /** Null: every touch is a call. */
    private readonly memory: OwnMemory | null = null,
  ) {
    this.self = process.thread(kernel.scheduler.allocateTid());
  }

  open = (path: string, flags: number): Promise<Outcome> =>
    this.call('open', (current) => open(this.kernel, current, path, flags));
  close = (fd: number): Promise<Outcome> => this.call('close', (current) => close(current, fd));
  dup = (fd: number): Promise<Outcome> => this.call('dup', (current) => dup(current, fd));
  fcntl = (fd: number, command: number, argument: number): Promise<Outcome> =>
    this.call('fcntl', (current) => fcntl(current, fd, command, argument));

  ioctl(fd: number, request: number, arg: bigint): Promise<Outcome> {
    const { mm } = this;
    return this.call(`ioctl 0x${request.toString(16)}`, (current) => ioctl(current, fd, request, { value: arg, user: mm }));
  }

  async read(fd: number, length: number): Promise<ReadOutcome> {
    return readOutcome(await this.start('read', (current) => read(current, fd, length)));
  }

  write = (fd: number, bytes: Uint8Array): Promise<Outcome> => this.call('write', (current) => write(current, fd, bytes));

  async pread(fd: number, length: number, offset: bigint): Promise<ReadOutcome> {
    return readOutcome(
      await this.start(
        'pread64',
        atOnce((current) => pread(current, fd, length, offset)),
      ),
    );
  }

  pwrite = (fd: number, bytes: Uint8Array, offset: bigint): Promise<Outcome> =>
    this.call(
      'pwrite64',
      atOnce((current) => pwrite(current, fd, bytes, offset)),
    );
  lseek = (fd: number, offset: bigint, whence: number): Promise<Outcome> =>
    this.call(
      'lseek',
      atOnce((current) => lseek(current, fd, offset, whence)),
    );
  fallocate = (fd: number, mode: number, offset: bigint, length: bigint): Promise<Outcome> =>
    this.call('fallocate', (current) => fallocate(current, fd, mode, offset, length));
  ftruncate = (fd: number, length: bigint): Promise<Outcome> =>
    this.call(
      'ftruncate',
      atOnce((current) => ftruncate(current, fd, length)),
    );

  async fstat(fd: number): Promise<Outcome & { readonly stat: Stat | null }> {
    const stat = await this.start(
      'fstat',
      atOnce((current) => fstat(current, fd)),
    );
    return failed(stat) ? { ...failedWith(stat.errno), stat: null } : { ...succeeded(0), stat };
  }

  async describe(fd: number): Promise<Outcome & { readonly link: string }> {
    const link = await this.start(
      'readlink',
      atOnce((current) => describeFd(current, fd)),
    );
    return failed(link) ? { ...failedWith(link.errno), link: '' } : { ...succeeded(0), link };
  }

  async poll(fd: number, events: number, timeoutMs: number): Promise<Outcome & { readonly revents: number }> {
    const found = await this.start('poll', (current) => poll(this.kernel, current, [{ fd, events }], timeoutMs));
    if (failed(found)) return { ...failedWith(found.errno), revents: 0 };
    const [revents = 0] = found;
    return { ...succeeded(revents === 0 ? 0 : 1), revents };
  }

  async pipe(flags: number): Promise<Outcome & { readonly writer: number }> {
    const ends = await this.start('pipe2', (current) => pipe(this.kernel, current, flags));
    return failed(ends) ? { ...failedWith(ends.errno), writer: -1 } : { ...succeeded(ends.reader), writer: ends.writer };
  }

  eventfd = (initial: number, flags: number): Promise<Outcome> =>
    this.call('eventfd2', (current) => eventfd(current, initial, flags));
  mmap = (call: MmapCall): Promise<Outcome> =>
    this.call(
      'mmap',
      atOnce((current) => mmap(current, { address: 0n, ...call })),
    );
  munmap = (address: bigint, length: bigint): Promise<Outcome> =>
    this.call(
      'munmap',
      atOnce((current) => munmap(current, address, length)),
    );
  mprotect = (address: bigint, length: bigint, prot: number): Promise<Outcome> =>
    this.call(
      'mprotect',
      atOnce((current) => mprotect(current, address, length, prot)),
    );
  madvise = (address: bigint, length: bigint, advice: number): Promise<Outcome> =>
    this.call(
      'madvise',
      atOnce((current) => madvise(current, address, length, advice)),
    );

  async load(address: bigint, length: number): Promise<TouchOutcome> {
    const data =
      this.memory?.load(this.mm, address, length) ??
      (await this.start('load', (current) => stepsOf(readMemory(current, address, length))));
    return data instanceof Failure ? touchOutcome(data, NO_BYTES) : touchOutcome(null, data);
  }

  async store(address: bigint, bytes: Uint8Array): Promise<TouchOutcome> {
    const failure =
      this.memory !== null
        ? this.memory.store(this.mm, address, bytes)
        : await this.start(
            'store',
            atOnce((current) => writeMemory(current, address, bytes)),
          );
    return touchOutcome(failure, NO_BYTES);
  }

  blockSignal = (signo: number, block: boolean): Promise<Outcome> =>
    this.call(
      'rt_sigprocmask',
      atOnce((current) => sigprocmask(current, block ? SIG.BLOCK : SIG.UNBLOCK, [signo])),
    );

  async signal(signo: number): Promise<Outcome> {
    return outcome(kill(this.kernel, this.process, signo, this.self.tid));
  }

  thread(): InProcessCalls {
    return new InProcessCalls(this.kernel, this.time, this.process, this.memory);
  }

  async fork(): Promise<InProcessCalls> {
    const child = await this.start(
      'fork',
      atOnce((current) => fork(this.kernel, current)),
    );
    if (failed(child)) throw new Error(`fork: ${child.errno}`);
    return new InProcessCalls(this.kernel, this.time, child, this.memory);
  }

  exit(): Promise<void> {
    return new Promise((resolve) => this.kernel.exit(this.process, resolve));
  }

  timer(ms: number): Timer {
    return this.time.timer(ms);
  }

  private get mm(): AddressSpace {
    const { mm } = this.process;
    if (mm === null) throw new Error('a kernel thread makes no system calls');
    return mm;
  }

  private start<T>(label: string, body: (current: Task) => MightSleep<T>): Promise<T> {
    return this.time.call(this.process, this.self, label, body);
  }

  private async call(label: string, body: (current: Task) => MightSleep<Result<number>>): Promise<Outcome> {
    return outcome(await this.start(label, body));
  }
}
