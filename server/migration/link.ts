import { batchBytes } from './guest.js';
import type { Frame, Message, Standing } from './message.js';
import { PROTOCOL_VERSION } from './message.js';

/** Who a daemon is, in every frame that it sends. */
export interface LocalSide {
  readonly session: string;
  readonly boot: string;
  /** Of the store that survives a restart; null: there is none. */
  readonly ledger: string | null;
}

/** Bytes under way that have not been acknowledged: what a side must keep in order to send it again. */
export const WINDOW_BYTES = 16 * 2 ** 20;
/** Messages under way. */
const WINDOW_MESSAGES = 1024;

/** Hands a frame to one of the session's streams; each keeps the order of what it carries. */
export type Transmit = (frame: Frame, stream: number) => void;

const sizeOf = (message: Message): number => (message.kind === 'pages' ? batchBytes(message.batch) : 256);

/** Pages lie in memory that is whoever's they came from, until the message has been taken. */
const kept = (message: Message): Message => {
  if (message.kind !== 'pages') return message;
  const { batch } = message;
  return { kind: 'pages', batch: { ...batch, headers: new Uint8Array(batch.headers), data: new Uint8Array(batch.data) } };
};

/** A message that has not been acknowledged. */
interface Outgoing {
  readonly message: Message;
  /** The stream that it was sent over. */
  readonly stream: number;
  /** It cannot arrive any more: there was no connection, or it has been cut since. */
  lost: boolean;
}

/** Stream of everything but pages, and of pages where there is no other. */
export const CONTROL_STREAM = 0;

/**
 * One side of a session: turns connections that may lose, repeat and reorder frames, and be cut, into messages that arrive
 * in order and once, for as long as neither daemon restarts. What comes early, on another stream than the one before it, is
 * kept; what has been acknowledged is never sent again.
 */
export class Link {
  /** Boot id of the peer, once it has said something; a peer with another one is another peer. */
  peerBoot: string | null = null;
  /** Number of the last question asked. */
  asked = 0;
  private readonly open = new Set<number>();
  /** The last message that had been sent when it was asked: if the answer does not know it, it is lost or late. */
  private sentWhenAsked = 0;
  /** What the peer had at the last answer: if it has no more at the next, nothing is under way. */
  private hadWhenAnswered = -1;
  private closed = false;
  /** Messages of the peer that have arrived. */
  private received = 0;
  /** Messages of the peer that have come before their predecessors, by sequence. */
  private readonly early = new Map<number, Message>();
  private earlyBytes = 0;
  /** Sequence of the first message in `outbox`, counted from 1. */
  private base = 1;
  private readonly outbox: Outgoing[] = [];
  private outboxBytes = 0;

  /** @param transmit what is given for a stream that is not open is lost */
  constructor(
    private readonly local: LocalSide,
    private readonly transmit: Transmit,
    /** Told of each message of this side that the peer has. */
    private readonly arrived: (message: Message) => void = () => {},
  ) {}

  get connected(): boolean {
    return this.open.has(CONTROL_STREAM);
  }

  /**
   * Whether a bulk message may be sent over a stream: it is there, and the window is open. Control messages go always.
   * @param window bytes that may be under way
   */
  hasCredit(stream: number, window = WINDOW_BYTES): boolean {
    const { open, outboxBytes, outbox } = this;
    return this.connected && open.has(stream) && outboxBytes < window && outbox.length < WINDOW_MESSAGES;
  }

  /** Everything sent has arrived. */
  get drained(): boolean {
    return this.outbox.length === 0;
  }

  /** A stream is there; with the first one the peer is asked what it has. */
  opened(stream: number): void {
    this.open.add(stream);
    if (stream === CONTROL_STREAM) this.ask();
  }

  /** A stream has been cut: what it carried is sent again over those that are left, as far as it has not arrived. */
  cut(stream: number): void {
    this.open.delete(stream);
    for (const entry of this.outbox) if (entry.stream === stream) entry.lost = true;
    if (this.connected) this.ask();
  }

