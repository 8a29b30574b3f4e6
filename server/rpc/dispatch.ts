import { Failure, failed, type Result } from '../kernel/failure.js';
import type { Process } from '../kernel/process/process.js';
import type { JournalEntry } from '../kernel/sanitizer/findings.js';
import type { Sanitizer } from '../kernel/sanitizer/sanitizer.js';
import type { Task } from '../kernel/sched/task.js';
import { type MaySleep, type MightSleep, sleeps } from '../kernel/sched/wait.js';
import { type Caller, type Host, type Reply, type Role, refused, type UnaryMethod } from './call.js';
import { RequestResults } from './request-results.js';

/** Calls that one process may have under way. */
export const CALLS_MAX = 4096;
/** glibc's internal cancellation signal: no program blocks it. */
const SIGCANCEL = 32;

/** What came with a call beside its message. */
export interface CallHeaders {
  /** Metadata `simkvm-process`. */
  readonly process: string | undefined;
  /** Metadata `simkvm-thread`. */
  readonly thread: string | undefined;
  /** Metadata `simkvm-request-id`. */
  readonly requestId: string | undefined;
  /** Metadata `simkvm-acknowledge`: every reply up to the first number has arrived, but those of the numbers after it. */
  readonly acknowledge: string | undefined;
  readonly onLoopback: boolean;
  /** Address of the caller, as grpc-js names it: `127.0.0.1:4711`. */
  readonly peer: string;
}

/** One call on its way into the kernel. */
export interface Call<Req extends object, Res> {
  /** `/simkvm.v1.KvmVm/CreateVcpu`. */
  readonly path: string;
  readonly method: UnaryMethod<Req, Res>;
  readonly headers: CallHeaders;
  readonly request: Req;
  deliver(reply: Reply<Res>): void;
}

/** Lets a caller that gives up interrupt what it started. */
export interface Cancel {
  /** Interrupts the kernel as a signal would; the reply is kept under the request id, if there was one. */
  cancel(): void;
}

const nothingToCancel: Cancel = { cancel: () => {} };

/** A call as findings tell of it, before it is known to be about a VM. Nothing else of the call lives as long as the journal. */
class CallNote implements JournalEntry {
  readonly vm = null;

  constructor(
    private readonly pid: number,
    private readonly label: string,
  ) {}

  describe(): string {
    return `pid ${this.pid}: ${this.label}`;
  }
}

/**
 * The second stage of every call, whichever way it came in: limits, authorization, validation, handler. Each call
 * becomes a task of the kernel.
 */
export class Dispatch {
  private readonly results = new WeakMap<Process, RequestResults<Reply<unknown>>>();

  /** @param validate refuses a request that misses a field or has one that no kernel would understand */
  constructor(
    readonly host: Host,
    private readonly validate: (path: string, request: object) => Failure | null,
  ) {}

  call<Req extends object, Res>(call: Call<Req, Res>): Cancel {
    const caller = this.enter(call.path, call.method.role, call.headers, call.request);
    if (failed(caller)) return this.refuse(call, caller);
    const { requestId } = call.headers;
    if (call.headers.acknowledge !== undefined) {
      const [upTo = 0, ...outstanding] = call.headers.acknowledge.split(',').map(Number);
      this.resultsOf(caller.process).acknowledge(upTo, outstanding);
    }
    if (requestId === undefined || !call.method.mutates) return this.execute(call, caller, call.deliver);
    return this.executeOnce(call, caller, Number(requestId));
  }

  /** Who calls, after limits, authorization and validation; for streams, which then run as many tasks as they need. */
  enter(path: string, role: Role, headers: CallHeaders, request: object): Result<Caller> {
    const caller = this.identify(role, headers);
    if (failed(caller)) return caller;
    return this.overLimit(caller) ?? authorize(path, role, caller, headers) ?? this.validate(path, request) ?? caller;
  }

