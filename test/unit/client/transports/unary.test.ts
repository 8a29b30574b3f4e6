import { once } from 'node:events';
import { constants, createServer, type Http2Session, type ServerHttp2Stream } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { status } from '@grpc/grpc-js';
import { describe, expect, it } from 'vitest';
import type { ClientMethod, Reply } from '../../../../client/transport.js';
import { UnaryTransport } from '../../../../client/transports/unary.js';

/** A method whose messages are text. */
const METHOD: ClientMethod<string, string> = {
  path: '/test.Echo/Echo',
  requestSerialize: (text) => Buffer.from(text),
  responseDeserialize: (bytes) => bytes.toString(),
  responseTypeUrl: 'type.googleapis.com/test.Text',
};
const NO_HEADERS = { process: null, thread: null, requestId: null, acknowledge: null };

const frame = (text: string): Buffer => Buffer.concat([Buffer.of(0, 0, 0, 0, text.length), Buffer.from(text)]);

type Answer = (stream: ServerHttp2Stream, session: Http2Session | undefined) => void;

/** What begins an answer as gRPC does, and ends it with `trailers`. */
const grpc =
  (trailers: Record<string, string>, ...data: readonly Buffer[]): Answer =>
  (stream) => {
    stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true });
    stream.on('wantTrailers', () => stream.sendTrailers(trailers));
    for (const bytes of data) stream.write(bytes);
    stream.end();
  };

interface Peer extends AsyncDisposable {
  readonly calls: readonly ServerHttp2Stream[];
  call(timeoutMs?: number | null, signal?: AbortSignal): Promise<Reply<string>>;
}

/** A server that gives the answers one after the other, and a client of it. */
const peer = async (...answers: readonly Answer[]): Promise<Peer> => {
  const calls: ServerHttp2Stream[] = [];
  const server = createServer();
  server.on('stream', (stream) => {
    stream.on('error', () => {});
    const answer = answers[calls.push(stream) - 1];
    stream.resume();
    stream.on('end', () => answer?.(stream, stream.session));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const transport = await UnaryTransport.connect(`127.0.0.1:${port}`, 30_000);
  return {
    calls,
    call: (timeoutMs = null, signal) => transport.unary(METHOD, 'ping', NO_HEADERS, { timeoutMs, signal: signal ?? null }),
    [Symbol.asyncDispose]: async () => {
      transport.close();
      server.close();
      await once(server, 'close');
    },
  };
};

const OK = { 'grpc-status': '0' };
const reset =
  (code: number): Answer =>
  (stream) =>
    stream.close(code);

describe('a unary call', () => {
  it('puts its answer together from whatever pieces it comes in', async () => {
    const whole = frame('pong');
    await using server = await peer(grpc(OK, whole.subarray(0, 3), whole.subarray(3, 7), whole.subarray(7)), grpc(OK, frame('')));
    expect(await server.call()).toEqual({ error: null, response: 'pong' });
    expect(await server.call()).toEqual({ error: null, response: '' });
  });

  it.each([
    [
      'a status, whose message is percent-encoded',
      grpc({ 'grpc-status': '5', 'grpc-message': 'no 100%25 caf%C3%A9' }),
      'NOT_FOUND',
    ],
    ['all is well, but no message', grpc(OK), 'INTERNAL'],
    ['less than the message that it announces', grpc(OK, frame('pong').subarray(0, 7)), 'INTERNAL'],
    ['a message that is compressed', grpc(OK, Buffer.from([1, 0, 0, 0, 0])), 'INTERNAL'],
    ['two messages', grpc(OK, frame('pong'), frame('pong')), 'INTERNAL'],
    ['no status', grpc({}, frame('pong')), 'INTERNAL'],
    ['what is no gRPC', (stream) => stream.respond({ ':status': 503 }, { endStream: true }), 'UNAVAILABLE'],
    ['a refusal', reset(constants.NGHTTP2_REFUSED_STREAM), 'UNAVAILABLE'],
    ['a reset', reset(constants.NGHTTP2_ENHANCE_YOUR_CALM), 'RESOURCE_EXHAUSTED'],
    ['the end of the connection', (_stream, session) => session?.destroy(), 'UNAVAILABLE'],
  ] satisfies [string, Answer, keyof typeof status][])('that is answered with %s fails', async (_what, answer, reason) => {
    await using server = await peer(answer, grpc(OK, frame('pong')));
    const { error } = await server.call();
    expect(error).toMatchObject({ reason, code: status[reason], errno: null });
    if (reason === 'NOT_FOUND') expect(error?.message).toContain('no 100% café');
    expect(await server.call()).toEqual({ error: null, response: 'pong' });
  });

  it('that takes too long or is aborted is cancelled at the host too', async () => {
    await using server = await peer();
    expect((await server.call(20)).error).toMatchObject({ reason: 'DEADLINE_EXCEEDED' });
    expect((await server.call(null, AbortSignal.timeout(20))).error).toMatchObject({ reason: 'CANCELLED' });
    // A call may be cancelled before the host has looked at it.
    await expect.poll(() => server.calls.length).toBe(2);
    for (const stream of server.calls) {
      if (!stream.closed) await once(stream, 'close');
      expect(stream.rstCode).toBe(constants.NGHTTP2_CANCEL);
    }
  });

  it('is not made where nobody listens', async () => {
    await expect(UnaryTransport.connect('127.0.0.1:1', 5000)).rejects.toMatchObject({ reason: 'UNAVAILABLE' });
  });
});
