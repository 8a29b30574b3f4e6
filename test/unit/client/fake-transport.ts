import { Metadata, status } from '@grpc/grpc-js';
import { Caller, type CallOptions } from '../../../client/call.js';
import { failedReply } from '../../../client/kvm-error.js';
import { RequestIds } from '../../../client/request-ids.js';
import type { CallHeaders, CallLimits, ClientMethod, Duplex, Reply, Transport } from '../../../client/transport.js';
import { ErrorInfo, Status } from '../../../gen/messages.js';

/** A call as it left the client. */
export interface SentCall {
  readonly path: string;
  /** The request, decoded from the wire. */
  readonly request: Buffer;
  readonly headers: CallHeaders;
  readonly limits: CallLimits;
}

/** What a host says to a call: bytes of a response, or a failure. */
export type FakeAnswer =
  | { readonly response: Buffer }
  /** Of a stream. */
  | { readonly responses: readonly Buffer[] }
  | { readonly failure: FakeFailure }
  | 'silence';

/** A failure as gRPC carries it. */
export interface FakeFailure {
  readonly code: status;
  readonly reason?: string;
  /** ErrorInfo.metadata; none: a failure of the transport. */
  readonly metadata?: Record<string, string>;
  /** A response that comes with it: type URL and bytes. */
  readonly attachment?: { readonly type_url: string; readonly value: Buffer };
}

/** What grpc-js would reject with. */
export const serviceError = ({ code, reason = '', metadata: info, attachment }: FakeFailure): Error => {
  const metadata = new Metadata();
  if (info !== undefined) {
    const value = ErrorInfo.encode({ reason, domain: 'kvm.simkvm', metadata: info }).finish();
    const details = [{ type_url: 'type.googleapis.com/google.rpc.ErrorInfo', value }, ...(attachment ? [attachment] : [])];
    metadata.set('grpc-status-details-bin', Buffer.from(Status.encode({ code, message: `failed: ${reason}`, details }).finish()));
  }
  return Object.assign(new Error(status[code]), { code, details: `status ${status[code]}`, metadata });
};

/** A kernel's refusal. */
export const refusal = (errno: string, reason: string, more: Record<string, string> = {}): FakeAnswer => ({
  failure: { code: status.FAILED_PRECONDITION, reason, metadata: { errno, ioctl: 'KVM_TEST', kernel_ref: 'kvm_test', ...more } },
});

export const lost: FakeAnswer = { failure: { code: status.UNAVAILABLE } };

/** The response with no field set, whatever its type: ret 0. */
export const zero: FakeAnswer = { response: Buffer.alloc(0) };

/** A host made of a function. */
export class FakeTransport implements Transport {
  readonly target: string = 'fake:1';
  readonly sent: SentCall[] = [];
  closed = false;

  constructor(private readonly answer: (call: SentCall) => FakeAnswer | Promise<FakeAnswer> = () => zero) {}

  async unary<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    request: ReqInit,
    headers: CallHeaders,
    limits: CallLimits,
  ): Promise<Reply<Res>> {
    const call = { path: method.path, request: method.requestSerialize(request), headers, limits };
    this.sent.push(call);
    const answer = await this.answer(call);
    if (answer === 'silence') return this.cancelled(method, limits);
    if ('failure' in answer) return failedReply(serviceError(answer.failure), method);
    if ('responses' in answer) throw new Error(`${method.path} is no stream`);
    return { error: null, response: method.responseDeserialize(answer.response) };
  }

  /** Answers when the call is given up. */
  private cancelled<Res>(method: ClientMethod<never, Res>, { signal, timeoutMs }: CallLimits): Promise<Reply<Res>> {
    return new Promise((resolve) => {
      const end = (code: status) => () => resolve(failedReply(serviceError({ code }), method));
      if (signal?.aborted === true) return end(status.CANCELLED)();
      signal?.addEventListener('abort', end(status.CANCELLED));
      if (timeoutMs !== null) setTimeout(end(status.DEADLINE_EXCEEDED), timeoutMs);
    });
  }

  async *serverStream<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    request: ReqInit,
    headers: CallHeaders,
    limits: CallLimits,
  ): AsyncIterable<Res> {
    const call = { path: method.path, request: method.requestSerialize(request), headers, limits };
    this.sent.push(call);
    const answer = await this.answer(call);
    if (answer === 'silence') throw (await this.cancelled(method, limits)).error;
    if ('failure' in answer) throw failedReply(serviceError(answer.failure), method).error;
    const responses = 'responses' in answer ? answer.responses : [answer.response];
    for (const response of responses) yield method.responseDeserialize(response);
  }

  async clientStream<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    requests: AsyncIterable<ReqInit> | Iterable<ReqInit>,
    headers: CallHeaders,
    limits: CallLimits,
  ): Promise<Reply<Res>> {
    let reply: Reply<Res> | null = null;
    for await (const request of requests) reply = await this.unary(method, request, headers, limits);
    if (reply === null) throw new Error('a stream without a message');
    return reply;
  }

  /** A stream that takes what is sent, and that the host ends without a word. */
  duplex<ReqInit, Res>(method: ClientMethod<ReqInit, Res>, headers: CallHeaders, limits: CallLimits): Duplex<ReqInit, Res> {
    return {
      send: async (request) =>
        void this.sent.push({ path: method.path, request: method.requestSerialize(request), headers, limits }),
      end: () => {},
      cancel: () => {},
      async *[Symbol.asyncIterator]() {},
    };
  }

  close(): void {
    this.closed = true;
  }
}

/** A process's calls over `transport`. */
export const callerOver = (transport: Transport, options?: CallOptions): Caller =>
  new Caller(transport, { token: 'token', ids: new RequestIds() }, options);
