import { type ChannelCredentials, Client, credentials, Metadata, status } from '@grpc/grpc-js';
import { failedReply, type KvmError, transportError } from '../kvm-error.js';
import type { CallHeaders, CallLimits, ClientMethod, Duplex, Reply, Transport } from '../transport.js';
import { Connection } from './connection.js';
import { GrpcDuplex } from './duplex.js';
import { KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS, MESSAGE_MAX, WINDOW_BYTES } from './limits.js';
import type { ClientTls } from './tls.js';
import { framed, UnaryCall } from './unary-call.js';

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

const headersOf = ({ process, thread, requestId, acknowledge }: CallHeaders): Record<string, string> => {
  const headers: Record<string, string> = {};
  if (process !== null) headers['simkvm-process'] = process;
  if (thread !== null) headers['simkvm-thread'] = String(thread);
  if (requestId !== null) headers['simkvm-request-id'] = String(requestId);
  if (acknowledge !== null) headers['simkvm-acknowledge'] = acknowledge;
  return headers;
};

const metadataOf = (headers: CallHeaders): Metadata => {
  const metadata = new Metadata();
  for (const [key, value] of Object.entries(headersOf(headers))) metadata.set(key, value);
  return metadata;
};

const optionsOf = ({ timeoutMs }: CallLimits): { deadline?: number } =>
  timeoutMs === null ? {} : { deadline: Date.now() + timeoutMs };

const tooLong = (path: string, bytes: number): KvmError =>
  transportError(status.RESOURCE_EXHAUSTED, path, `${path}: a request of ${bytes} bytes, of at most ${MESSAGE_MAX}`);

/** Calls `cancel` when `signal` says so. @returns what stops listening */
const cancelOn = (signal: AbortSignal, cancel: () => void): (() => void) => {
  signal.addEventListener('abort', cancel, { once: true });
  return () => signal.removeEventListener('abort', cancel);
};

/**
 * A gRPC call for each call, as every other gRPC client makes them. Unary ones are made over a connection of their own,
 * without grpc-js's layers of calls, which cost several times what all the rest does; streams are grpc-js's. A host ends the
 * connection of whoever leaves too many streams early (nghttp2's limit of resets): what must not end with it is alone.
 */
export class UnaryTransport implements Transport {
  private client: Client | null = null;
  /** Of streams that are alone. */
  private readonly clients = new Set<Client>();

  private constructor(
    readonly target: string,
    private readonly tls: ClientTls | null,
    private readonly connection: Connection,
  ) {}

  /**
   * @param target `host:port`
   * @throws KvmError with code UNAVAILABLE if nothing listens there, or does not answer within `timeoutMs`
   */
  static async connect(target: string, timeoutMs: number, tls: ClientTls | null = null): Promise<UnaryTransport> {
    const connection = new Connection(target, tls);
    if (await connection.open(timeoutMs)) return new UnaryTransport(target, tls, connection);
    connection.close();
    const message = `no simkvmd answers at ${target} (start one with \`simkvmd --listen ${target}\`)`;
    throw transportError(status.UNAVAILABLE, 'connect', message);
  }

  unary<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    request: ReqInit,
    headers: CallHeaders,
    limits: CallLimits,
  ): Promise<Reply<Res>> {
    return new Promise((resolve) => {
      try {
        const message = method.requestSerialize(request);
        if (message.length > MESSAGE_MAX) throw tooLong(method.path, message.length);
        const stream = this.connection.request(method.path, headersOf(headers));
        new UnaryCall(method, stream, resolve).limit(limits);
        stream.end(framed(message));
      } catch (error) {
        // For example a field that cannot be encoded: a number that is no safe integer.
        resolve(failedReply(error, method));
      }
    });
  }

  async *serverStream<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    request: ReqInit,
    headers: CallHeaders,
    limits: CallLimits,
  ): AsyncIterable<Res> {
    const client = limits.alone === true ? this.anotherClient() : this.streams();
    const stream = client.makeServerStreamRequest(
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
      if (this.clients.delete(client)) client.close();
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
      const stream = this.streams().makeClientStreamRequest(
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
    const stream = this.streams().makeBidiStreamRequest(
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
    this.client?.close();
    for (const client of this.clients) client.close();
    this.connection.close();
  }

  private streams(): Client {
    this.client ??= this.newClient();
    return this.client;
  }

  private anotherClient(): Client {
    const client = this.newClient();
    this.clients.add(client);
    return client;
  }

  private newClient(): Client {
    return new Client(this.target, credentialsOf(this.tls), OPTIONS);
  }
}
