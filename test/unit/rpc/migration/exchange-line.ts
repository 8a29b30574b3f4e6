import {
  createServer,
  type Http2Server,
  type IncomingHttpHeaders,
  type ServerHttp2Session,
  type ServerHttp2Stream,
  type ServerOptions,
} from 'node:http2';
import type { OnReadOpts } from 'node:net';
import { Duplex } from 'node:stream';
import type { CallEnd } from '../../../../server/rpc/migration/call-end.js';
import { ExchangeCall, type ExchangeCallOptions } from '../../../../server/rpc/migration/exchange-call.js';
import { releaseAfterTest } from '../../../helpers/leftovers.js';

/** A connection inside of this process, whose other end is `far`. */
export interface Line {
  readonly far: Duplex;
  readonly connect: (onread: OnReadOpts | null) => Duplex;
}

export interface LineOptions {
  /** What is read at once, bytes at most. @default all that the reader has room for */
  readonly pieces?: number;
  /** Goes on reading when it is told not to, as TLS does. @default false */
  readonly restless?: boolean;
  /** Changes what this side says; null: it is lost. @default nothing */
  readonly outward?: (bytes: Buffer) => Buffer | null;
}

/** What has been read is overwritten as soon as the reader has returned. */
export const createLine = ({
  pieces = Number.POSITIVE_INFINITY,
  restless = false,
  outward = (bytes) => bytes,
}: LineOptions = {}): Line => {
  let onread: OnReadOpts | null = null;
  let coming: Buffer = Buffer.alloc(0);
  let isPaused = false;
  const deliver = (): void => {
    if (onread === null) {
      for (; coming.length > 0; coming = coming.subarray(pieces)) near.push(Buffer.from(coming.subarray(0, pieces)));
      return;
    }
    const { callback } = onread;
    const { buffer } = onread;
    if (!Buffer.isBuffer(buffer)) throw new Error('read into no buffer');
    while (coming.length > 0 && (!isPaused || restless)) {
      const count = coming.copy(buffer, 0, 0, Math.min(pieces, buffer.length));
      coming = coming.subarray(count);
      isPaused = !callback(count, buffer);
      buffer.fill(0xdd, 0, count);
    }
  };
  const near = new (class extends Duplex {
    override _read(): void {}
    override _write(bytes: Buffer, _encoding: BufferEncoding, done: () => void): void {
      const said = outward(Buffer.from(bytes));
      if (said !== null) far.push(said);
      done();
    }
    override _final(done: () => void): void {
      far.push(null);
      done();
    }
    override resume(): this {
      isPaused = false;
      setImmediate(deliver);
      return super.resume();
    }
  })();
  const far = new Duplex({
    read: () => {},
    write: (bytes: Buffer, _encoding, done) => {
      coming = Buffer.concat([coming, bytes]);
      setImmediate(() => {
        deliver();
        done();
      });
    },
    destroy: (error, done) => {
      setImmediate(() => near.destroy());
      done(error);
    },
  });
  near.on('close', () => far.destroy());
  return {
    far,
    connect: (options) => {
      onread = options;
      return near;
    },
  };
};

/** A call over a line, and what it has come to. */
export interface TestCall {
  readonly call: ExchangeCall;
  readonly messages: Buffer[];
  readonly ended: Promise<CallEnd>;
  /** The same, as far as it has. */
  end: CallEnd | null;
  drained: number;
}

export const callOver = ({ connect }: Line, overrides: Partial<ExchangeCallOptions> = {}): TestCall => {
  let resolve: (end: CallEnd) => void = () => {};
  const ended = new Promise<CallEnd>((settle) => {
    resolve = settle;
  });
  const messages: Buffer[] = [];
  const options: ExchangeCallOptions = {
    connect,
    hearsPages: true,
    authority: '192.0.2.1:7341',
    secure: false,
    path: '/test.Exchange',
    keepaliveMs: 60_000,
    received: (message) => {
      messages.push(Buffer.from(message));
      return null;
    },
    drained: () => {
      made.drained++;
    },
    ended: (end) => {
      made.end = end;
      resolve(end);
    },
    ...overrides,
  };
  const made: TestCall = { call: new ExchangeCall(options), messages, ended, end: null, drained: 0 };
  releaseAfterTest(() => made.call.cancel());
  return made;
};

/** What node:http2 makes of the other end. */
export const serve = (
  { far }: Line,
  options: ServerOptions,
  handler: (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => void,
): ServerHttp2Session[] => {
  const server: Http2Server = createServer(options);
  const sessions: ServerHttp2Session[] = [];
  server.on('session', (session) => sessions.push(session));
  server.on('sessionError', () => {});
  server.on('stream', (stream, headers) => {
    stream.on('error', () => {});
    handler(stream, headers);
  });
  server.emit('connection', far);
  return sessions;
};
