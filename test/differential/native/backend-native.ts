import { constants } from 'node:os';
import { MAP, PROT } from '../../../server/kernel/uapi/mman.js';
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
} from '../../conformance/system-calls.js';
import { CALL, Channel, type NativeReply, type NativeRequest } from './channel.js';

/** x86-64 system call numbers (arch/x86/entry/syscalls/syscall_64.tbl). */
const SYS = {
  read: 0,
  write: 1,
  open: 2,
  close: 3,
  fstat: 5,
  poll: 7,
  lseek: 8,
  mmap: 9,
  mprotect: 10,
  munmap: 11,
  rt_sigprocmask: 14,
  ioctl: 16,
  pread64: 17,
  pwrite64: 18,
  madvise: 28,
  dup: 32,
  fcntl: 72,
  ftruncate: 77,
  readlink: 89,
  fallocate: 285,
  eventfd2: 290,
  pipe2: 293,
} as const;

const KVM_RUN = 0xae80;
const SIGSEGV = 11;
const SIG_BLOCK = 0n;
const SIG_UNBLOCK = 1n;
const SIGSET_BYTES = 8n;
const LINK_MAX = 256n;
const NO_BYTES = new Uint8Array(0);

const ERRNO_NAMES: ReadonlyMap<number, string> = new Map(
  Object.entries(constants.errno).flatMap(([name, number]) =>
    // Linux gives these the number of another name, which is the one that is shown.
    ['EWOULDBLOCK', 'ENOTSUP'].includes(name) ? [] : [[number, name]],
  ),
);

const outcome = ({ ret, error }: NativeReply): Outcome =>
  error === 0 ? succeeded(ret) : failedWith(ERRNO_NAMES.get(error) ?? `errno ${error}`);

const touchOutcome = ({ signal, bytes }: NativeReply): TouchOutcome =>
  signal === 0
    ? { ...succeeded(0), data: bytes, signal: null }
    : { ...failedWith('EFAULT'), data: bytes, signal: signal === SIGSEGV ? 'SIGSEGV' : 'SIGBUS' };

/** Bytes of a call's buffer, and the position of its address among the arguments, from 1. */
interface CallBytes {
  readonly pointer: number;
  readonly bytes?: Uint8Array;
  readonly out?: number;
}

/** What the threads of a process share. */
interface NativeProcess {
  threads: number;
}

/** System calls of a thread of a process on the kernel below this program. */
class NativeCalls implements SystemCalls {
  constructor(
    private readonly channel: Channel,
    private readonly process: NativeProcess,
    private readonly number: number,
  ) {}

  open = (path: string, flags: number): Promise<Outcome> =>
    this.call(SYS.open, [0n, BigInt(flags)], { pointer: 1, bytes: Buffer.from(`${path}\0`) });
  close = (fd: number): Promise<Outcome> => this.call(SYS.close, [BigInt(fd)]);
  dup = (fd: number): Promise<Outcome> => this.call(SYS.dup, [BigInt(fd)]);
  fcntl = (fd: number, command: number, argument: number): Promise<Outcome> =>
    this.call(SYS.fcntl, [BigInt(fd), BigInt(command), BigInt(argument)]);

  async ioctl(fd: number, request: number, arg: bigint): Promise<Outcome> {
    return outcome(await this.system(SYS.ioctl, [BigInt(fd), BigInt(request), arg], undefined, request === KVM_RUN));
  }

  async read(fd: number, length: number): Promise<ReadOutcome> {
    const reply = await this.system(SYS.read, [BigInt(fd), 0n, BigInt(length)], { pointer: 2, out: length }, true);
    return readOutcome(reply);
  }

  write = (fd: number, bytes: Uint8Array): Promise<Outcome> =>
    this.call(SYS.write, [BigInt(fd), 0n, BigInt(bytes.length)], { pointer: 2, bytes });

  async pread(fd: number, length: number, offset: bigint): Promise<ReadOutcome> {
    return readOutcome(await this.system(SYS.pread64, [BigInt(fd), 0n, BigInt(length), offset], { pointer: 2, out: length }));
  }

  pwrite = (fd: number, bytes: Uint8Array, offset: bigint): Promise<Outcome> =>
    this.call(SYS.pwrite64, [BigInt(fd), 0n, BigInt(bytes.length), offset], { pointer: 2, bytes });
  lseek = (fd: number, offset: bigint, whence: number): Promise<Outcome> =>
    this.call(SYS.lseek, [BigInt(fd), offset, BigInt(whence)]);
  fallocate = (fd: number, mode: number, offset: bigint, length: bigint): Promise<Outcome> =>
    this.call(SYS.fallocate, [BigInt(fd), BigInt(mode), offset, length]);
  ftruncate = (fd: number, length: bigint): Promise<Outcome> => this.call(SYS.ftruncate, [BigInt(fd), length]);

  async fstat(fd: number): Promise<Outcome & { readonly stat: Stat | null }> {
    const reply = await this.system(SYS.fstat, [BigInt(fd), 0n], { pointer: 2, out: 144 });
    if (reply.error !== 0) return { ...outcome(reply), stat: null };
    const view = new DataView(reply.bytes.buffer, reply.bytes.byteOffset);
    const stat = {
      mode: view.getUint32(24, true),
      size: Number(view.getBigInt64(48, true)),
      blocks: Number(view.getBigInt64(64, true)),
    };
    return { ...succeeded(0), stat };
  }

