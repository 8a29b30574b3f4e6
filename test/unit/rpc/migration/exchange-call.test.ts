import { constants, type OutgoingHttpHeaders, type ServerHttp2Stream } from 'node:http2';
import { setImmediate } from 'node:timers/promises';
import { status } from '@grpc/grpc-js';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { MESSAGE_MAX } from '../../../../server/rpc/message-max.js';
import { prefixOf } from '../../../../server/rpc/message-writer.js';
import type { ExchangeCallOptions } from '../../../../server/rpc/migration/exchange-call.js';
import { callOver, createLine, type Line, serve } from './exchange-line.js';

const MIB = 2 ** 20;
const GRPC = { ':status': 200, 'content-type': 'application/grpc' } as const;

const framed = (...messages: Buffer[]): Buffer =>
  Buffer.concat(messages.flatMap((message) => [prefixOf(message.length), message]));

const pattern = (bytes: number, seed: number): Buffer =>
  Buffer.from(Uint8Array.from({ length: bytes }, (_, at) => at * 7 + seed));

/** As it is written where it lies in several places. */
const inPieces = (message: Buffer = Buffer.alloc(0)): Buffer[] => [
  message.subarray(0, 3),
  message.subarray(3, 3),
  message.subarray(3),
];

/** Answers with messages and a status. */
const answer =
  (messages: readonly Buffer[], trailers: Readonly<Record<string, string>> = { 'grpc-status': '0' }) =>
  (stream: ServerHttp2Stream): void => {
    stream.respond(GRPC, { waitForTrailers: true });
    stream.on('wantTrailers', () => stream.sendTrailers(trailers));
    stream.end(framed(...messages));
  };

/** Ends without trailers. */
const sorry =
  (headers: OutgoingHttpHeaders, text = 'sorry') =>
  (stream: ServerHttp2Stream): void => {
    stream.respond(headers);
    stream.end(text);
  };

const frame = (type: number, flags: number, stream: number, payload: Uint8Array, length = payload.length): Buffer =>
  Buffer.from([length >> 16, length >> 8, length, type, flags, 0, 0, 0, stream, ...payload].map((byte) => byte & 0xff));
const SETTINGS = frame(4, 0, 0, new Uint8Array(0));
/** `:status: 200` by the static table of HPACK, and nothing else. */
const HEADERS = frame(1, 4, 1, Uint8Array.from([0x88]));
const DATA = 0;
const END_STREAM = 1;
const PADDED = 8;

/** A peer that says what it likes. */
const sayTo = ({ far }: Line, ...frames: Buffer[]): Buffer[] => {
  const heard: Buffer[] = [];
  far.on('data', (bytes: Buffer) => heard.push(bytes));
  for (const each of [SETTINGS, ...frames]) far.write(each);
  return heard;
};

