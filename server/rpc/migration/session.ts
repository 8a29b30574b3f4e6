import { Failure } from '../../kernel/failure.js';
import type { Kernel } from '../../kernel/kernel.js';
import type { Process } from '../../kernel/process/process.js';
import { CONTROL_STREAM } from '../../migration/link.js';
import type { Frame } from '../../migration/message.js';
import { because, type Reason, reasonOf } from '../../migration/reason.js';
import type { Half } from './half.js';
import { HeldAck } from './held-ack.js';
import type { PeerStream, StreamOwner } from './peer-stream.js';
import { Redial } from './redial.js';

/** Streams of one session. */
export const STREAMS_MAX = 16;
/** How often a side asks the other one where it stands, and looks whether its process lives. */
const TICK_MS = 500;
/** A peer that has been asked so often, and has not said a word, is not behind this stream any more, whatever the stream says. */
const SILENCE_MS = 15_000;
/** So long a side that has been called is without a stream before it dials itself. */
const PATIENCE_MS = 2000;
/** So long a session waits for the other half: whoever was to call it has gone, or has never heard that it is there. */
export const ATTACH_MS = 60_000;
/** So long a session that is over keeps its streams: the other side may still have to ask. */
const LINGER_MS = 2000;
/** So long one waits for a peer that has to be told only what it can do without. */
const FORGET_MS = 600_000;
/** Messages with pages between two turns of the event loop. */
const BATCHES_PER_TURN = 4;

/** Begins to open a stream of a session to the other daemon. */
export type OpenStream = (session: Session, index: number) => PeerStream;

export interface SessionOptions {
  readonly id: string;
  /** In the order in which a host's sessions began, from 1. */
  readonly ordinal: number;
  readonly half: Half;
  readonly kernel: Kernel;
  /** Whose VM it is, or will be. */
  readonly process: Process;
  /** Told once nothing is left to be said. */
  readonly onClosed: (session: Session) => void;
}

/**
 * A migration as one of its two daemons has it: its half of the protocol, the streams to the other one, the clock that drives
 * them, and whoever watches. It belongs to the daemon: no call that began it and no stream has to stay.
 */
export class Session implements StreamOwner {
  readonly id: string;
  readonly ordinal: number;
  readonly half: Half;
  readonly process: Process;
  /** Fingerprint of the daemon at the other end: the first that has proved itself, and from then on no other one. */
  peer = '';
  closed = false;
  /** Whether any daemon has ever proved itself for the other half. */
  met = false;
  /** What the call that began it is told, for whoever makes it again: its answer may have been lost. */
  answer: Promise<Failure | null> = Promise.resolve(null);
  /** Where it was told to get the guest from, for whoever says so again; null: it was not told. */
  origin: string | null = null;
  /** How the other daemon can be dialled, once it has said so; it is, when it has been away for long. */
  dialBack: OpenStream | null = null;
  private readonly kernel: Kernel;
  private readonly onClosed: (session: Session) => void;
  private readonly streams: (PeerStream | null)[] = Array.from({ length: STREAMS_MAX }, () => null);
  private readonly watchers = new Set<() => void>();
  private readonly ticker: NodeJS.Timeout;
  private redial: { readonly by: 'call' | 'patience'; readonly streams: Redial } | null = null;
  private firstDial: ((failure: Failure | null) => void) | null = null;
  private pumpScheduled = false;
  private pumpTimer: NodeJS.Timeout | null = null;
  private nextStream = 0;
  private readonly acks = new HeldAck((ack) => this.streams[CONTROL_STREAM]?.send(ack));

  private aloneSinceMs = performance.now();
  /** When the peer has last said something over stream 0, or has opened it. */
  private heardMs = 0;

  constructor({ id, ordinal, half, kernel, process, onClosed }: SessionOptions) {
    this.id = id;
    this.ordinal = ordinal;
    this.half = half;
    this.kernel = kernel;
    this.process = process;
    this.onClosed = onClosed;
    this.ticker = setInterval(() => this.tick(), TICK_MS).unref();
  }

