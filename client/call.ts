import { status } from '@grpc/grpc-js';
import { type KvmError, transportError } from './kvm-error.js';
import type { RequestIds } from './request-ids.js';
import type { CallHeaders, CallLimits, ClientMethod, Duplex, Reply, Transport } from './transport.js';

/** Milliseconds that a call may take, unless told otherwise. */
const TIMEOUT_MS = 30_000;
/** How long to wait for the reply of a call that has been interrupted, before it is interrupted once more. */
const INTERRUPT_AGAIN_MS = 250;

/** How a call is made. */
export interface CallOptions {
  /**
   * Milliseconds after which the SDK gives up; null waits without end.
   * @default 30_000; null for KVM_RUN and watches
   */
  readonly timeoutMs?: number | null;
  /**
   * Interrupts the call as a signal would. The kernel still answers: EINTR with its outputs if the call was waiting or
   * running, or what it had done by then.
   */
  readonly signal?: AbortSignal;
  /**
   * Thread of the process that makes the call (its tid), so that `process.signal` can reach it.
   * @default a thread of its own for each call
   */
  readonly thread?: number;
}

/** In whose name calls are made. */
export interface Identity {
  /** The process's token; null: the host's init process. */
  readonly token: string | null;
  /** Its request ids; null if others may act as this process too, so that ids would clash. */
  readonly ids: RequestIds | null;
}

/** Why an RPC has no deadline of its own: it lasts as long as what it watches or runs. */
export const ENDLESS = 'endless';

/** Makes calls in the name of one process, with the same options. */
export class Caller {
  constructor(
    readonly transport: Transport,
    readonly identity: Identity,
    readonly options: CallOptions = {},
  ) {}

  /** The same with some options changed. */
  with(options: CallOptions): Caller {
    return new Caller(this.transport, this.identity, { ...this.options, ...options });
  }

  /**
   * The one way of every call to the host. Under a request id the host executes it once; a reply that is lost on the way
   * is asked for again.
   */
  async call<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    request: ReqInit,
    duration: typeof ENDLESS | null = null,
  ): Promise<Reply<Res>> {
    const limits = this.limits(duration);
    if (limits.signal?.aborted === true)
      return { error: transportError(status.CANCELLED, method.path, `${method.path}: aborted before it began`), response: null };
    const { ids } = this.identity;
    if (ids === null) return this.transport.unary(method, request, this.headers(null), limits);
    const id = ids.next();
    const reply = await this.transport.unary(method, request, this.headers(id), limits);
    const settled = mayBeLost(reply.error, limits.signal) ? await this.askAgain(method, request, id, limits, reply) : reply;
    ids.arrived(id);
    return settled;
  }

  /** A call that is answered by a stream. It throws KvmError. */
  serverStream<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    request: ReqInit,
    duration: typeof ENDLESS | null = null,
  ): AsyncIterable<Res> {
    return this.transport.serverStream(method, request, this.headers(null), this.limits(duration));
  }

  /** A call whose request is a stream. */
  clientStream<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    requests: AsyncIterable<ReqInit> | Iterable<ReqInit>,
  ): Promise<Reply<Res>> {
    return this.transport.clientStream(method, requests, this.headers(null), this.limits(null));
  }

  /** A call with a stream each way. It has no deadline of its own. */
  duplex<ReqInit, Res>(method: ClientMethod<ReqInit, Res>): Duplex<ReqInit, Res> {
    return this.transport.duplex(method, this.headers(null), this.limits(ENDLESS));
  }

  /**
   * Asks for the reply under the id of a call that has been executed, or is being executed, or has never arrived. After a
   * lost connection once. After an interruption until the kernel has stopped: if the call itself had not arrived, asking
   * is what starts it, so it has to be interrupted again.
   */
  private async askAgain<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    request: ReqInit,
    id: number,
    { signal, timeoutMs }: CallLimits,
    lost: Reply<Res>,
  ): Promise<Reply<Res>> {
    if (signal?.aborted !== true) {
      const again = await this.transport.unary(method, request, this.headers(id), { signal, timeoutMs });
      // A host that no longer knows the process cannot say what became of the call: the loss is the better explanation.
      return again.error !== null && again.error.reason === 'PROCESS_NOT_FOUND' ? lost : again;
    }
    const giveUp = performance.now() + (timeoutMs ?? TIMEOUT_MS);
    for (let wait = INTERRUPT_AGAIN_MS; performance.now() < giveUp; wait *= 2) {
      const again = await this.transport.unary(method, request, this.headers(id), { signal: null, timeoutMs: wait });
      if (again.error?.code !== status.DEADLINE_EXCEEDED || again.error.errno !== null) return again;
    }
    return lost;
  }

  private headers(id: number | null): CallHeaders {
    const { token, ids } = this.identity;
    return {
      process: token,
      thread: this.options.thread ?? null,
      requestId: id,
      acknowledge: id === null || ids === null ? null : ids.acknowledgement(id),
    };
  }

  private limits(duration: typeof ENDLESS | null): CallLimits {
    const { timeoutMs, signal = null } = this.options;
    return { timeoutMs: timeoutMs === undefined ? (duration === ENDLESS ? null : TIMEOUT_MS) : timeoutMs, signal };
  }
}

/** Whether the kernel may have answered, and the answer not come through. */
const mayBeLost = (error: KvmError | null, signal: AbortSignal | null): boolean =>
  error !== null &&
  error.errno === null &&
  (error.code === status.UNAVAILABLE || (error.code === status.CANCELLED && signal?.aborted === true));