  /**
   * Runs `body` as a task of the caller's process, in the thread that it named.
   * @param oopsed told where `body` threw: a defect of the simulated kernel, which ends this call and no other
   */
  start<T>(
    caller: Caller,
    label: string,
    body: (current: Task) => MaySleep<T>,
    done: (result: T) => void,
    oopsed: (failure: Failure) => void,
  ): Cancel {
    const { sanitizer, scheduler } = this.host.kernel;
    const waiting = function* waiting(steps: MightSleep<T>): MightSleep<{ result: T } | Failure> {
      try {
        return { result: yield* steps };
      } catch (error) {
        return oops(sanitizer, label, error);
      } finally {
        sanitizer.callEnded();
      }
    };
    const journalled = (current: Task): MaySleep<{ result: T } | Failure> => {
      sanitizer.callBegins(current, new CallNote(caller.process.pid, label));
      let outcome: { result: T } | Failure;
      try {
        const result = body(current);
        if (sleeps(result)) return waiting(result);
        outcome = { result };
      } catch (error) {
        outcome = oops(sanitizer, label, error);
      }
      sanitizer.callEnded();
      return outcome;
    };
    const end = (outcome: { result: T } | Failure): void => (failed(outcome) ? oopsed(outcome) : done(outcome.result));
    const task = scheduler.start(caller.process, label, journalled, end, caller.thread);
    return { cancel: () => task.state.kind !== 'done' && task.signal(SIGCANCEL) };
  }

  /** Like `start`, for streams: resolves when the task is done; `signal` interrupts it. */
  run<T>(caller: Caller, label: string, body: (current: Task) => MaySleep<T>, signal?: AbortSignal): Promise<T> {
    return new Promise((resolve, reject) => {
      const { cancel } = this.start(caller, label, body, resolve, (failure) => reject(new Error(failure.details.message)));
      signal?.addEventListener('abort', cancel, { once: true });
    });
  }

  private executeOnce<Req extends object, Res>(call: Call<Req, Res>, caller: Caller, id: number): Cancel {
    const results = this.resultsOf(caller.process);
    // An entry belongs to one method, so its reply has this one's type.
    const deliver = (reply: Reply<unknown>): void => call.deliver(reply as Reply<Res>);
    const begun = results.begin(id, call.path, deliver);
    if (failed(begun)) return this.refuse(call, begun);
    if (begun === 'pending') return nothingToCancel;
    return this.execute(call, caller, (reply) => {
      results.finish(id, reply);
      call.deliver(reply);
    });
  }

  private execute<Req extends object, Res>(call: Call<Req, Res>, caller: Caller, deliver: (reply: Reply<Res>) => void): Cancel {
    const handle = (current: Task): MaySleep<Reply<Res>> => call.method.handle(current, this.host, call.request, caller);
    return this.start(caller, call.path, handle, deliver, (failure) => deliver(refused(failure)));
  }

  private identify(role: Role, headers: CallHeaders): Result<Caller> {
    const { onLoopback, peer } = headers;
    const { kernel, processes } = this.host;
    // Whoever attaches from another machine has no process yet.
    const ofNobody = role === 'anyone' && headers.process === undefined;
    const process = ofNobody ? kernel.init : processes.resolve(headers.process, onLoopback);
    if (failed(process)) return process;
    if (headers.thread === undefined) return { process, thread: undefined, onLoopback, peer };
    const tid = Number(headers.thread);
    if (!Number.isInteger(tid) || tid < 1 || tid > 0x7fff_ffff)
      return new Failure('EINVAL', 'THREAD_ID_INVALID', 'simkvmd', {
        field: 'simkvm-thread',
        given: headers.thread,
        allowed: '1 to 2147483647',
      });
    return { process, thread: process.thread(tid), onLoopback, peer };
  }

  private overLimit(caller: Caller): Failure | null {
    if (caller.process.tasks.length < CALLS_MAX) return null;
    return new Failure('EAGAIN', 'TOO_MANY_CALLS', 'simkvmd', { limit: `${CALLS_MAX} calls under way for each process` });
  }

  private refuse<Req extends object, Res>(call: Call<Req, Res>, failure: Failure): Cancel {
    call.deliver(refused(failure));
    return nothingToCancel;
  }

  private resultsOf(process: Process): RequestResults<Reply<unknown>> {
    let results = this.results.get(process);
    if (results === undefined) {
      results = new RequestResults();
      this.results.set(process, results);
    }
    return results;
  }
}

/** An invariant of the simulated kernel did not hold: a finding, and EIO for the call that ran into it. */
const oops = (sanitizer: Sanitizer, label: string, error: unknown): Failure => {
  const message = error instanceof Error ? error.message : String(error);
  sanitizer.findings.report('kernel', 'KERNEL_OOPS', `${label}: ${message}`);
  return new Failure('EIO', 'KERNEL_OOPS', 'oops_begin', { message });
};

const authorize = (name: string, role: Role, caller: Caller, headers: CallHeaders): Failure | null => {
  if (
    role === 'anyone' ||
    (role === 'process' && (headers.process !== undefined || caller.onLoopback)) ||
    (role === 'operator' && caller.onLoopback)
  )
    return null;
  return new Failure('EPERM', 'METHOD_NOT_ALLOWED', 'simkvmd', { method: name, role });
};
