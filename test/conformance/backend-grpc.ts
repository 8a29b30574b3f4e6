import { Client, credentials, Metadata, type ServiceError } from '@grpc/grpc-js';
import { ErrorInfo, Status } from '../../gen/messages.js';
import {
  EventFdService,
  FileService,
  MemoryService,
  ProcessService,
  type RpcMethod,
  SyscallService,
} from '../../gen/services.js';
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

const NO_BYTES = new Uint8Array(0);
/** Bytes that one read or write of memory carries. */
const TRANSFER = 2 ** 19;
const DETAILS_KEY = 'grpc-status-details-bin';

/** A call that the kernel refused. */
interface Refusal {
  readonly errno: string;
  readonly reason: string;
}

type Answer<Res> = { readonly response: Res } | { readonly refusal: Refusal };

/** What the one ErrorInfo of a failed call says; null: the call did not reach a kernel. */
const refusalOf = (error: ServiceError): Refusal | null => {
  const [details] = error.metadata.get(DETAILS_KEY);
  if (!(details instanceof Uint8Array)) return null;
  const info = Status.decode(details).details.find(({ type_url }) => type_url.endsWith('/google.rpc.ErrorInfo'));
  if (info === undefined) return null;
  const { reason, metadata } = ErrorInfo.decode(info.value);
  const { errno } = metadata;
  return errno === undefined ? null : { errno, reason };
};

/** The time of a script's timers, which is told of its calls. */
export interface ScriptTime {
  timer(ms: number): Timer;
  begun(): void;
  over(): void;
}

const REAL_TIME: ScriptTime = {
  timer: (ms) => {
    let cancel = (): void => {};
    const expired = new Promise<void>((resolve) => {
      const timeout = setTimeout(resolve, ms);
      cancel = () => clearTimeout(timeout);
    });
    return { expired, cancel };
  },
  begun: () => {},
  over: () => {},
};

/** A connection to a daemon, shared by all processes of a script. */
class Connection {
  private readonly client: Client;

  constructor(
    address: string,
    readonly time: ScriptTime,
  ) {
    this.client = new Client(address, credentials.createInsecure());
  }

  call<Req, ReqInit, Res, ResInit>(
    method: RpcMethod<Req, ReqInit, Res, ResInit>,
    request: ReqInit,
    metadata: Metadata,
  ): Promise<Answer<Res>> {
    this.time.begun();
    return new Promise((resolve, reject) => {
      this.client.makeUnaryRequest(
        method.path,
        method.requestSerialize,
        method.responseDeserialize,
        request,
        metadata,
        (error, response) => {
          this.time.over();
          if (error === null && response !== undefined) return resolve({ response });
          const refusal = error === null ? null : refusalOf(error);
          return refusal === null ? reject(error ?? new Error(`${method.path}: no answer`)) : resolve({ refusal });
        },
      );
    });
  }

  close(): void {
    this.client.close();
  }
}

interface RemoteProcess {
  readonly connection: Connection;
  readonly pid: number;
  readonly token: string;
  nextTid: number;
}

/** System calls of a thread of a process on a daemon. */
class GrpcCalls implements SystemCalls {
  private readonly tid: number;
  private readonly metadata = new Metadata();
  /** For calls that are not this thread's own: a signal comes from another one. */
  private readonly otherThread = new Metadata();

  constructor(private readonly process: RemoteProcess) {
    this.tid = process.nextTid++;
    this.otherThread.set('simkvm-process', process.token);
    this.metadata.set('simkvm-process', process.token);
    this.metadata.set('simkvm-thread', String(this.tid));
  }

  open = (path: string, flags: number): Promise<Outcome> => this.simple(FileService.open, { path, flags });
  close = (fd: number): Promise<Outcome> => this.simple(ProcessService.close, { fd });
  dup = (fd: number): Promise<Outcome> => this.simple(ProcessService.dup, { fd });
  fcntl = (fd: number, cmd: number, argument: number): Promise<Outcome> =>
    this.simple(FileService.fcntl, { fd, cmd, arg: BigInt(argument) });

