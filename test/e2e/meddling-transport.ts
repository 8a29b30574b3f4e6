import type { CallHeaders, CallLimits, ClientMethod, Duplex, Reply, Transport } from '../../client/transport.js';
import { UnaryTransport } from '../../client/transports/unary.js';

/** What becomes of a message of Exchange that this host has said: what is carried in its place. */
export type Meddler = (message: Buffer) => readonly Buffer[];

/** A relay's way to a host, whose messages it does not leave alone. */
export class MeddlingTransport implements Transport {
  meddler: Meddler = (message) => [message];

  private constructor(private readonly honest: UnaryTransport) {}

  static async connect(target: string): Promise<MeddlingTransport> {
    return new MeddlingTransport(await UnaryTransport.connect(target, 30_000));
  }

  get target(): string {
    return this.honest.target;
  }

  unary<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    request: ReqInit,
    headers: CallHeaders,
    limits: CallLimits,
  ): Promise<Reply<Res>> {
    return this.honest.unary(method, request, headers, limits);
  }

  serverStream<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    request: ReqInit,
    headers: CallHeaders,
    limits: CallLimits,
  ): AsyncIterable<Res> {
    return this.honest.serverStream(method, request, headers, limits);
  }

  clientStream<ReqInit, Res>(
    method: ClientMethod<ReqInit, Res>,
    requests: AsyncIterable<ReqInit> | Iterable<ReqInit>,
    headers: CallHeaders,
    limits: CallLimits,
  ): Promise<Reply<Res>> {
    return this.honest.clientStream(method, requests, headers, limits);
  }

  duplex<ReqInit, Res>(method: ClientMethod<ReqInit, Res>, headers: CallHeaders, limits: CallLimits): Duplex<ReqInit, Res> {
    const bytes: ClientMethod<ReqInit, Buffer> = { ...method, responseDeserialize: (message) => message };
    const duplex = this.honest.duplex(bytes, headers, limits);
    const meddle = (message: Buffer): readonly Buffer[] => this.meddler(Buffer.from(message));
    return {
      send: (request) => duplex.send(request),
      end: () => duplex.end(),
      cancel: () => duplex.cancel(),
      async *[Symbol.asyncIterator]() {
        for await (const message of duplex) for (const each of meddle(message)) yield method.responseDeserialize(each);
      },
    };
  }

  close(): void {
    this.honest.close();
  }
}

/** Tag of `sealed` in an ExchangeResponse. */
const SEALED = (4 << 3) | 2;

/** Meddles with the frame of this number, from 1, of the first connection, and leaves what belongs to the handshake alone. */
const onFrame = (ordinal: number, meddler: Meddler): Meddler => {
  let frames = 0;
  return (message) => {
    if (message[0] !== SEALED) return [message];
    frames++;
    return frames === ordinal ? meddler(message) : [message];
  };
};

const flipped = (message: Buffer): Buffer => {
  const changed = Buffer.from(message);
  const middle = Math.floor(changed.length * 0.75);
  changed.writeUInt8(changed.readUInt8(middle) ^ 0x10, middle);
  return changed;
};

/** What a relay may do to the frame of a number. */
export const MEDDLERS: Readonly<Record<string, (ordinal: number) => Meddler>> = {
  'flips a bit of': (ordinal) => onFrame(ordinal, (message) => [flipped(message)]),
  drops: (ordinal) => onFrame(ordinal, () => []),
  repeats: (ordinal) => onFrame(ordinal, (message) => [message, message]),
  'lets the next one overtake': (ordinal) => {
    let held: Buffer[] = [];
    const hold = onFrame(ordinal, (message) => {
      held = [message];
      return [];
    });
    return (message) => {
      const late = held;
      held = [];
      return [...hold(message), ...late];
    };
  },
};

/** Keeps every frame that passes. */
export const recording =
  (frames: Buffer[]): Meddler =>
  (message) => {
    if (message[0] === SEALED) frames.push(message);
    return [message];
  };

/** Puts the frame of another session in the place of the one with the same number. */
export const replaying = (frames: readonly Buffer[], ordinal: number): Meddler =>
  onFrame(ordinal, (message) => [frames[ordinal - 1] ?? message]);
