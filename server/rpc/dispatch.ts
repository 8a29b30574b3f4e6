import { createHash } from 'node:crypto';
import { Failure, failed, type Result } from '../kernel/failure.js';
import type { Process } from '../kernel/process/process.js';
import type { Task } from '../kernel/sched/task.js';
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
  /** Metadata `simkvm-acknowledge`. */
  readonly acknowledge: string | undefined;
  readonly onLoopback: boolean;
}

/** One call on its way into the kernel. */
export interface Call<Req, Res> {
  /** `simkvm.v1.KvmVm/CreateVcpu`. */
  readonly name: string;
  readonly method: UnaryMethod<Req, Res>;
  readonly headers: CallHeaders;
  readonly request: Req;
  /** The request's bytes, asked for only if a request id has to be told from its repetition. */
  encode(): Uint8Array;
  deliver(reply: Reply<Res>): void;
}

/** Lets a caller that gives up interrupt what it started. */
export interface Cancel {
  /** Interrupts the kernel as a signal would; the reply is kept under the request id, if there was one. */
  cancel(): void;
}

const nothingToCancel: Cancel = { cancel: () => {} };

/**
 * The second stage of every call, whichever way it came in: limits, authorization, validation, handler. Each call
 * becomes a task of the kernel.
 */
export class Dispatch {
  private readonly results = new WeakMap<Process, RequestResults<Reply<unknown>>>();

  /** @param validate refuses a request that misses a field or has one that no kernel would understand */
  constructor(
    private readonly host: Host,
    private readonly validate: (name: string, request: unknown) => Failure | null,
  ) {}

  call<Req, Res>(call: Call<Req, Res>): Cancel {
    const caller = this.identify(call.headers);
    if (failed(caller)) return this.refuse(call, caller);
    const refusal =
      this.overLimit(caller) ??
      authorize(call.name, call.method.role, caller, call.headers) ??
      this.validate(call.name, call.request);
    if (refusal !== null) return this.refuse(call, refusal);
    const { requestId } = call.headers;
    if (call.headers.acknowledge !== undefined) this.resultsOf(caller.process).acknowledge(Number(call.headers.acknowledge));
    if (requestId === undefined || !call.method.mutates) return this.execute(call, caller, call.deliver);
    return this.executeOnce(call, caller, Number(requestId));
  }

  private executeOnce<Req, Res>(call: Call<Req, Res>, caller: Caller, id: number): Cancel {
    const results = this.resultsOf(caller.process);
    const fingerprint = `${call.name} ${createHash('sha256').update(call.encode()).digest('base64')}`;
    // The entry was made by the same method (fingerprint), so the reply has its type.
    const deliver = (reply: Reply<unknown>): void => call.deliver(reply as Reply<Res>);
    const begun = results.begin(id, fingerprint, deliver);
    if (failed(begun)) return this.refuse(call, begun);
    if (begun === 'pending') return nothingToCancel;
    return this.execute(call, caller, (reply) => {
      results.finish(id, reply);
      call.deliver(reply);
    });
  }

  private execute<Req, Res>(call: Call<Req, Res>, caller: Caller, deliver: (reply: Reply<Res>) => void): Cancel {
    const { host } = this;
    const task = host.kernel.scheduler.start(
      caller.process,
      call.name,
      (current: Task) => call.method.handle(current, host, call.request, caller),
      deliver,
      caller.thread,
    );
    return { cancel: () => task.state.kind !== 'done' && task.signal(SIGCANCEL) };
  }

  private identify(headers: CallHeaders): Result<Caller> {
    const process = this.host.processes.resolve(headers.process, headers.onLoopback);
    if (failed(process)) return process;
    if (headers.thread === undefined) return { process, thread: undefined, onLoopback: headers.onLoopback };
    const tid = Number(headers.thread);
    if (!Number.isInteger(tid) || tid < 1 || tid > 0x7fff_ffff)
      return new Failure('EINVAL', 'THREAD_ID_INVALID', 'simkvmd', {
        field: 'simkvm-thread',
        given: headers.thread,
        allowed: '1 to 2147483647',
      });
    return { process, thread: process.thread(tid), onLoopback: headers.onLoopback };
  }

  private overLimit(caller: Caller): Failure | null {
    if (caller.process.tasks.size < CALLS_MAX) return null;
    return new Failure('EAGAIN', 'TOO_MANY_CALLS', 'simkvmd', { limit: `${CALLS_MAX} calls under way for each process` });
  }

  private refuse<Req, Res>(call: Call<Req, Res>, failure: Failure): Cancel {
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

const authorize = (name: string, role: Role, caller: Caller, headers: CallHeaders): Failure | null => {
  if (
    role === 'anyone' ||
    (role === 'process' && (headers.process !== undefined || caller.onLoopback)) ||
    (role === 'operator' && caller.onLoopback)
  )
    return null;
  return new Failure('EPERM', 'METHOD_NOT_ALLOWED', 'simkvmd', { method: name, role });
};
