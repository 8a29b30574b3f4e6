import { randomBytes } from 'node:crypto';
import { Failure, failed, type Result } from '../../kernel/failure.js';
import type { BatchMemory } from '../../migration/batch-room.js';
import { type ChannelRole, createHandshake, type ProvenHalf, type SecureChannel } from '../../migration/channel.js';
import type { Frame } from '../../migration/message.js';
import { bytesOf } from '../pieces.js';
import { decodeFrame, encodeFrame } from './frame-codec.js';
import type { MigrationHost } from './migration-host.js';
import { type ExchangeMessage, encodeExchange, type Wire, type WireListener } from './wire.js';

/** How long a peer may take to prove itself. */
export const HANDSHAKE_MS = 10_000;
/** Bytes that wait for a peer which does not read: the windows of both directions, sent again once, and more. */
const UNREAD_MAX = 64 * 2 ** 20;
const SEED_BYTES = 32;
/** Only messages with pages have so many bytes. */
const LARGE_BYTES = 64 * 2 ** 10;
/** So many of these wait for the network: more would lie in no cache any more when it is their turn. */
const UNSENT_MAX = 2;

/** Whose stream it is. */
export interface StreamOwner {
  /** The peer has proved itself, and frames may be sent. A failure ends the stream. */
  opened(stream: PeerStream): Failure | null;
  received(stream: PeerStream, frame: Frame): void;
  /** What has come was not the peer's next frame, or is none. The stream has ended. */
  violated(stream: PeerStream, failure: Failure): void;
  drained(stream: PeerStream): void;
  /** @param failure why; null: the peer has ended it */
  ended(stream: PeerStream, failure: Failure | null): void;
}

type State =
  | { readonly kind: 'hello' }
  | { readonly kind: 'proof'; readonly half: ProvenHalf }
  /** Null: unsealed. */
  | { readonly kind: 'open'; readonly channel: SecureChannel | null }
  | { readonly kind: 'ended' };

const refuse = (reason: string, details: Record<string, string> = {}): Failure =>
  new Failure('EACCES', reason, 'simkvmd', details);

export interface PeerStreamOptions {
  /** Of this daemon. */
  readonly role: ChannelRole;
  readonly session: string;
  /** Which of the session's streams, from 0. */
  readonly index: number;
  readonly host: MigrationHost;
  readonly wire: Wire;
  readonly owner: StreamOwner;
}

/**
 * A stream between two daemons, once its wire is there: hello, proof, then sealed frames. Whatever a peer sends that has not
 * proved itself ends this stream and nothing else.
 */
export class PeerStream implements WireListener {
  /** Fingerprint of the daemon at the other end; empty before it has proved itself, and where nobody has to. */
  peer = '';
  writable = true;
  readonly index: number;
  private state: State = { kind: 'hello' };
  private unread = 0;
  private unsent = 0;
  private readonly wire: Wire;
  private readonly owner: StreamOwner;
  private readonly heard: (hello: Uint8Array) => Result<ProvenHalf>;
  private readonly deadline: NodeJS.Timeout;

  constructor({ role, session, index, host, wire, owner }: PeerStreamOptions) {
    this.index = index;
    this.wire = wire;
    this.owner = owner;
    const { identity, peers } = host;
    const name = index === 0 ? session : `${session}#${index}`;
    const handshake = createHandshake({ role, session: name, identity, ephemeralSeed: randomBytes(SEED_BYTES), peers });
    this.heard = handshake.heard;
    this.deadline = setTimeout(() => this.end(tooSlow()), HANDSHAKE_MS).unref();
    if (!host.unsealed) wire.write(encodeExchange('hello', [handshake.hello]));
    // Its owner does not know it yet.
    else queueMicrotask(() => this.openUnsealed());
  }

  get isOpen(): boolean {
    return this.state.kind === 'open';
  }

