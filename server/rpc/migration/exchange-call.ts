import { type ClientHttp2Session, type ClientHttp2Stream, connect, constants } from 'node:http2';
import type { OnReadOpts } from 'node:net';
import type { Duplex } from 'node:stream';
import { status } from '@grpc/grpc-js';
import { MESSAGE_MAX } from '../message-max.js';
import { MessageWriter } from '../message-writer.js';
import type { Pieces } from '../pieces.js';
import { type CallEnd, callEnd, endOfReset, endOfTrailers } from './call-end.js';
import { DataTap, WINDOW_BYTES } from './data-tap.js';
import { MessageReader } from './message-reader.js';

export interface ExchangeCallOptions {
  /** @param onread null: as every connection */
  readonly connect: (onread: OnReadOpts | null) => Duplex;
  /** Pages come, and do not go: what node:http2 would do with each piece of them is not to be paid for. */
  readonly hearsPages: boolean;
  /** `host:port`, for the header. */
  readonly authority: string;
  readonly secure: boolean;
  /** Path of the method. */
  readonly path: string;
  /** A sign of life is asked for as often, and has to come within this time. */
  readonly keepaliveMs: number;
  /** @param message whose memory is used again afterwards. @returns why it is none, which ends the call; null: it is one */
  readonly received: (message: Buffer) => CallEnd | null;
  readonly drained: () => void;
  /** The peer or the network has ended the call. */
  readonly ended: (end: CallEnd) => void;
}

/** A gRPC call that streams messages both ways, over a connection of its own (gRPC over HTTP/2). */
export class ExchangeCall {
  private readonly connection: Duplex;
  private readonly session: ClientHttp2Session;
  private readonly stream: ClientHttp2Stream;
  private readonly reader: MessageReader;
  private readonly writer: MessageWriter;
  private readonly options: ExchangeCallOptions;
  private over = false;
  private error: Error | null = null;

  constructor(options: ExchangeCallOptions) {
    this.options = options;
    const tap = options.hearsPages ? new DataTap(options.connect, (bytes, begin, end) => this.take(bytes, begin, end)) : null;
    const connection = tap ?? options.connect(null);
    this.connection = connection;
    this.reader = new MessageReader(MESSAGE_MAX, (message) => (this.over ? null : options.received(message)));
    // Of the connection that is there no more is taken from the URL, which has its own rules for what a host may be called.
    this.session = connect('http://localhost', {
      settings: { enablePush: false, initialWindowSize: WINDOW_BYTES },
      createConnection: () => connection,
    });
    this.session.once('connect', () => this.session.setLocalWindowSize(WINDOW_BYTES));
    this.session.on('error', (error) => this.failed(error));
    const headers = {
      ':method': 'POST',
      ':scheme': options.secure ? 'https' : 'http',
      ':authority': options.authority,
      ':path': options.path,
      te: 'trailers',
      'content-type': 'application/grpc',
    };
    this.stream = this.session.request(headers);
    this.writer = new MessageWriter(this.stream, () => {
      if (!this.over) options.drained();
    });
    this.listen(tap);
    this.keepAlive();
  }

  /**
   * Sends a message.
   * @param sent called once nobody looks at the message's memory any more
   * @returns false: there is no room for more before `drained`
   */
  write(message: Pieces, sent?: () => void): boolean {
    return this.writer.write(message, sent);
  }

  /** Nothing more is said; the peer may go on. */
  end(): void {
    this.stream.end();
  }

  /** Ends the call from this side: nothing is told any more. */
  cancel(): void {
    this.over = true;
    this.stream.close(constants.NGHTTP2_CANCEL);
  }

  private listen(tap: DataTap | null): void {
    const { stream } = this;
    stream.on('response', (headers, flags) => {
      const code = headers[':status'];
      if (code !== 200) this.settle(callEnd(status.UNAVAILABLE, `it has answered with HTTP ${code}`));
      else if ((flags & constants.NGHTTP2_FLAG_END_STREAM) === 0) tap?.open();
      else this.settle(endOfTrailers(headers) ?? endOfReset(stream.rstCode));
    });
    stream.on('trailers', (headers) => this.settle(endOfTrailers(headers) ?? endOfReset(stream.rstCode)));
    stream.on('error', (error) => this.failed(error));
    stream.on('close', () => {
      this.settle(
        this.isLost ? callEnd(status.UNAVAILABLE, this.error?.message ?? 'the connection is lost') : endOfReset(stream.rstCode),
      );
      this.hangUp();
    });
    // Where there is a tap, nothing comes here but the end.
    stream.on('data', (data: Buffer) => this.take(data, 0, data.length));
  }

  private take(bytes: Buffer, begin: number, end: number): void {
    const refused = this.over ? null : this.reader.take(bytes, begin, end);
    if (refused !== null) this.settle(refused);
  }

  private get isLost(): boolean {
    return this.connection.destroyed || this.session.destroyed;
  }

  private failed(error: Error): void {
    this.error ??= error;
  }

  private settle(end: CallEnd): void {
    if (this.over) return;
    this.over = true;
    this.hangUp();
    this.options.ended(end);
  }

  private hangUp(): void {
    this.session.destroy();
    this.connection.destroy();
  }

  private keepAlive(): void {
    const { session } = this;
    const { keepaliveMs } = this.options;
    let silence: NodeJS.Timeout | undefined;
    const timer = setInterval(() => {
      if (session.destroyed || silence !== undefined) return;
      silence = setTimeout(() => {
        this.settle(callEnd(status.UNAVAILABLE, `no sign of life within ${keepaliveMs} ms`));
        this.hangUp();
      }, keepaliveMs).unref();
      session.ping(() => {
        clearTimeout(silence);
        silence = undefined;
      });
    }, keepaliveMs).unref();
    session.once('close', () => {
      clearInterval(timer);
      clearTimeout(silence);
    });
  }
}
