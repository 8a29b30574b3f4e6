import {
  type ChannelCredentials,
  type ChannelInterface,
  Client,
  connectivityState,
  credentials,
  Metadata,
  type StatusObject,
  status,
} from '@grpc/grpc-js';
import { failedReply, statusReply, transportError } from '../kvm-error.js';
import type { CallHeaders, CallLimits, ClientMethod, Duplex, Reply, Transport } from '../transport.js';
import { GrpcDuplex } from './duplex.js';

const KEEPALIVE_MS = 30_000;
const KEEPALIVE_TIMEOUT_MS = 15_000;
/** HTTP/2 receive window: what lets a Dump run at the speed of the host. */
const WINDOW_BYTES = 8 * 2 ** 20;
/** A chunk of 1 MiB and what surrounds it. */
const MESSAGE_MAX = 4 * 2 ** 20;

/** How to speak to a host that was started with `--tls-cert`. All PEM: the text, and not the name of a file. */
export interface ClientTls {
  /** Authorities that vouch for the host. */
  readonly ca: string | Uint8Array;
  /** The certificate of whoever calls, and its private key: the host wants to see one. */
  readonly cert: string | Uint8Array;
  readonly key: string | Uint8Array;
}

const OPTIONS = {
  'grpc.keepalive_time_ms': KEEPALIVE_MS,
  'grpc.keepalive_timeout_ms': KEEPALIVE_TIMEOUT_MS,
  'grpc-node.flow_control_window': WINDOW_BYTES,
  'grpc.max_receive_message_length': MESSAGE_MAX,
  'grpc.max_send_message_length': MESSAGE_MAX,
  // A call is repeated by its request id, which the host knows, and not by a library that does not.
  'grpc.enable_retries': 0,
  'grpc.service_config_disable_resolution': 1,
  // Nobody asks a client for its channelz; the server has its own.
  'grpc.enable_channelz': 0,
  // Connections of two clients in one program are as separate as those of two programs.
  'grpc.use_local_subchannel_pool': 1,
};

const bytesOf = (pem: string | Uint8Array | undefined): Buffer | null => (pem === undefined ? null : Buffer.from(pem));

const credentialsOf = (tls: ClientTls | null): ChannelCredentials =>
  tls === null ? credentials.createInsecure() : credentials.createSsl(bytesOf(tls.ca), bytesOf(tls.key), bytesOf(tls.cert));

const metadataOf = ({ process, thread, requestId, acknowledge }: CallHeaders): Metadata => {
  const metadata = new Metadata();
  if (process !== null) metadata.set('simkvm-process', process);
  if (thread !== null) metadata.set('simkvm-thread', String(thread));
  if (requestId !== null) metadata.set('simkvm-request-id', String(requestId));
  if (acknowledge !== null) metadata.set('simkvm-acknowledge', acknowledge);
  return metadata;
};

const optionsOf = ({ timeoutMs }: CallLimits): { deadline?: number } =>
  timeoutMs === null ? {} : { deadline: Date.now() + timeoutMs };

/** Calls `cancel` when `signal` says so. @returns what stops listening */
const cancelOn = (signal: AbortSignal, cancel: () => void): (() => void) => {
  signal.addEventListener('abort', cancel, { once: true });
  return () => signal.removeEventListener('abort', cancel);
};

interface CancellableCall {
  cancelWithStatus(code: status, details: string): void;
}

/** Takes what comes back of one call, and ends it where it takes too long. */
class UnaryListener<Res> {
  private message: Buffer | null = null;
  private deadline: NodeJS.Timeout | undefined;
  private stopListening: (() => void) | null = null;

  constructor(
    private readonly method: ClientMethod<never, Res>,
    private readonly resolve: (reply: Reply<Res>) => void,
  ) {}

  /** The deadline is kept here, and not sent: a header and a timer of the host's less, and it hears of the cancellation. */
  endAfter(call: CancellableCall, milliseconds: number): void {
    this.deadline = setTimeout(
      () => call.cancelWithStatus(status.DEADLINE_EXCEEDED, `no answer within ${milliseconds} ms`),
      milliseconds,
    );
  }

  endOn(call: CancellableCall, signal: AbortSignal): void {
    this.stopListening = cancelOn(signal, () => call.cancelWithStatus(status.CANCELLED, 'aborted'));
  }

  onReceiveMetadata(): void {}

  onReceiveMessage(message: Buffer): void {
    this.message = message;
  }

  onReceiveStatus(end: StatusObject): void {
    clearTimeout(this.deadline);
    this.stopListening?.();
    this.resolve(this.replyOf(end));
  }

  private replyOf(end: StatusObject): Reply<Res> {
    if (end.code !== status.OK) return statusReply(end, this.method);
    try {
      if (this.message !== null) return { error: null, response: this.method.responseDeserialize(this.message) };
    } catch (error) {
      return failedReply(error, this.method);
    }
    const { path } = this.method;
    return { error: transportError(status.INTERNAL, path, `${path}: the host has answered without a message`), response: null };
  }
}

