import { type ClientHttp2Stream, constants, type Http2Session, type IncomingHttpHeaders } from 'node:http2';
import { Metadata, type StatusObject, status } from '@grpc/grpc-js';
import { failedReply, statusReply, transportError } from '../kvm-error.js';
import type { CallLimits, ClientMethod, Reply } from '../transport.js';
import { MESSAGE_MAX } from './limits.js';

/** Bytes before a message: whether it is compressed, and its length. */
const PREFIX_BYTES = 5;

/** A message as it goes over the wire. */
export const framed = (message: Uint8Array): Buffer => {
  const frame = Buffer.allocUnsafe(PREFIX_BYTES + message.length);
  frame[0] = 0;
  frame.writeUInt32BE(message.length, 1);
  frame.set(message, PREFIX_BYTES);
  return frame;
};

/** What a stream that ends without a status means (gRPC over HTTP/2, "HTTP2 Transport Mapping"); all others are INTERNAL. */
const STATUS_OF_RESET: ReadonlyMap<number, status> = new Map([
  [constants.NGHTTP2_REFUSED_STREAM, status.UNAVAILABLE],
  [constants.NGHTTP2_CANCEL, status.CANCELLED],
  [constants.NGHTTP2_ENHANCE_YOUR_CALM, status.RESOURCE_EXHAUSTED],
  [constants.NGHTTP2_INADEQUATE_SECURITY, status.PERMISSION_DENIED],
]);

/** What an answer of something that speaks no gRPC means (gRPC, "HTTP to gRPC Status Code Mapping"); all others are UNKNOWN. */
const STATUS_OF_HTTP: ReadonlyMap<number, status> = new Map([
  [400, status.INTERNAL],
  [401, status.UNAUTHENTICATED],
  [403, status.PERMISSION_DENIED],
  [404, status.UNIMPLEMENTED],
  [429, status.UNAVAILABLE],
  [502, status.UNAVAILABLE],
  [503, status.UNAVAILABLE],
  [504, status.UNAVAILABLE],
]);

/** `grpc-message`, which comes percent-encoded. */
const textOf = (header: string | string[] | undefined): string => {
  const text = String(header ?? '');
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
};

/** Whether what begins with `first` and has so many bytes is one message, and not compressed. */
const isMessage = (first: Buffer | undefined, bytes: number): boolean =>
  first !== undefined && first.length >= PREFIX_BYTES && first[0] === 0 && first.readUInt32BE(1) === bytes - PREFIX_BYTES;

const statusIn = (trailers: IncomingHttpHeaders, code: status): StatusObject => ({
  code,
  details: textOf(trailers['grpc-message']),
  metadata: Metadata.fromHttp2Headers(trailers),
});

const ended = (code: status, details: string): StatusObject => ({ code, details, metadata: new Metadata() });

/** Takes what comes back of one request, and ends it where it takes too long. */
export class UnaryCall<Res> {
  private readonly session: Http2Session | undefined;
  private httpStatus = 200;
  /** The host has said that all is well; the message may still be on its way. */
  private ok = false;
  private received: Buffer[] = [];
  private bytes = 0;
  private error: Error | null = null;
  private deadline: NodeJS.Timeout | undefined;
  private stopListening: (() => void) | null = null;
  private resolve: ((reply: Reply<Res>) => void) | null;

  constructor(
    private readonly method: ClientMethod<never, Res>,
    private readonly stream: ClientHttp2Stream,
    resolve: (reply: Reply<Res>) => void,
  ) {
    this.resolve = resolve;
    this.session = stream.session;
    stream.on('response', (headers, flags) => {
      this.httpStatus = headers[':status'] ?? 200;
      if ((flags & constants.NGHTTP2_FLAG_END_STREAM) !== 0) this.end(headers);
    });
    stream.on('data', (chunk: Buffer) => this.take(chunk));
    stream.on('trailers', (headers) => this.end(headers));
    stream.on('error', (error) => {
      this.error = error;
    });
    stream.on('close', () => this.settle(this.ok ? null : this.withoutStatus()));
  }

  /** The deadline is kept here, and not sent: a header and a timer of the host's less, and it hears of the cancellation. */
  limit({ timeoutMs, signal }: CallLimits): void {
    if (timeoutMs !== null)
      this.deadline = setTimeout(() => this.cancel(status.DEADLINE_EXCEEDED, `no answer within ${timeoutMs} ms`), timeoutMs);
    if (signal === null) return;
    const abort = (): void => this.cancel(status.CANCELLED, 'aborted');
    signal.addEventListener('abort', abort, { once: true });
    this.stopListening = () => signal.removeEventListener('abort', abort);
  }

  private cancel(code: status, details: string): void {
    this.settle(ended(code, details));
    this.stream.close(constants.NGHTTP2_CANCEL);
  }

  private take(chunk: Buffer): void {
    this.received.push(chunk);
    this.bytes += chunk.length;
    if (this.bytes > PREFIX_BYTES + MESSAGE_MAX)
      this.cancel(status.RESOURCE_EXHAUSTED, `the host has answered with more than ${MESSAGE_MAX} bytes`);
  }

  /** The host has said how the call ended. */
  private end(trailers: IncomingHttpHeaders): void {
    const code = Number(trailers['grpc-status'] ?? Number.NaN);
    this.ok = code === status.OK;
    if (!this.ok) this.settle(Number.isNaN(code) ? this.withoutStatus() : statusIn(trailers, code));
    else if (isMessage(this.received[0], this.bytes)) this.settle(null);
  }

  private withoutStatus(): StatusObject {
    const { rstCode = 0 } = this.stream;
    if (this.httpStatus !== 200)
      return ended(STATUS_OF_HTTP.get(this.httpStatus) ?? status.UNKNOWN, `the host has answered with HTTP ${this.httpStatus}`);
    if (this.session?.destroyed !== false)
      return ended(status.UNAVAILABLE, `the connection is lost${this.error === null ? '' : `: ${this.error.message}`}`);
    return ended(STATUS_OF_RESET.get(rstCode) ?? status.INTERNAL, `the host has ended the stream with code ${rstCode}`);
  }

  /** @param failure null: OK. What comes after the first end does nothing. */
  private settle(failure: StatusObject | null): void {
    const { resolve, received } = this;
    if (resolve === null) return;
    clearTimeout(this.deadline);
    this.stopListening?.();
    // Node keeps a stream a while after its end: it is not to keep the answer too.
    this.resolve = null;
    this.received = [];
    resolve(failure === null ? this.answer(received) : statusReply(failure, this.method));
  }

  private answer(received: readonly Buffer[]): Reply<Res> {
    const [first] = received;
    const { method } = this;
    const { path } = method;
    const whole = received.length === 1 && first !== undefined ? first : Buffer.concat(received);
    if (!isMessage(whole, whole.length)) {
      const message = `${path}: the host has answered without a message, or with more than one`;
      return { error: transportError(status.INTERNAL, path, message), response: null };
    }
    try {
      return { error: null, response: method.responseDeserialize(whole.subarray(PREFIX_BYTES)) };
    } catch (error) {
      return failedReply(error, method);
    }
  }
}