  get connected(): boolean {
    return this.streams[0] !== null;
  }

  /** For people: what the session waits for that this daemon can do nothing about. Empty: nothing. */
  get waitsFor(): string {
    const { half, connected, met } = this;
    if (half.ended) return '';
    if (half.waitsFor !== null) return half.waitsFor;
    if (!met) return 'the daemon of the other half, which has not come yet';
    if (connected) return '';
    if (half.standing === 'in-doubt')
      return 'the destination: it alone can say whose the guest is, which stands still until then';
    if (half.standing === 'prepared')
      return 'the source: it alone can say whose the guest is, which does not run here until then';
    return '';
  }

  /**
   * Dials the other daemon, and again whenever a stream is lost, until the session is closed.
   * @returns what becomes of the first stream: null once the peer has proved itself, and has taken this daemon for its own
   */
  dial(open: OpenStream, streams: number): Promise<Failure | null> {
    return new Promise((resolve) => {
      this.firstDial = resolve;
      this.beginDialling('call', open, streams);
    });
  }

  /** For the half: gives a frame to a stream; what is given for one that is not there is lost. */
  transmit(frame: Frame, stream: number): void {
    if (frame.kind === 'ack') this.acks.hold(frame);
    else {
      this.acks.flush();
      this.streams[stream]?.send(frame);
    }
  }

  /** Something has happened to the half. */
  stirred(): void {
    this.changed();
    this.schedulePump();
  }

  giveUp(reason: Reason): void {
    this.drive(() => this.half.giveUp(reason));
  }

  /** @param changed called whenever something may have changed. @returns what ends it */
  watch(changed: () => void): () => void {
    this.watchers.add(changed);
    return () => void this.watchers.delete(changed);
  }

  /** Resolves when both sides know how it has ended, or nothing is heard of the other one. */
  parted(): Promise<void> {
    return new Promise((resolve) => {
      const look = (): void => {
        if (!this.closed && this.connected) return;
        stop();
        resolve();
      };
      const stop = this.watch(look);
      look();
    });
  }

  // -- the streams -------------------------------------------------------------------------------------------------------

  opened(stream: PeerStream): Failure | null {
    if (this.met && stream.peer !== this.peer)
      return new Failure('EACCES', 'SESSION_HAS_OTHER_PEER', 'simkvmd', { field: 'session', given: this.id, peer: stream.peer });
    this.met = true;
    this.peer = stream.peer;
    // One that has come by itself: whoever has dialled goes on dialling.
    if (this.redial?.by === 'patience') this.stopDialling();
    const { index } = stream;
    this.streams[index]?.end(replaced());
    this.streams[index] = stream;
    if (index === 0) this.heardMs = performance.now();
    this.redial?.streams.opened(stream);
    if (this.closed) setTimeout(() => stream.end(null), LINGER_MS).unref();
    this.drive(() => this.half.connected(index));
    return null;
  }

  received(stream: PeerStream, frame: Frame): void {
    if (frame.session !== this.id) {
      const failure = new Failure('EACCES', 'FRAME_OF_OTHER_SESSION', 'simkvmd', { field: 'session', given: frame.session });
      stream.end(failure);
      this.violated(stream, failure);
      return;
    }
    // What a peer says first is that it takes this one for the other half: before, it may still refuse.
    if (stream.index === 0) {
      this.heardMs = performance.now();
      this.dialled(null);
    }
    this.drive(() => this.half.receive(frame, performance.now()));
  }

  violated(_stream: PeerStream, failure: Failure): void {
    this.drive(() => this.half.giveUpIfSafe(reasonOf(failure)));
  }

  drained(): void {
    this.schedulePump();
  }

  ended(stream: PeerStream, failure: Failure | null): void {
    const { index } = stream;
    if (this.streams[index] === stream) {
      this.streams[index] = null;
      if (index === 0) this.aloneSinceMs = performance.now();
      this.drive(() => this.half.disconnected(index));
    }
    if (index === 0) this.dialled(failure ?? new Failure('EHOSTUNREACH', 'STREAM_ENDED', 'simkvmd'));
    this.redial?.streams.ended(stream);
  }

