import type {
  FdInfo,
  ForkResponse,
  Int64Init,
  IoctlResponse,
  ListFdsResponse,
  PipeResponse,
  PollfdInit,
  PollResponse,
} from '../gen/messages.js';
import { EventFdService, FileService, ProcessService, SyscallService } from '../gen/services.js';
import { Caller, type CallOptions, ENDLESS } from './call.js';
import { EventFd } from './eventfd.js';
import { File } from './file.js';
import { withForms } from './forms.js';
import { Descriptor, type Handle, handleOf } from './handle.js';
import { Kvm } from './kvm.js';
import { KvmError } from './kvm-error.js';
import type { Lease, ProcessEnd, ProcessEvent } from './lease.js';
import { Memory } from './memory.js';
import { RequestIds } from './request-ids.js';
import { SevPlatform } from './sev-platform.js';
import { type CallingObject, type FdObject, ret, syscall, valueOrThrow } from './syscall.js';
import type { Transport } from './transport.js';
import { O } from './uapi.js';

const numberOf = (fd: FdObject | number): number => (typeof fd === 'number' ? fd : fd.fd);

/** To whom a descriptor is sent: a process of this program, or another one by its token, or by its pid if it accepts. */
export type Receiver = { readonly token: string } | { readonly pid: number };

/** Whom a signal is for; without `tid` the process as a whole, without `pid` the sender. */
export interface SignalTarget {
  readonly pid?: number;
  readonly tid?: number;
}

/** What an ioctl's third argument is: a number, an address, or bytes to which the kernel gets an address. */
export type IoctlArgument = { readonly value: Int64Init } | { readonly address: Int64Init } | { readonly data: Uint8Array };

const openAs = <Kind extends Handle>(path: string, Kind: new (caller: Caller, descriptor: Descriptor) => Kind) =>
  syscall(FileService.open, (_self: CallingObject, flags: number = O.RDWR) => ({ path, flags }), handleOf(Kind));

/** Who a process is, and what keeps it alive. */
class ProcessObject implements CallingObject {
  constructor(
    readonly caller: Caller,
    readonly pid: number,
    /** Names the process; whoever has it may act as the process. */
    readonly token: string,
    readonly lease: Lease | null,
  ) {}
}

const childOf = ({ ret: pid, token }: ForkResponse, { caller }: ProcessObject): Process =>
  new Process(new Caller(caller.transport, { token, ids: new RequestIds() }), Number(pid), token, null);

/** The system calls of a process that are about no descriptor, or about any. */
export const processCalls = {
  /** openat(2) of /dev/kvm. Errno: ENOENT, EINVAL (flags), EMFILE. */
  openKvm: openAs('/dev/kvm', Kvm),
  /** openat(2) of /dev/sev. Errno: ENOENT (no SEV), EINVAL (flags), EMFILE. */
  openSev: openAs('/dev/sev', SevPlatform),
  /**
   * openat(2) of a device.
   * Errno: ENOENT (no such device), ENOTDIR, EINVAL (flags), EMFILE, EACCES, EBUSY.
   * @param flags bits of O
   */
  open: syscall(
    FileService.open,
    (_self: CallingObject, path: string, flags: number = O.RDWR) => ({ path, flags }),
    handleOf(File),
  ),
  /**
   * eventfd2(2).
   * Errno: EINVAL (flags), EMFILE, ENOMEM.
   * @param flags bits of EFD
   */
  eventfd: syscall(
    EventFdService.create,
    (_self: CallingObject, initval: number = 0, flags: number = 0) => ({ initval, flags }),
    handleOf(EventFd),
  ),
  /** pipe2(2). Errno: EINVAL (flags), EMFILE. */
  pipe: syscall(
    FileService.pipe,
    (_self: CallingObject, flags: number = 0) => ({ flags }),
    ({ read_fd, write_fd }: PipeResponse, { caller }) => ({
      readEnd: new File(caller, new Descriptor(read_fd)),
      writeEnd: new File(caller, new Descriptor(write_fd)),
    }),
  ),
  /**
   * poll(2): the files with their `revents`. Without end with -1.
   * Errno: EINTR, EINVAL (more files than the limit of descriptors).
   * @param timeoutMs milliseconds of the host's clock
   */
  poll: syscall(
    FileService.poll,
    (_self: CallingObject, fds: readonly PollfdInit[], timeoutMs: number) => ({ fds, timeout_ms: timeoutMs }),
    ({ fds }: PollResponse) => fds,
    ENDLESS,
  ),
  /**
   * kill(2), tgkill(2): a signal that its receiver does not block interrupts what that runs or waits for, which then answers
   * EINTR. SIGKILL ends the process; 0 only asks whether it is there.
   * Errno: ESRCH (no such process or thread), EINVAL (signo), EPERM (init takes no SIGKILL).
   */
  signal: syscall(
    ProcessService.signal,
    ({ pid: self }: ProcessObject, signo: number, { pid = self, tid }: SignalTarget = {}) => ({ pid, tid, signo }),
    ret,
  ),
  /**
   * rt_sigprocmask(2) of the thread that `with({ thread })` names: a signal that is blocked stays pending.
   * Errno: EINVAL (how, or a signal number above 64).
   * @param how one of SIG
   * @param signals their numbers, 1 to 64
   */
  sigprocmask: syscall(
    ProcessService.sigprocmask,
    (_self: CallingObject, how: number, signals: readonly number[]) => ({ how, signals }),
    ret,
  ),
  /**
   * SCM_RIGHTS: gives another process a descriptor of the same open file; the value is its number there.
   * Errno: EBADF, ESRCH (no such process), EPERM (it has not accepted), EMFILE (its table is full).
   *
   * @example
   * ```ts
   * const source = destination.adopt(Vm, await process.sendFd(vm, destination));
   * ```
   */
  sendFd: syscall(
    ProcessService.sendFd,
    (_self: CallingObject, fd: FdObject | number, to: Receiver) =>
      'token' in to ? { fd: numberOf(fd), token: to.token } : { fd: numberOf(fd), pid: to.pid },
    ret,
  ),
  /**
   * Consents to `limit` more descriptors that `fromPid`, or any process, sends by this one's pid; 0 withdraws.
   * Errno: ESRCH (no such process).
   */
  acceptFds: syscall(
    ProcessService.acceptFds,
    (_self: CallingObject, limit: number, fromPid?: number) => ({ from_pid: fromPid, limit }),
    ret,
  ),
  /**
   * ioctl(2) as it is, with the kernel's request numbers and structure layouts, for every ioctl that there is. The value is
   * the whole answer: `ret`, `errno_name` and the bytes that the kernel has left. It is an answer also where the ioctl failed.
   *
   * @example
   * ```ts
   * const KVM_GET_API_VERSION = 0xae00;
   * const { ret } = await process.ioctl(kvm, KVM_GET_API_VERSION, { value: 0 }); // 12n
   * ```
   */
  ioctl: syscall(
    SyscallService.ioctl,
    (_self: CallingObject, fd: FdObject | number, request: number, argument: IoctlArgument) => ({
      fd: numberOf(fd),
      request,
      ...argument,
    }),
    (response: IoctlResponse) => response,
  ),
  /**
   * fork(2): a child with a copy of the table of descriptors and of the address space. Its address space is another one: VMs
   * of the parent answer it EIO. The child ends with its parent, unless it is attached by its token.
   * Errno: EAGAIN (too many processes), ENOMEM.
   * @param name of the child, for people
   */
  fork: syscall(ProcessService.fork, (_self: ProcessObject, name?: string) => ({ name }), childOf),
} as const;

