import { type Failure, failed, type Result } from '../kernel/failure.js';
import type { Kernel } from '../kernel/kernel.js';
import type { Process } from '../kernel/process/process.js';
import type { Thread } from '../kernel/process/thread.js';
import type { Task } from '../kernel/sched/task.js';
import type { MaySleep } from '../kernel/sched/wait.js';
import type { MigrationHost } from './migration/migration-host.js';
import type { ProcessRegistry } from './process-registry.js';

/** What the services of one daemon work on. */
export interface Host {
  readonly kernel: Kernel;
  readonly processes: ProcessRegistry;
  readonly version: string;
  /** New at each start of the daemon. */
  readonly bootId: string;
  /** What it is to other daemons. */
  readonly migration: MigrationHost;
  /** Told of every call when it is over; null where nobody reads it. */
  readonly log: ((call: CallRecord) => void) | null;
}

/** What the log says of a call. No request and no response: they may hold a guest's secrets. */
export interface CallRecord {
  /** `/simkvm.v1.KvmVm/CreateVcpu`. */
  readonly path: string;
  readonly peer: string;
  /** Metadata `traceparent`, as W3C Trace Context has it. */
  readonly trace: string | undefined;
  /** Null: the call succeeded. */
  readonly errno: string | null;
  readonly reason: string | null;
}

/** Who makes a call. */
export interface Caller {
  readonly process: Process;
  /** The thread that the call named; undefined: one of its own. */
  readonly thread: Thread | undefined;
  readonly onLoopback: boolean;
  /** Its address, as grpc-js names it: `127.0.0.1:4711`. */
  readonly peer: string;
}

/** The end of a call: what the kernel wrote, also where it failed. */
export interface Reply<Res> {
  readonly failure: Failure | null;
  readonly response: Res | null;
}

export const reply = <Res>(response: Res): Reply<Res> => ({ failure: null, response });
export const refused = (failure: Failure): Reply<never> => ({ failure, response: null });

/** A unary RPC as a task of the kernel. */
export type Handler<Req, Res> = (current: Task, host: Host, request: Req, caller: Caller) => MaySleep<Reply<Res>>;

/**
 * Who may call a method. `process`: whoever acts as a process, which its token proves. `operator`: controls the host;
 * only callers on the daemon's own machine are.
 */
export type Role = 'anyone' | 'process' | 'operator';

/** How a unary RPC is served. */
export interface UnaryMethod<Req, Res> {
  readonly role: Role;
  /** Whether it changes anything, so that a request id makes it execute once. */
  readonly mutates: boolean;
  /** The ioctl or system call, for errors: `KVM_IOEVENTFD`. */
  readonly syscall: string;
  readonly handle: Handler<Req, Res>;
}

/** A method of a process. */
export const method = <Req, Res>(syscall: string, mutates: boolean, handle: Handler<Req, Res>): UnaryMethod<Req, Res> => ({
  role: 'process',
  mutates,
  syscall,
  handle,
});

/** The handler of a system call whose only answer is its return value. */
export const ret = <Req>(
  call: (current: Task, request: Req, host: Host) => MaySleep<Result<number>>,
): Handler<Req, { ret: number }> =>
  function* handle(current, host, request) {
    const started = call(current, request, host);
    const result = typeof started === 'number' || failed(started) ? started : yield* started;
    return failed(result) ? refused(result) : reply({ ret: result });
  };
