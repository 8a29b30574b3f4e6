import type { Failure } from '../kernel/failure.js';
import type { Kernel } from '../kernel/kernel.js';
import type { Process } from '../kernel/process/process.js';
import type { Thread } from '../kernel/process/thread.js';
import type { Task } from '../kernel/sched/task.js';
import type { MightSleep } from '../kernel/sched/wait.js';
import type { ProcessRegistry } from './process-registry.js';

/** What the services of one daemon work on. */
export interface Host {
  readonly kernel: Kernel;
  readonly processes: ProcessRegistry;
  readonly version: string;
}

/** Who makes a call. */
export interface Caller {
  readonly process: Process;
  /** The thread that the call named; undefined: one of its own. */
  readonly thread: Thread | undefined;
  readonly onLoopback: boolean;
}

/** The end of a call: what the kernel wrote, also where it failed. */
export interface Reply<Res> {
  readonly failure: Failure | null;
  readonly response: Res | null;
}

export const reply = <Res>(response: Res): Reply<Res> => ({ failure: null, response });
export const refused = (failure: Failure): Reply<never> => ({ failure, response: null });

/** A unary RPC as a task of the kernel. */
export type Handler<Req, Res> = (current: Task, host: Host, request: Req, caller: Caller) => MightSleep<Reply<Res>>;

/**
 * Who may call a method. `process`: whoever acts as a process, which its token proves. `operator`: controls the host;
 * only callers on the daemon's own machine are.
 */
export type Role = 'anyone' | 'process' | 'operator';

/** A unary method: its role, and whether it changes anything, so that a request id makes it execute once. */
export interface UnaryMethod<Req, Res> {
  readonly kind: 'unary';
  readonly role: Role;
  readonly mutates: boolean;
  readonly handle: Handler<Req, Res>;
}