describe.each([true, false])('a call of Exchange (one that hears pages: %s)', (hearsPages) => {
  const messages = [pattern(3, 1), Buffer.alloc(0), pattern(40_000, 2), pattern(1, 3), pattern(20_000, 4)];

  it.each([1, 2, 3, 7, 9, 10, 64, 1000, 16_393, 100_000, Number.POSITIVE_INFINITY])(
    'hears every message, read %s bytes at a time',
    async (pieces) => {
      for (const restless of [false, true]) {
        const line = createLine({ pieces, restless });
        const call = callOver(line, { hearsPages });
        serve(line, {}, answer(messages));
        expect(await call.ended).toEqual({ code: status.OK, details: '', statusDetails: null });
        expect(call.messages.length).toBe(messages.length);
        expect(call.messages.every((message, index) => message.equals(messages[index] ?? Buffer.of(1)))).toBe(true);
      }
    },
  );

  it.each([7, 9, 100, 100_000])('hears what comes right behind the headers, read %s bytes at a time', async (pieces) => {
    for (const restless of [false, true]) {
      const line = createLine({ pieces, restless });
      const call = callOver(line, { hearsPages });
      const text = framed(...messages);
      sayTo(
        line,
        HEADERS,
        ...Array.from({ length: 8 }, (_, at) => frame(DATA, 0, 1, text.subarray(at * 10_000, (at + 1) * 10_000))),
      );
      while (call.messages.length < messages.length) await setImmediate();
      expect(Buffer.concat(call.messages).equals(Buffer.concat(messages))).toBe(true);
    }
  });

  it('hears messages whose frames have been padded', async () => {
    const line = createLine({ pieces: 1000 });
    const call = callOver(line, { hearsPages });
    serve(line, { paddingStrategy: constants.PADDING_STRATEGY_MAX }, answer(messages));
    expect((await call.ended).code).toBe(status.OK);
    expect(Buffer.concat(call.messages).equals(Buffer.concat(messages))).toBe(true);
  });

  it('is one of gRPC to whoever is called, and says what it is to say', async () => {
    const line = createLine();
    const call = callOver(line, { hearsPages });
    const said: Buffer[] = [];
    const asked = new Promise<object>((resolve) => {
      serve(line, {}, (stream, headers) => {
        resolve(headers);
        stream.on('data', (bytes: Buffer) => said.push(bytes));
        stream.on('end', () => answer([])(stream));
      });
    });
    const sent: number[] = [];
    expect(call.call.write(inPieces(messages[2]), () => sent.push(1))).toBe(true);
    expect(call.call.write([messages[0] ?? Buffer.alloc(0)], () => sent.push(2))).toBe(true);
    call.call.end();
    expect((await call.ended).code).toBe(status.OK);
    expect(Buffer.concat(said).equals(framed(messages[2] ?? Buffer.alloc(0), messages[0] ?? Buffer.alloc(0)))).toBe(true);
    expect(sent).toEqual([1, 2]);
    expect(await asked).toMatchObject({
      ':method': 'POST',
      ':path': '/test.Exchange',
      ':authority': '192.0.2.1:7341',
      ':scheme': 'http',
      te: 'trailers',
      'content-type': 'application/grpc',
    });
  });

  it('has room for 16 messages that wait, and says when there is more', async () => {
    const line = createLine();
    const call = callOver(line, { hearsPages });
    const room = Array.from({ length: 17 }, () => call.call.write([pattern(100, 1)]));
    expect(room).toEqual([...new Array(15).fill(true), false, false]);
    expect(call.drained).toBe(0);
    serve(line, {}, (stream) => stream.on('end', () => answer([])(stream)).resume());
    call.call.end();
    await call.ended;
    expect(call.drained).toBe(1);
  });
});