/** Descriptors that one page of ListFds has. */
const PAGE_SIZE = 1000;
/** How long to wait for the end of a process that has been told to exit. */
const EXIT_MS = 30_000;

const exit = syscall(ProcessService.exit, (_self: CallingObject, status: number) => ({ status }), ret);

/**
 * A process of the simulated host: a table of descriptors and an address space. `await using` ends it, and the kernel closes
 * all that it has open.
 *
 * @example
 * ```ts
 * await using process = await simkvm.attach({ name: 'vmm' });
 * await using kvm = await process.openKvm();
 * console.log(await kvm.getApiVersion()); // 12
 * ```
 */
export class Process extends withForms(ProcessObject, processCalls) implements AsyncDisposable {
  private over = false;

  /** Its address space. */
  get memory(): Memory {
    return new Memory(this.caller);
  }

  /** The same process, whose calls, and those of what it opens, are made with other options. */
  with(options: CallOptions): this {
    return Object.create(this, { caller: { value: this.caller.with(options) } });
  }

  /** The object of class `Kind` for a descriptor that this process has, for example one that it was sent. */
  adopt<Kind extends Handle>(Kind: new (caller: Caller, descriptor: Descriptor) => Kind, fd: number): Kind {
    return new Kind(this.caller, new Descriptor(fd));
  }

  /** What /proc/PID/fd and fdinfo show: every open descriptor. */
  async listFds(): Promise<FdInfo[]> {
    const fds: FdInfo[] = [];
    for (let token = ''; ; ) {
      const page = valueOrThrow(await listFds(this, token));
      fds.push(...page.fds);
      token = page.next_page_token;
      if (token === '') return fds;
    }
  }

  /**
   * Calls `listener` when a descriptor or a signal arrives. Only a process that was attached hears of that.
   * @returns what stops listening
   */
  listen(listener: (event: ProcessEvent) => void): () => void {
    return this.lease?.listen(listener) ?? (() => {});
  }

  /** Resolves when an attached process has ended; null for others. */
  get ended(): Promise<ProcessEnd> | null {
    return this.lease?.ended ?? null;
  }

  /**
   * exit_group(2): ends the process; resolves when the kernel has closed everything. A second time does nothing.
   * @param status 0 to 255
   */
  async exit(status = 0): Promise<void> {
    if (this.over) return;
    this.over = true;
    const { caller } = this;
    valueOrThrow(await exit({ caller: caller.with({ timeoutMs: EXIT_MS }) }, status));
    await this.lease?.ended;
  }

  /** Cuts the stream of the lease, as a program that is killed does; the host ends the process as soon as it notices. */
  async abandon(): Promise<void> {
    this.over = true;
    this.lease?.release();
    await this.lease?.ended;
  }

  /** Ends the process, if it still is there. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.exit();
    } catch (error) {
      if (KvmError.from(error).reason !== 'PROCESS_NOT_FOUND') throw error;
    } finally {
      this.lease?.release();
    }
  }
}

const listFds = syscall(
  ProcessService.listFds,
  (_self: CallingObject, token: string) => ({ page_size: PAGE_SIZE, page_token: token }),
  (response: ListFdsResponse) => response,
);

/** The process of a lease; with the ids that its calls have. */
export const processOf = (transport: Transport, lease: Lease, ids: RequestIds): Process => {
  const { pid, token } = lease.hello;
  return new Process(new Caller(transport, { token, ids }), pid, token, lease);
};