  async describe(fd: number): Promise<Outcome & { readonly link: string }> {
    const page = await this.mmap({
      length: 4096n,
      prot: PROT.READ | PROT.WRITE,
      flags: MAP.PRIVATE | MAP.ANONYMOUS,
      fd: -1,
      offset: 0n,
    });
    const link = page.ret + LINK_MAX;
    await this.store(page.ret, Buffer.from(`/proc/self/fd/${fd}\0`));
    const length = await this.call(SYS.readlink, [page.ret, link, LINK_MAX]);
    const text = length.errno === null ? Buffer.from((await this.load(link, Number(length.ret))).data).toString() : '';
    await this.munmap(page.ret, 4096n);
    return length.errno === null ? { ...succeeded(0), link: text } : { ...length, link: '' };
  }

  async poll(fd: number, events: number, timeoutMs: number): Promise<Outcome & { readonly revents: number }> {
    const bytes = new Uint8Array(8);
    const view = new DataView(bytes.buffer);
    view.setInt32(0, fd, true);
    view.setInt16(4, events, true);
    const reply = await this.system(SYS.poll, [0n, 1n, BigInt(timeoutMs)], { pointer: 1, bytes, out: 8 }, true);
    return { ...outcome(reply), revents: new DataView(reply.bytes.buffer, reply.bytes.byteOffset).getInt16(6, true) };
  }

  async pipe(flags: number): Promise<Outcome & { readonly writer: number }> {
    const reply = await this.system(SYS.pipe2, [0n, BigInt(flags)], { pointer: 1, out: 8 });
    if (reply.error !== 0) return { ...outcome(reply), writer: -1 };
    const view = new DataView(reply.bytes.buffer, reply.bytes.byteOffset);
    return { ...succeeded(view.getInt32(0, true)), writer: view.getInt32(4, true) };
  }

  eventfd = (initial: number, flags: number): Promise<Outcome> => this.call(SYS.eventfd2, [BigInt(initial), BigInt(flags)]);
  mmap = ({ length, prot, flags, fd, offset }: MmapCall): Promise<Outcome> =>
    this.call(SYS.mmap, [0n, length, BigInt(prot), BigInt(flags), BigInt(fd), offset]);
  munmap = (address: bigint, length: bigint): Promise<Outcome> => this.call(SYS.munmap, [address, length]);
  mprotect = (address: bigint, length: bigint, prot: number): Promise<Outcome> =>
    this.call(SYS.mprotect, [address, length, BigInt(prot)]);
  madvise = (address: bigint, length: bigint, advice: number): Promise<Outcome> =>
    this.call(SYS.madvise, [address, length, BigInt(advice)]);

  async load(address: bigint, length: number): Promise<TouchOutcome> {
    return touchOutcome(await this.request({ call: CALL.LOAD, args: [address], out: length }));
  }

  async store(address: bigint, bytes: Uint8Array): Promise<TouchOutcome> {
    return touchOutcome(await this.request({ call: CALL.STORE, args: [address], bytes }));
  }

  async blockSignal(signo: number, block: boolean): Promise<Outcome> {
    const set = new Uint8Array(8);
    new DataView(set.buffer).setBigUint64(0, 1n << BigInt(signo - 1), true);
    const how = block ? SIG_BLOCK : SIG_UNBLOCK;
    return outcome(await this.system(SYS.rt_sigprocmask, [how, 0n, 0n, SIGSET_BYTES], { pointer: 2, bytes: set }, true));
  }

  async signal(signo: number): Promise<Outcome> {
    return outcome(await this.request({ call: CALL.SIGNAL, args: [BigInt(signo)] }));
  }

  thread(): NativeCalls {
    return new NativeCalls(this.channel, this.process, this.process.threads++);
  }

  async fork(): Promise<NativeCalls> {
    await this.request({ call: CALL.FORK });
    return new NativeCalls(this.channel, { threads: 1 }, 0);
  }

  async exit(): Promise<void> {
    await this.channel.endChild();
  }

  timer(ms: number): Timer {
    let timeout: NodeJS.Timeout | undefined;
    const expired = new Promise<void>((resolve) => {
      timeout = setTimeout(resolve, ms);
    });
    return { expired, cancel: () => clearTimeout(timeout) };
  }

  /** @param mayBlock the call is made by the thread itself, so that others go on */
  private system(number: number, args: readonly bigint[], bytes?: CallBytes, mayBlock = false): Promise<NativeReply> {
    return this.request({ call: CALL.SYSCALL, number, args, ...bytes }, mayBlock);
  }

  private request(asked: Omit<NativeRequest, 'thread' | 'blocking'>, mayBlock = false): Promise<NativeReply> {
    const blocking = asked.call === CALL.SYSCALL && (mayBlock || this.process.threads > 1);
    return this.channel.request({ ...asked, thread: this.number, blocking });
  }

  private async call(number: number, args: readonly bigint[], bytes?: CallBytes): Promise<Outcome> {
    return outcome(await this.system(number, args, bytes));
  }
}

const readOutcome = (reply: NativeReply): ReadOutcome => ({
  ...outcome(reply),
  data: reply.error === 0 ? reply.bytes.subarray(0, Number(reply.ret)) : NO_BYTES,
});

/** The kernel of this machine. Its processes end in the reverse order of their making. */
export class NativeHost {
  private readonly channel = new Channel();
  private readonly first = new NativeCalls(this.channel, { threads: 1 }, 0);

  /** A new process. */
  spawn(): Promise<SystemCalls> {
    return this.first.fork();
  }

  close(): void {
    this.channel.close();
  }
}