  private beginDialling(by: 'call' | 'patience', open: OpenStream, streams: number): void {
    const isNeeded = (index: number): boolean => !this.closed && this.streams[index] === null;
    this.redial = { by, streams: new Redial({ open: (index) => open(this, index), isNeeded, streams }) };
    this.redial.streams.begin();
  }

  private stopDialling(): void {
    this.redial?.streams.stop();
    this.redial = null;
  }

  private dialled(failure: Failure | null): void {
    this.firstDial?.(failure);
    this.firstDial = null;
  }

  // -- the clock ---------------------------------------------------------------------------------------------------------

  private tick(): void {
    if (performance.now() - this.heardMs > SILENCE_MS) this.streams[0]?.end(silent());
    const alone = this.connected ? 0 : performance.now() - this.aloneSinceMs;
    this.drive(() => {
      if (this.process.state.kind !== 'running') this.half.giveUp(because('PROCESS_EXITED'));
      if (!this.met && alone > ATTACH_MS)
        this.half.giveUp(because('PEER_NEVER_CAME', `no daemon has come for the other half in ${ATTACH_MS / 1000} s`));
      this.half.tick(performance.now());
    });
    if (this.closed) return;
    if (alone > FORGET_MS && this.half.forgettable) this.close();
    else if (alone > PATIENCE_MS && this.redial === null && this.dialBack !== null)
      this.beginDialling('patience', this.dialBack, 1);
  }

  private schedulePump(): void {
    if (this.half.role !== 'source' || this.pumpScheduled || this.closed) return;
    this.pumpScheduled = true;
    setImmediate(() => {
      this.pumpScheduled = false;
      this.guarded(() => this.pump());
      this.changed();
    });
  }

  /** Sends what there is room for; whatever makes room calls again. */
  private pump(): void {
    for (let batches = 0; batches < BATCHES_PER_TURN; batches++) {
      const stream = this.streamWithRoom();
      if (stream === null) return;
      const wait = this.half.pump(performance.now(), stream.index);
      if (wait === null) return;
      if (wait > 0) {
        this.pumpTimer ??= setTimeout(() => {
          this.pumpTimer = null;
          this.schedulePump();
        }, wait).unref();
        return;
      }
    }
    this.schedulePump();
  }

  /** The streams take turns. */
  private streamWithRoom(): PeerStream | null {
    for (let tried = 0; tried < STREAMS_MAX; tried++) {
      const stream = this.streams[this.nextStream] ?? null;
      this.nextStream = (this.nextStream + 1) % STREAMS_MAX;
      if (stream?.writable) return stream;
    }
    return null;
  }

  private close(): void {
    this.closed = true;
    clearInterval(this.ticker);
    this.acks.flush();
    this.stopDialling();
    setTimeout(() => {
      for (const stream of this.streams) stream?.end(null);
    }, LINGER_MS).unref();
    this.onClosed(this);
  }

  private changed(): void {
    if (!this.closed && (this.half.closed || (this.half.ended && !this.met))) this.close();
    for (const watcher of [...this.watchers]) watcher();
  }

  private drive(body: () => void): void {
    this.guarded(body);
    this.stirred();
  }

  /** A defect of this daemon ends the streams, which are dialled again, and not the daemon. */
  private guarded(body: () => void): void {
    try {
      body();
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      this.kernel.findings.report('kernel', 'KERNEL_OOPS', `migration ${this.id}: ${message}`);
      for (const stream of this.streams) stream?.end(new Failure('EIO', 'KERNEL_OOPS', 'simkvmd', { message }));
    }
  }
}

const silent = (): Failure => new Failure('ETIMEDOUT', 'PEER_SILENT', 'simkvmd', { allowed: `${SILENCE_MS} ms` });

const replaced = (): Failure => new Failure('EBUSY', 'STREAM_REPLACED', 'simkvmd', { allowed: 'one stream of a number' });