describe.each([true, false])('the end of a call of Exchange (one that hears pages: %s)', (hearsPages) => {
  const endOf = (handler: (stream: ServerHttp2Stream) => void) => {
    const line = createLine();
    const call = callOver(line, { hearsPages });
    serve(line, {}, handler);
    return call.ended;
  };

  it('is what the trailers say', async () => {
    const details = Buffer.from([8, 5, 255]);
    const trailers = {
      'grpc-status': '5',
      'grpc-message': 'no%20such%20thing %zz',
      'grpc-status-details-bin': details.toString('base64'),
    };
    expect(await endOf(answer([pattern(10, 1)], trailers))).toEqual({
      code: status.NOT_FOUND,
      details: 'no%20such%20thing %zz',
      statusDetails: details,
    });
    expect(await endOf(answer([], { 'grpc-status': '9', 'grpc-message': 'm%C3%BCde' }))).toMatchObject({
      code: status.FAILED_PRECONDITION,
      details: 'müde',
    });
    expect(await endOf(answer([], { 'grpc-status': 'seven' }))).toMatchObject({ code: status.UNKNOWN });
  });

  it('may come without anything before it', async () => {
    const end = await endOf((stream) =>
      stream.respond({ ...GRPC, 'grpc-status': '7', 'grpc-message': 'go away' }, { endStream: true }),
    );
    expect(end).toMatchObject({ code: status.PERMISSION_DENIED, details: 'go away' });
  });

  it('is found out where nothing is said', async () => {
    const reset = (code: number) => endOf((stream) => stream.close(code));
    expect(await reset(constants.NGHTTP2_REFUSED_STREAM)).toMatchObject({ code: status.UNAVAILABLE });
    expect(await reset(constants.NGHTTP2_CANCEL)).toMatchObject({ code: status.CANCELLED });
    expect(await reset(constants.NGHTTP2_INTERNAL_ERROR)).toMatchObject({ code: status.INTERNAL });
    expect(await endOf((stream) => stream.respond(GRPC, { endStream: true }))).toMatchObject({ code: status.UNKNOWN });
    expect(await endOf(sorry({ ...GRPC }, framed(pattern(10, 1)).toString('latin1')))).toMatchObject({ code: status.UNKNOWN });
    expect(await endOf((stream) => stream.session?.destroy())).toMatchObject({ code: status.UNAVAILABLE });
    expect(await endOf(sorry({ ':status': 503 }))).toEqual({
      code: status.UNAVAILABLE,
      details: 'it has answered with HTTP 503',
      statusDetails: null,
    });
  });

  it('may be in the last frame of data', async () => {
    const line = createLine();
    const call = callOver(line, { hearsPages });
    sayTo(line, HEADERS, frame(DATA, END_STREAM, 1, framed(pattern(10, 1))));
    call.call.end();
    expect(await call.ended).toMatchObject({ code: status.UNKNOWN });
    expect(call.messages.length).toBe(1);
  });

  it('is that of the connection, with its reason', async () => {
    const line = createLine();
    const call = callOver(
      {
        ...line,
        connect: (onread) => {
          const connection = line.connect(onread);
          process.nextTick(() => connection.destroy(new Error('connect ECONNREFUSED')));
          return connection;
        },
      },
      { hearsPages },
    );
    expect(await call.ended).toEqual({ code: status.UNAVAILABLE, details: 'connect ECONNREFUSED', statusDetails: null });
  });

  it('is told once, and not where this side has ended it', async () => {
    const line = createLine();
    const codes: number[] = [];
    const call = callOver(line, { hearsPages });
    const closed = new Promise<void>((resolve) => {
      serve(line, {}, (stream) => {
        stream.respond(GRPC);
        stream.write(framed(pattern(10, 1)));
        stream.on('close', () => {
          codes.push(stream.rstCode);
          resolve();
        });
      });
    });
    while (call.messages.length === 0) await setImmediate();
    call.call.cancel();
    await closed;
    expect(codes).toEqual([constants.NGHTTP2_CANCEL]);
    while (!line.far.destroyed) await setImmediate();
    expect(call.end).toBeNull();
    call.call.write([pattern(10, 1)]);
  });

  it('comes when there is no sign of life', async () => {
    const line = createLine();
    line.far.resume();
    sayTo(line, HEADERS);
    const call = callOver(line, { hearsPages, keepaliveMs: 10 });
    expect(await call.ended).toEqual({ code: status.UNAVAILABLE, details: 'no sign of life within 10 ms', statusDetails: null });
    while (!line.far.destroyed) await setImmediate();
  });

  it('leaves no connection behind whose other end does not hear of it', async () => {
    const line = createLine({ outward: () => null });
    const { call } = callOver(line, { hearsPages, keepaliveMs: 10 });
    call.cancel();
    while (!line.far.destroyed) await setImmediate();
  });

  it('does not come as long as there is one', async () => {
    vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval', 'setTimeout', 'clearTimeout'] });
    onTestFinished(() => void vi.useRealTimers());
    const line = createLine();
    const call = callOver(line, { hearsPages });
    const [session] = serve(line, {}, (stream) => stream.respond(GRPC));
    let pings = 0;
    session?.on('ping', () => pings++);
    const theNextPing = vi.getTimerCount();
    for (let asked = 1; asked <= 5; asked++) {
      vi.advanceTimersByTime(60_000);
      expect(vi.getTimerCount()).toBe(theNextPing + 1);
      while (vi.getTimerCount() > theNextPing) await setImmediate();
      expect(pings).toBe(asked);
    }
    expect(call.end).toBeNull();
  });
});