  async ioctl(fd: number, request: number, arg: bigint): Promise<Outcome> {
    const answer = await this.call(SyscallService.ioctl, { fd, request, address: arg });
    if ('refusal' in answer) return failedWith(answer.refusal.errno);
    const { ret, errno_name } = answer.response;
    return errno_name === '' ? succeeded(ret) : failedWith(errno_name);
  }

  read = (fd: number, length: number): Promise<ReadOutcome> => this.readFile({ fd, count: BigInt(length) });
  write = (fd: number, raw: Uint8Array): Promise<Outcome> => this.simple(FileService.write, { fd, raw });
  pread = (fd: number, length: number, offset: bigint): Promise<ReadOutcome> =>
    this.readFile({ fd, count: BigInt(length), offset });
  pwrite = (fd: number, raw: Uint8Array, offset: bigint): Promise<Outcome> => this.simple(FileService.write, { fd, raw, offset });
  lseek = (fd: number, offset: bigint, whence: number): Promise<Outcome> =>
    this.simple(FileService.lseek, { fd, offset, whence });
  fallocate = (fd: number, mode: number, offset: bigint, len: bigint): Promise<Outcome> =>
    this.simple(FileService.fallocate, { fd, mode, offset, len });
  ftruncate = (fd: number, length: bigint): Promise<Outcome> => this.simple(FileService.ftruncate, { fd, length });

  async fstat(fd: number): Promise<Outcome & { readonly stat: Stat | null }> {
    const answer = await this.call(FileService.fstat, { fd });
    if ('refusal' in answer) return { ...failedWith(answer.refusal.errno), stat: null };
    const { stat } = answer.response;
    if (stat === null) throw new Error('fstat answered without a stat');
    return { ...succeeded(0), stat: { size: Number(stat.st_size), blocks: Number(stat.st_blocks), mode: stat.st_mode } };
  }

  async describe(fd: number): Promise<Outcome & { readonly link: string }> {
    let page_token = '';
    do {
      const answer = await this.call(ProcessService.listFds, { page_token });
      if ('refusal' in answer) return { ...failedWith(answer.refusal.errno), link: '' };
      const found = answer.response.fds.find((each) => each.fd === fd);
      if (found !== undefined) return { ...succeeded(0), link: found.path };
      page_token = answer.response.next_page_token;
    } while (page_token !== '');
    return { ...failedWith('ENOENT'), link: '' };
  }

  async poll(fd: number, events: number, timeout_ms: number): Promise<Outcome & { readonly revents: number }> {
    const answer = await this.call(FileService.poll, { fds: [{ fd, events }], timeout_ms });
    if ('refusal' in answer) return { ...failedWith(answer.refusal.errno), revents: 0 };
    return { ...succeeded(answer.response.ret), revents: answer.response.fds[0]?.revents ?? 0 };
  }

  async pipe(flags: number): Promise<Outcome & { readonly writer: number }> {
    const answer = await this.call(FileService.pipe, { flags });
    if ('refusal' in answer) return { ...failedWith(answer.refusal.errno), writer: -1 };
    return { ...succeeded(answer.response.read_fd), writer: answer.response.write_fd };
  }

  eventfd = (initval: number, flags: number): Promise<Outcome> => this.simple(EventFdService.create, { initval, flags });
  mmap = (call: MmapCall): Promise<Outcome> => this.simple(MemoryService.mmap, { ...call });
  munmap = (addr: bigint, length: bigint): Promise<Outcome> => this.simple(MemoryService.munmap, { addr, length });
  mprotect = (addr: bigint, length: bigint, prot: number): Promise<Outcome> =>
    this.simple(MemoryService.mprotect, { addr, length, prot });
  madvise = (addr: bigint, length: bigint, advice: number): Promise<Outcome> =>
    this.simple(MemoryService.madvise, { addr, length, advice });