  send(frame: Frame): void {
    if (this.state.kind !== 'open') return;
    const { channel } = this.state;
    const pieces = encodeFrame(frame);
    // What is sealed is a copy; what is not is sent from where the pages lie.
    const held = channel === null ? memoryOf(frame) : null;
    const message = encodeExchange('sealed', channel === null ? pieces : channel.sealPieces(pieces));
    const bytes = bytesOf(message);
    const isLarge = bytes >= LARGE_BYTES;
    held?.hold();
    const hasRoom = this.wire.write(message, isLarge || held !== null ? () => this.sent(isLarge, held) : undefined);
    if (isLarge) this.unsent++;
    this.writable = hasRoom && this.unsent < UNSENT_MAX;
    this.unread = hasRoom ? 0 : this.unread + bytes;
    if (this.unread > UNREAD_MAX) this.end(notRead());
  }

  received(message: ExchangeMessage): void {
    const failure = this.take(message);
    if (failure !== null) this.end(failure);
  }

  drained(): void {
    this.unread = 0;
    this.goOn();
  }

  ended(failure: Failure | null): void {
    if (this.state.kind === 'ended') return;
    this.finish();
    this.owner.ended(this, failure);
  }

  /** Ends it from this side. */
  end(failure: Failure | null): void {
    if (this.state.kind === 'ended') return;
    this.finish();
    this.wire.end(failure);
    this.owner.ended(this, failure);
  }

  /** The network has a message. */
  private sent(isLarge: boolean, held: BatchMemory | null): void {
    held?.release();
    if (!isLarge) return;
    this.unsent--;
    if (this.unread === 0) this.goOn();
  }

  private goOn(): void {
    if (!this.isOpen || this.unsent >= UNSENT_MAX) return;
    this.writable = true;
    this.owner.drained(this);
  }

  private finish(): void {
    clearTimeout(this.deadline);
    this.state = { kind: 'ended' };
    this.writable = false;
  }

  private take(message: ExchangeMessage): Failure | null {
    const { state } = this;
    switch (state.kind) {
      case 'ended':
        return null;
      case 'hello':
        return message.kind === 'hello' ? this.prove(message.bytes) : outOfTurn(message, 'hello');
      case 'proof': {
        if (message.kind !== 'proof') return outOfTurn(message, 'proof');
        const channel = state.half.finish(message.bytes);
        return failed(channel) ? channel : this.open(channel);
      }
      case 'open':
        if (message.kind !== 'sealed') return outOfTurn(message, 'sealed');
        this.takeFrame(state.channel, message.bytes);
        return null;
    }
  }

  private prove(hello: Uint8Array): Failure | null {
    const half = this.heard(hello);
    if (failed(half)) return half;
    this.state = { kind: 'proof', half };
    this.wire.write(encodeExchange('proof', [half.proof]));
    return null;
  }

  private openUnsealed(): void {
    const failure = this.open(null);
    if (failure !== null) this.end(failure);
  }

  private open(channel: SecureChannel | null): Failure | null {
    if (this.state.kind === 'ended') return null;
    clearTimeout(this.deadline);
    this.peer = channel?.peer ?? '';
    this.state = { kind: 'open', channel };
    return this.owner.opened(this);
  }

  private takeFrame(channel: SecureChannel | null, bytes: Uint8Array): void {
    const plain = channel === null ? bytes : channel.open(bytes);
    const frame = failed(plain) ? plain : decodeFrame(plain);
    if (!failed(frame)) {
      this.owner.received(this, frame);
      return;
    }
    this.end(frame);
    this.owner.violated(this, frame);
  }
}

/** Of a frame's pages, whose contents somebody may write anew once nobody holds it. */
const memoryOf = (frame: Frame): BatchMemory | null =>
  frame.kind === 'data' && frame.message.kind === 'pages' ? (frame.message.batch.memory ?? null) : null;

const tooSlow = (): Failure => new Failure('ETIMEDOUT', 'HANDSHAKE_TIMEOUT', 'simkvmd', { allowed: `${HANDSHAKE_MS} ms` });

const notRead = (): Failure =>
  new Failure('ENOSPC', 'OVER_LIMIT', 'simkvmd', {
    field: 'stream',
    given: 'a peer that does not read',
    allowed: `${UNREAD_MAX} bytes that wait for it`,
  });

const outOfTurn = ({ kind }: ExchangeMessage, allowed: string): Failure =>
  refuse('MESSAGE_OUT_OF_TURN', { field: 'message', given: kind, allowed });