describe('what a call of Exchange takes', () => {
  it('is as much as there is room for, again and again', async () => {
    const line = createLine();
    const call = callOver(line, { received: () => null });
    const large = pattern(MIB, 1);
    serve(line, {}, answer(Array.from({ length: 20 }, () => large)));
    expect((await call.ended).code).toBe(status.OK);
  });

  it('is no more than that where nobody says that there is room', async () => {
    const updates = (bytes: Buffer): Buffer | null => (bytes.length === 26 && bytes[3] === 8 ? null : bytes);
    const line = createLine({ outward: updates });
    let bytes = 0;
    callOver(line, {
      received: (message) => {
        bytes += message.length;
        return null;
      },
    });
    const large = pattern(MIB - 5, 1);
    let isFlushed = false;
    serve(line, {}, (stream) => {
      stream.respond(GRPC);
      stream.write(framed(...Array.from({ length: 8 }, () => large)), () => {
        isFlushed = true;
        stream.write(framed(large));
      });
    });
    while (!isFlushed) await setImmediate();
    for (let turn = 0; turn < 100; turn++) await setImmediate();
    expect(bytes).toBe(8 * (MIB - 5));
  });
});

describe('a peer that does not keep to the rules', () => {
  const endAfter = async (frames: readonly Buffer[], overrides: Partial<ExchangeCallOptions> = {}) => {
    const line = createLine({ pieces: 5000 });
    const call = callOver(line, overrides);
    sayTo(line, ...frames);
    const end = await call.ended;
    while (!line.far.destroyed) await setImmediate();
    return { ...end, messages: call.messages.length };
  };
  const endOf = (...frames: Buffer[]) => endAfter(frames);
  /** Where nobody listens to what is said, it is the silence that ends the call. */
  const endOfSilence = (...frames: Buffer[]) => endAfter(frames, { keepaliveMs: 20 });
  const data = (...bytes: Uint8Array[]): Buffer => frame(DATA, 0, 1, Buffer.concat(bytes));

  it('ends the call with a frame that is too large', async () => {
    const large = frame(DATA, 0, 1, new Uint8Array(0), 2 ** 14 + 1);
    expect(await endOf(HEADERS, large)).toMatchObject({
      code: status.UNAVAILABLE,
      details: expect.stringContaining('16385 bytes'),
    });
  });

  it('ends the call with padding that is longer than its frame', async () => {
    const padded = frame(DATA, PADDED, 1, Uint8Array.from([3, 0, 0]));
    expect(await endOf(HEADERS, padded)).toMatchObject({ code: status.UNAVAILABLE, details: expect.stringContaining('padding') });
    expect(
      await endOf(
        HEADERS,
        frame(DATA, PADDED, 1, Uint8Array.from([5, ...prefixOf(0), 0, 0, 0, 0, 0])),
        data(prefixOf(MESSAGE_MAX + 1)),
      ),
    ).toMatchObject({ code: status.RESOURCE_EXHAUSTED, messages: 1 });
  });

  it('ends the call with messages that are too long, compressed, or none', async () => {
    expect(await endOf(HEADERS, data(prefixOf(MESSAGE_MAX + 1)))).toMatchObject({ code: status.RESOURCE_EXHAUSTED });
    expect(await endOf(HEADERS, data(Uint8Array.from([1, 0, 0, 0, 0])))).toMatchObject({ code: status.UNIMPLEMENTED });
    const line = createLine();
    const none = { code: status.INTERNAL, details: 'none', statusDetails: null };
    const call = callOver(line, { received: () => none });
    sayTo(line, HEADERS, data(prefixOf(0)));
    expect(await call.ended).toBe(none);
    while (!line.far.destroyed) await setImmediate();
  });

  it('says nothing before its headers, nor on another stream', async () => {
    expect(await endOfSilence(data(prefixOf(0)), HEADERS)).toMatchObject({ code: status.UNAVAILABLE, messages: 0 });
    expect(await endOfSilence(HEADERS, frame(DATA, 0, 3, prefixOf(0)))).toMatchObject({ code: status.UNAVAILABLE, messages: 0 });
  });

  it('speaks HTTP/2', async () => {
    expect(await endOfSilence(Buffer.from('HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n'))).toMatchObject({
      code: status.UNAVAILABLE,
    });
  });
});