  async load(address: bigint, length: number): Promise<TouchOutcome> {
    const data = new Uint8Array(length);
    for (let done = 0; done < length; done += TRANSFER) {
      const count = Math.min(TRANSFER, length - done);
      const answer = await this.call(MemoryService.read, { addr: address + BigInt(done), length: BigInt(count) });
      if ('refusal' in answer) return touchFailure(answer.refusal);
      data.set(answer.response.data, done);
    }
    return { ...succeeded(0), data, signal: null };
  }

  async store(address: bigint, bytes: Uint8Array): Promise<TouchOutcome> {
    for (let done = 0; done < bytes.length; done += TRANSFER) {
      const raw = bytes.subarray(done, done + TRANSFER);
      const answer = await this.call(MemoryService.write, { addr: address + BigInt(done), raw });
      if ('refusal' in answer) return touchFailure(answer.refusal);
    }
    return { ...succeeded(0), data: NO_BYTES, signal: null };
  }

  blockSignal = (signo: number, block: boolean): Promise<Outcome> =>
    this.simple(ProcessService.sigprocmask, { how: block ? 0 : 1, signals: [signo] });
  signal = (signo: number): Promise<Outcome> =>
    this.simple(ProcessService.signal, { pid: this.process.pid, tid: this.tid, signo }, this.otherThread);

  thread(): GrpcCalls {
    return new GrpcCalls(this.process);
  }

  async fork(): Promise<GrpcCalls> {
    const answer = await this.call(ProcessService.fork, {});
    if ('refusal' in answer) throw new Error(`fork: ${answer.refusal.errno}`);
    const { ret, token } = answer.response;
    return new GrpcCalls({ connection: this.process.connection, pid: Number(ret), token, nextTid: 1 });
  }

  async exit(): Promise<void> {
    await this.call(ProcessService.exit, { status: 0 });
  }

  timer = (ms: number): Timer => this.process.connection.time.timer(ms);

  private call<Req, ReqInit, Res, ResInit>(
    method: RpcMethod<Req, ReqInit, Res, ResInit>,
    request: ReqInit,
  ): Promise<Answer<Res>> {
    return this.process.connection.call(method, request, this.metadata);
  }

  private async simple<Req, ReqInit, Res extends { readonly ret: bigint }, ResInit>(
    method: RpcMethod<Req, ReqInit, Res, ResInit>,
    request: ReqInit,
    metadata = this.metadata,
  ): Promise<Outcome> {
    const answer = await this.process.connection.call(method, request, metadata);
    return 'refusal' in answer ? failedWith(answer.refusal.errno) : succeeded(answer.response.ret);
  }

  private async readFile(request: { fd: number; count: bigint; offset?: bigint }): Promise<ReadOutcome> {
    const answer = await this.call(FileService.read, request);
    if ('refusal' in answer) return { ...failedWith(answer.refusal.errno), data: NO_BYTES };
    return { ...succeeded(answer.response.ret), data: answer.response.data };
  }
}

const touchFailure = ({ errno, reason }: Refusal): TouchOutcome => ({
  ...failedWith(errno),
  data: NO_BYTES,
  signal: reason === 'BAD_ADDRESS' ? 'SIGSEGV' : 'SIGBUS',
});

/**
 * A new process on the daemon at `address`; `close` ends it and the connection.
 * @param time of what the process waits for @default that of this machine
 */
export const spawnOnDaemon = async (
  address: string,
  time: ScriptTime = REAL_TIME,
): Promise<{ readonly calls: GrpcCalls; close(): Promise<void> }> => {
  const connection = new Connection(address, time);
  const answer = await connection.call(ProcessService.spawn, { name: 'oracle' }, new Metadata());
  if ('refusal' in answer) throw new Error(`the daemon makes no process: ${answer.refusal.errno} ${answer.refusal.reason}`);
  const { ret, token } = answer.response;
  const calls = new GrpcCalls({ connection, pid: Number(ret), token, nextTid: 1 });
  const close = async (): Promise<void> => {
    await calls.exit();
    connection.close();
  };
  return { calls, close };
};
