import { Client, credentials, Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { ErrorInfo, MigrationHalf, Status } from '../../../gen/messages.js';
import { MigrationService, type RpcMethod } from '../../../gen/services.js';
import { ERRNO, type Errno } from '../../kernel/errno.js';
import { Failure, type Result } from '../../kernel/failure.js';
import type { ChannelRole } from '../../migration/channel.js';
import { MESSAGE_MAX } from '../message-max.js';
import type { MigrationHost } from './migration-host.js';
import { exchangeMessageOf, type Wire, type WireListener } from './wire.js';

/** A call of another daemon may have to dial this one first. */
const CALL_MS = 20_000;
/** HTTP/2 receive window, which only a client can enlarge: a destination that pulls is the faster for it. */
const WINDOW_BYTES = 8 * 2 ** 20;
/** A link that is cut says nothing: so long without a sign of life is the end of a stream. */
const KEEPALIVE_MS = 5000;

const OPTIONS = {
  'grpc.keepalive_time_ms': KEEPALIVE_MS,
  'grpc.keepalive_timeout_ms': KEEPALIVE_MS,
  'grpc-node.flow_control_window': WINDOW_BYTES,
  'grpc.max_receive_message_length': MESSAGE_MAX,
  'grpc.max_send_message_length': MESSAGE_MAX,
  'grpc.enable_retries': 0,
  'grpc.service_config_disable_resolution': 1,
  'grpc.enable_channelz': 0,
  // Each stream has a connection of its own.
  'grpc.use_local_subchannel_pool': 1,
};

export const HALF_OF: Readonly<Record<ChannelRole, number>> = {
  source: MigrationHalf.MIGRATION_HALF_SOURCE,
  destination: MigrationHalf.MIGRATION_HALF_DESTINATION,
};

const isErrno = (name: string | undefined): name is Errno => name !== undefined && Object.hasOwn(ERRNO, name);

const UNREACHABLE: ReadonlySet<status> = new Set([status.UNAVAILABLE, status.DEADLINE_EXCEEDED, status.CANCELLED]);

/** What the other daemon's refusal says; EHOSTUNREACH where there is no such daemon. */
const failureOf = (address: string, error: Partial<ServiceError>): Failure => {
  const [details] = error.metadata?.get('grpc-status-details-bin') ?? [];
  const any = details === undefined || typeof details === 'string' ? [] : Status.decode(details).details;
  const info = any.find(({ type_url }) => type_url.endsWith('google.rpc.ErrorInfo'));
  if (info !== undefined) {
    const { reason, metadata } = ErrorInfo.decode(info.value);
    const { errno, errno_number: _number, ioctl: _ioctl, kernel_ref: ref = 'simkvmd', fw_error: fwError, ...rest } = metadata;
    if (isErrno(errno))
      return new Failure(errno, reason, ref, { ...rest, daemon: address }, fwError === undefined ? undefined : Number(fwError));
  }
  const code = error.code ?? status.UNKNOWN;
  if (UNREACHABLE.has(code))
    return new Failure('EHOSTUNREACH', 'DAEMON_UNREACHABLE', 'simkvmd', { daemon: address, message: error.details ?? '' });
  return new Failure('EIO', 'DAEMON_FAILED', 'simkvmd', {
    daemon: address,
    status: status[code] ?? String(code),
    message: error.details ?? '',
  });
};

/** Another daemon, which this one calls. */
export class DaemonClient {
  constructor(
    private readonly host: MigrationHost,
    readonly address: string,
  ) {}

  /** A unary call as a process there. */
  async call<Req, ReqInit, Res, ResInit>(
    rpc: RpcMethod<Req, ReqInit, Res, ResInit>,
    process: string,
    request: ReqInit,
  ): Promise<Result<Res>> {
    const client = this.connect();
    const metadata = new Metadata();
    if (process !== '') metadata.set('simkvm-process', process);
    try {
      return await new Promise((resolve) => {
        const { path, requestSerialize, responseDeserialize } = rpc;
        const options = { deadline: Date.now() + CALL_MS };
        client.makeUnaryRequest(path, requestSerialize, responseDeserialize, request, metadata, options, (error, response) =>
          resolve(error === null && response !== undefined ? response : failureOf(this.address, error ?? {})),
        );
      });
    } finally {
      client.close();
    }
  }

  /**
   * Opens a stream of a session.
   * @param called the half there
   * @param listen takes what comes; it gets the wire first
   */
  exchange<T extends WireListener>(session: string, called: ChannelRole, stream: number, listen: (wire: Wire) => T): T {
    const client = this.connect();
    const { path, requestType, responseDeserialize } = MigrationService.exchange;
    const asIs = (message: Buffer): Buffer => message;
    const call = client.makeBidiStreamRequest(path, asIs, responseDeserialize, new Metadata());
    const wire: Wire = {
      write: (message, sent) => call.write(message, sent),
      end: (failure) => {
        if (failure !== null) return call.cancel();
        call.end();
        setTimeout(() => call.cancel(), KEEPALIVE_MS).unref();
      },
    };
    const caller_address = this.host.advertise ?? '';
    const attach = { session, half: HALF_OF[called], stream, caller_address };
    call.write(Buffer.from(requestType.encode({ attach }).finish()));
    const listener = listen(wire);
    let over = false;
    const ended = (failure: Failure | null): void => {
      if (over) return;
      over = true;
      client.close();
      listener.ended(failure);
    };
    call.on('data', (message) => listener.received(exchangeMessageOf(message)));
    call.on('drain', () => listener.drained());
    call.on('error', (error: ServiceError) => ended(failureOf(this.address, error)));
    call.on('end', () => ended(null));
    return listener;
  }

  private connect(): Client {
    return new Client(this.address, this.host.tls ?? credentials.createInsecure(), OPTIONS);
  }
}
