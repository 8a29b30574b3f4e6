import type { KvmError } from './kvm-error.js';

/** What a client needs of an RPC. Every method of `gen/services.ts` is one. */
export interface ClientMethod<ReqInit, Res> {
  /** `/simkvm.v1.KvmVm/Ioeventfd` */
  readonly path: string;
  readonly requestSerialize: (message: ReqInit) => Buffer;
  readonly responseDeserialize: (bytes: Buffer) => Res;
  /** Type URL of the response, as the details of a failure name it. */
  readonly responseTypeUrl: string;
}

/** The end of a call: what came back, also where the call failed and the kernel had written an answer all the same. */
export type Reply<Res> =
  | { readonly error: null; readonly response: Res }
  | { readonly error: KvmError; readonly response: Res | null };

/** What goes with a call beside its message. */
export interface CallHeaders {
  /** Token of the calling process; null: the host's init process. */
  readonly process: string | null;
  /** Thread that makes the call; null: one of its own. */
  readonly thread: number | null;
  /** Id under which the call is executed once; null: the reply cannot be asked for again. */
  readonly requestId: number | null;
  /** `simkvm-acknowledge`: replies that have arrived. */
  readonly acknowledge: string | null;
}

/** How long a call may take, and what ends it early. */
export interface CallLimits {
  /** Milliseconds; null: no deadline. */
  readonly timeoutMs: number | null;
  readonly signal: AbortSignal | null;
  /**
   * Of a stream: it has a connection of its own, and does not end with that of the others.
   * @default false
   */
  readonly alone?: boolean;
}

/**
 * A call with a stream each way. Reading it gives what the host says; it throws KvmError, and cancels the call when it is left.
 */
export interface Duplex<ReqInit, Res> extends AsyncIterable<Res> {
  /** Resolves when there is room for the next message. After the call is over it does nothing. */
  send(request: ReqInit): Promise<void>;
  /** Says that nothing more will be sent. */
  end(): void;
  cancel(): void;
}

/**
 * The way of a call to the host. There may be several; nothing above knows which one it is.
 *
 * Calls never reject: a failure, the kernel's or the transport's, is the reply's `error`. Streams throw a KvmError.
 */
export interface Transport {
  /** Where the host is, `host:port`. */
  readonly target: string;
  unary<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    request: ReqInit,
    headers: CallHeaders,
    limits: CallLimits,
  ): Promise<Reply<Res>>;
  serverStream<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    request: ReqInit,
    headers: CallHeaders,
    limits: CallLimits,
  ): AsyncIterable<Res>;
  clientStream<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    requests: AsyncIterable<ReqInit> | Iterable<ReqInit>,
    headers: CallHeaders,
    limits: CallLimits,
  ): Promise<Reply<Res>>;
  duplex<ReqInit, Res>(method: ClientMethod<ReqInit, Res>, headers: CallHeaders, limits: CallLimits): Duplex<ReqInit, Res>;
  close(): void;
}