/** Whether the channel leaves `state` before `deadline`. */
const stateChanges = (channel: ChannelInterface, state: connectivityState, deadline: number): Promise<boolean> =>
  new Promise((resolve) => channel.watchConnectivityState(state, deadline, (error) => resolve(error === undefined)));

/** A gRPC call for each call, as every other gRPC client makes them. */
export class UnaryTransport implements Transport {
  private readonly channel: ChannelInterface;

  private constructor(
    readonly target: string,
    private readonly client: Client,
  ) {
    this.channel = client.getChannel();
  }

  /**
   * @param target `host:port`
   * @throws KvmError with code UNAVAILABLE if nothing listens there, or does not answer within `timeoutMs`
   */
  static async connect(target: string, timeoutMs: number, tls: ClientTls | null = null): Promise<UnaryTransport> {
    const client = new Client(target, credentialsOf(tls), OPTIONS);
    const channel = client.getChannel();
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      const state = channel.getConnectivityState(true);
      if (state === connectivityState.READY) return new UnaryTransport(target, client);
      if (state === connectivityState.TRANSIENT_FAILURE || !(await stateChanges(channel, state, deadline))) break;
    }
    client.close();
    const message = `no simkvmd answers at ${target} (start one with \`simkvmd --listen ${target}\`)`;
    throw transportError(status.UNAVAILABLE, 'connect', message);
  }

  unary<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    request: ReqInit,
    headers: CallHeaders,
    { timeoutMs, signal }: CallLimits,
  ): Promise<Reply<Res>> {
    return new Promise((resolve) => {
      let message: Buffer;
      try {
        message = method.requestSerialize(request);
      } catch (error) {
        // A field that cannot be encoded, for example a number that is no safe integer.
        return resolve(failedReply(error, method));
      }
      // `client.makeUnaryRequest` makes an Error in case one is needed, an emitter and two interceptors for each call: more
      // than all that the SDK does itself. This is what it does beneath them.
      const call = this.channel.createCall(method.path, Number.POSITIVE_INFINITY, null, null, null);
      const listener = new UnaryListener(method, resolve);
      if (timeoutMs !== null) listener.endAfter(call, timeoutMs);
      if (signal !== null) listener.endOn(call, signal);
      call.start(metadataOf(headers), listener);
      call.sendMessageWithContext({}, message);
      call.halfClose();
      call.startRead();
    });
  }

  async *serverStream<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    request: ReqInit,
    headers: CallHeaders,
    limits: CallLimits,
  ): AsyncIterable<Res> {
    const stream = this.client.makeServerStreamRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      request,
      metadataOf(headers),
      optionsOf(limits),
    );
    // A stream that is left early is cancelled, and says so when nobody listens any more.
    stream.on('error', () => {});
    const { signal } = limits;
    const settled = signal === null ? null : cancelOn(signal, () => stream.cancel());
    try {
      yield* stream;
    } catch (error) {
      throw failedReply(error, method).error;
    } finally {
      settled?.();
      stream.cancel();
    }
  }

  clientStream<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    requests: AsyncIterable<ReqInit> | Iterable<ReqInit>,
    headers: CallHeaders,
    limits: CallLimits,
  ): Promise<Reply<Res>> {
    return new Promise((resolve) => {
      let over = false;
      let proceed = (): void => {};
      const end = (reply: Reply<Res>): void => {
        over = true;
        proceed();
        resolve(reply);
      };
      const stream = this.client.makeClientStreamRequest(
        method.path,
        method.requestSerialize,
        method.responseDeserialize,
        metadataOf(headers),
        optionsOf(limits),
        (error, response) => {
          settled?.();
          end(error === null && response !== undefined ? { error: null, response } : failedReply(error, method));
        },
      );
      const { signal } = limits;
      const settled = signal === null ? null : cancelOn(signal, () => stream.cancel());
      const send = async (): Promise<void> => {
        for await (const request of requests) {
          if (over) return;
          if (stream.write(request)) continue;
          await new Promise<void>((resume) => {
            proceed = resume;
            stream.once('drain', resume);
          });
        }
        stream.end();
      };
      send().catch((error: unknown) => {
        // The source of the requests has failed: its error, and not the cancellation that follows, is the reason.
        end(failedReply(error, method));
        stream.cancel();
      });
    });
  }

  duplex<ReqInit, Res>(method: ClientMethod<ReqInit, Res>, headers: CallHeaders, limits: CallLimits): Duplex<ReqInit, Res> {
    const stream = this.client.makeBidiStreamRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      metadataOf(headers),
      optionsOf(limits),
    );
    const { signal } = limits;
    const settled = signal === null ? () => {} : cancelOn(signal, () => stream.cancel());
    return new GrpcDuplex(method, stream, settled);
  }

  close(): void {
    this.client.close();
  }
}
