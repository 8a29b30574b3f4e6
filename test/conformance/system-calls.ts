/**
 * What the executor of the oracle's protocol needs from a host: the system calls of one thread, with Linux's numbers and
 * layouts, and no more. One implementation calls the kernel in this process, another one a daemon over gRPC.
 */

/** How a call ended: `ret` is -1 with an errno by name, else what the call returned. */
export interface Outcome {
  readonly ret: bigint;
  readonly errno: string | null;
}

export const succeeded = (ret: bigint | number): Outcome => ({ ret: BigInt(ret), errno: null });
export const failedWith = (errno: string): Outcome => ({ ret: -1n, errno });

/** A read: `ret` bytes in `data`. */
export interface ReadOutcome extends Outcome {
  readonly data: Uint8Array;
}

/** A touch of memory; `signal` is what the thread would have got for it. */
export interface TouchOutcome extends Outcome {
  readonly data: Uint8Array;
  readonly signal: 'SIGSEGV' | 'SIGBUS' | null;
}

export interface Stat {
  readonly size: number;
  readonly blocks: number;
  /** `st_mode`. */
  readonly mode: number;
}

export interface MmapCall {
  readonly length: bigint;
  readonly prot: number;
  readonly flags: number;
  readonly fd: number;
  readonly offset: bigint;
}

export interface Timer {
  readonly expired: Promise<void>;
  cancel(): void;
}

/** One thread of a process. A call that waits keeps its promise pending; the thread makes one call at a time. */
export interface SystemCalls {
  open(path: string, flags: number): Promise<Outcome>;
  close(fd: number): Promise<Outcome>;
  dup(fd: number): Promise<Outcome>;
  fcntl(fd: number, command: number, argument: number): Promise<Outcome>;
  /** @param arg 64 bits: a value, or an address in the process's memory */
  ioctl(fd: number, request: number, arg: bigint): Promise<Outcome>;
  read(fd: number, length: number): Promise<ReadOutcome>;
  write(fd: number, bytes: Uint8Array): Promise<Outcome>;
  pread(fd: number, length: number, offset: bigint): Promise<ReadOutcome>;
  pwrite(fd: number, bytes: Uint8Array, offset: bigint): Promise<Outcome>;
  lseek(fd: number, offset: bigint, whence: number): Promise<Outcome>;
  fallocate(fd: number, mode: number, offset: bigint, length: bigint): Promise<Outcome>;
  ftruncate(fd: number, length: bigint): Promise<Outcome>;
  fstat(fd: number): Promise<Outcome & { readonly stat: Stat | null }>;
  /** The link at /proc/self/fd. */
  describe(fd: number): Promise<Outcome & { readonly link: string }>;
  /** `ret` is the number of descriptors with events, `revents` those of the one asked for. */
  poll(fd: number, events: number, timeoutMs: number): Promise<Outcome & { readonly revents: number }>;
  /** `ret` is the end to read from. */
  pipe(flags: number): Promise<Outcome & { readonly writer: number }>;
  eventfd(initial: number, flags: number): Promise<Outcome>;
  mmap(call: MmapCall): Promise<Outcome>;
  munmap(address: bigint, length: bigint): Promise<Outcome>;
  mprotect(address: bigint, length: bigint, prot: number): Promise<Outcome>;
  madvise(address: bigint, length: bigint, advice: number): Promise<Outcome>;
  load(address: bigint, length: number): Promise<TouchOutcome>;
  store(address: bigint, bytes: Uint8Array): Promise<TouchOutcome>;
  /** `pthread_sigmask`: blocks or unblocks one signal. */
  blockSignal(signo: number, block: boolean): Promise<Outcome>;
  /** `pthread_kill` of this thread, from wherever. */
  signal(signo: number): Promise<Outcome>;
  /** Another thread of the same process. */
  thread(): SystemCalls;
  /** A child with a copy of descriptors and memory, and its only thread. */
  fork(): Promise<SystemCalls>;
  /** Ends the process of this thread. */
  exit(): Promise<void>;
  /** Time passes, the host's and the executor's, until the timer expires or is cancelled. */
  timer(ms: number): Timer;
}
