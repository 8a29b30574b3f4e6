import { Client, credentials, Metadata, status } from '@grpc/grpc-js';
import { ExchangeRequest, MigrationHalf } from '../../../gen/messages.js';
import { MigrationService, type RpcMethod } from '../../../gen/services.js';
import type { Result } from '../../kernel/failure.js';
import type { ChannelRole } from '../../migration/channel.js';
import { MESSAGE_MAX } from '../message-max.js';
import { callEnd, endOfError, failureOf } from './call-end.js';
import { openSocket } from './daemon-socket.js';
import { ExchangeCall } from './exchange-call.js';
import type { MigrationHost } from './migration-host.js';
import { type ExchangeMessage, exchangeMessageOf, type Wire, type WireListener } from './wire.js';

/** A call of another daemon may have to dial this one first. */
const CALL_MS = 20_000;
/** A link that is cut says nothing: so long without a sign of life is the end of a stream. */
const KEEPALIVE_MS = 5000;

const OPTIONS = {
  'grpc.keepalive_time_ms': KEEPALIVE_MS,
  'grpc.keepalive_timeout_ms': KEEPALIVE_MS,
  'grpc.max_receive_message_length': MESSAGE_MAX,
  'grpc.max_send_message_length': MESSAGE_MAX,
  'grpc.enable_retries': 0,
  'grpc.service_config_disable_resolution': 1,
  'grpc.enable_channelz': 0,
  // Two daemons in one program are as separate as those of two.
  'grpc.use_local_subchannel_pool': 1,
};

export const HALF_OF: Readonly<Record<ChannelRole, number>> = {
  source: MigrationHalf.MIGRATION_HALF_SOURCE,
  destination: MigrationHalf.MIGRATION_HALF_DESTINATION,
};

const notOne = callEnd(status.INTERNAL, 'what has come is no message of Exchange');

const responseOf = (message: Buffer): ExchangeMessage | null => {
  try {
    return exchangeMessageOf(MigrationService.exchange.responseDeserialize(message));
  } catch {
    return null;
  }
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
          resolve(error === null && response !== undefined ? response : failureOf(this.address, endOfError(error))),
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
    const { address } = this;
    const tls = this.host.tls?.socket ?? null;
    let listener: T | null = null;
    const call = new ExchangeCall({
      connect: (onread) => openSocket(address, tls, onread),
      hearsPages: called === 'source',
      authority: address,
      secure: tls !== null,
      path: MigrationService.exchange.path,
      keepaliveMs: KEEPALIVE_MS,
      received: (bytes) => {
        const message = responseOf(bytes);
        if (message === null) return notOne;
        listener?.received(message);
        return null;
      },
      drained: () => listener?.drained(),
      ended: (end) => listener?.ended(end.code === status.OK ? null : failureOf(address, end)),
    });
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
    call.write([ExchangeRequest.encode({ attach }).finish()]);
    listener = listen(wire);
    return listener;
  }

  private connect(): Client {
    return new Client(this.address, this.host.tls?.channel ?? credentials.createInsecure(), OPTIONS);
  }
}