  send(message: Message, stream = CONTROL_STREAM): void {
    if (this.closed) return;
    const entry = { message, stream, lost: !this.open.has(stream) };
    this.outbox.push(entry);
    this.outboxBytes += sizeOf(message);
    if (!entry.lost) this.transmitData(this.base + this.outbox.length - 1, entry);
  }

  /** Asks the peer where it stands; the answer also says what has to be sent again. */
  ask(): void {
    this.asked++;
    this.sentWhenAsked = this.base + this.outbox.length - 1;
    this.control({ ...this.head, kind: 'ask', version: PROTOCOL_VERSION, number: this.asked });
  }

  answer(question: number, standing: Standing): void {
    const { received } = this;
    this.control({ ...this.head, kind: 'standing', answers: question, standing, ledger: this.local.ledger, received });
  }

  /**
   * The answer to the last question: sends again what was lost, and nothing that has arrived. Where the peer has not got
   * anything since the answer before, all that it should have is taken for lost.
   */
  heardReceived(received: number): void {
    this.acknowledged(received);
    const stuck = received < this.sentWhenAsked && received === this.hadWhenAnswered;
    this.hadWhenAnswered = received;
    for (const [index, entry] of this.outbox.entries()) if (stuck || entry.lost) this.sendAgain(index, entry);
  }

  /** The peer is gone, and with it whatever it was to be told. */
  close(): void {
    this.closed = true;
    this.outbox.length = 0;
    this.outboxBytes = 0;
    this.early.clear();
  }

  /** Tells the peer that it need not remember its Commit. */
  settle(): void {
    this.control({ ...this.head, kind: 'settled' });
  }

  /** Forgets what the peer has. */
  acknowledged(received: number): void {
    const count = Math.min(received - this.base + 1, this.outbox.length);
    if (count <= 0) return;
    for (const { message } of this.outbox.splice(0, count)) {
      this.outboxBytes -= sizeOf(message);
      this.arrived(message);
    }
    this.base += count;
  }

  /** @returns the messages that are next, now that this one has come; what has come before is acknowledged again */
  accept(sequence: number, message: Message): Message[] {
    if (sequence > this.received + 1) {
      this.keepEarly(sequence, message);
      return [];
    }
    const next: Message[] = sequence === this.received + 1 ? [message, ...this.takeEarly(sequence + 1)] : [];
    this.received += next.length;
    this.control({ ...this.head, kind: 'ack', received: this.received });
    return next;
  }

  private get head() {
    return { session: this.local.session, boot: this.local.boot };
  }

  private control(frame: Frame): void {
    this.transmit(frame, CONTROL_STREAM);
  }

  private transmitData(sequence: number, { message, stream }: Outgoing): void {
    this.transmit({ ...this.head, kind: 'data', sequence, message }, stream);
  }

  private sendAgain(index: number, { message, stream }: Outgoing): void {
    const entry = { message, stream: this.open.has(stream) ? stream : CONTROL_STREAM, lost: false };
    this.outbox[index] = entry;
    this.transmitData(this.base + index, entry);
  }

  /** A peer that keeps to its window never sends more than is kept here; what is dropped is sent again. */
  private keepEarly(sequence: number, message: Message): void {
    if (sequence > this.received + WINDOW_MESSAGES || this.earlyBytes >= WINDOW_BYTES || this.early.has(sequence)) return;
    this.early.set(sequence, kept(message));
    this.earlyBytes += sizeOf(message);
  }

  private takeEarly(first: number): Message[] {
    const taken: Message[] = [];
    for (let message = this.early.get(first); message !== undefined; message = this.early.get(first + taken.length)) {
      this.early.delete(first + taken.length);
      this.earlyBytes -= sizeOf(message);
      taken.push(message);
    }
    return taken;
  }
}
