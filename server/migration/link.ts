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
export const WINDOW_MESSAGES = 1024;

const sizeOf = (message: Message): number => (message.kind === 'pages' ? batchBytes(message.batch) : 256);

/**
 * One side of a session: turns a connection that may lose, repeat and reorder frames, and be cut, into messages that arrive
 * in order and once, for as long as neither daemon restarts. Go-back-N: what is not the next message is dropped, and sent
 * again. What has been acknowledged is never sent again.
 */
export class Link {
  /** Boot id of the peer, once it has said something; a peer with another one is another peer. */
  peerBoot: string | null = null;
  connected = false;
  /** Number of the last question asked. */
  asked = 0;
  /** The last message that had been sent when it was asked: if the answer does not know it, it is lost. */
  private sentWhenAsked = 0;
  private closed = false;
  /** Messages of the peer that have arrived. */
  private received = 0;
  /** Sequence of the first message in `outbox`, counted from 1. */
  private base = 1;
  private readonly outbox: Message[] = [];
  private outboxBytes = 0;

  constructor(
    private readonly local: LocalSide,
    private readonly transmit: (frame: Frame) => void,
  ) {}

  /** Whether a bulk message may be sent: the window is open. Control messages go always. */
  get hasCredit(): boolean {
    return this.connected && this.outboxBytes < WINDOW_BYTES && this.outbox.length < WINDOW_MESSAGES;
  }

  /** Everything sent has arrived. */
  get drained(): boolean {
    return this.outbox.length === 0;
  }

  send(message: Message): void {
    if (this.closed) return;
    this.outbox.push(message);
    this.outboxBytes += sizeOf(message);
    if (this.connected) this.transmitData(this.outbox.length - 1);
  }

  /** Asks the peer where it stands; the answer also says what has to be sent again. */
  ask(): void {
    this.asked++;
    this.sentWhenAsked = this.base + this.outbox.length - 1;
    this.transmit({ ...this.head, kind: 'ask', version: PROTOCOL_VERSION, number: this.asked });
  }

  answer(question: number, standing: Standing): void {
    const { received } = this;
    this.transmit({ ...this.head, kind: 'standing', answers: question, standing, ledger: this.local.ledger, received });
  }

  /** The answer to the last question: sends again what was lost, and nothing that has arrived. */
  heardReceived(received: number): void {
    this.acknowledged(received);
    if (received >= this.sentWhenAsked) return;
    for (let index = 0; index < this.outbox.length; index++) this.transmitData(index);
  }

  /** The peer is gone, and with it whatever it was to be told. */
  close(): void {
    this.closed = true;
    this.outbox.length = 0;
    this.outboxBytes = 0;
  }

  /** Tells the peer that it need not remember its Commit. */
  settle(): void {
    this.transmit({ ...this.head, kind: 'settled' });
  }

  /** Forgets what the peer has. */
  acknowledged(received: number): void {
    while (this.base <= received && this.outbox.length > 0) {
      const message = this.outbox.shift();
      if (message !== undefined) this.outboxBytes -= sizeOf(message);
      this.base++;
    }
  }

  /** @returns the message, if it is the next one; what has come before is acknowledged again */
  accept(sequence: number, message: Message): Message | null {
    const next = sequence === this.received + 1;
    if (next) this.received++;
    this.transmit({ ...this.head, kind: 'ack', received: this.received });
    return next ? message : null;
  }

  private get head() {
    return { session: this.local.session, boot: this.local.boot };
  }

  private transmitData(index: number): void {
    const message = this.outbox[index];
    if (message !== undefined) this.transmit({ ...this.head, kind: 'data', sequence: this.base + index, message });
  }
}
