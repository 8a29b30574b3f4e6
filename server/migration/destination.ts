import { type Failure, failed } from '../kernel/failure.js';
import { inflated } from './deflate.js';
import type { DestinationGuest, OwedFramesHandler, PageBatch, ReceiveGuest } from './guest.js';
import type { Ledger } from './ledger.js';
import { CONTROL_STREAM, Link, type LocalSide, type Transmit } from './link.js';
import { type Frame, type Message, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, protocolVersion, type Standing } from './message.js';
import { because, type Reason, reasonOf } from './reason.js';

/** The destination's side of a migration; `hand-over.md` has the table of states and of what silence means. */

/** In the order in which a migration that succeeds goes through them. */
export const DESTINATION_PHASES = ['expecting', 'opening', 'receiving', 'prepared', 'fetching'] as const;

/** Where a migration is that has not ended: nothing, an offer, memory, everything but Commit, a guest that runs without all of it. */
export type DestinationPhase = (typeof DESTINATION_PHASES)[number];

export type DestinationState =
  | { readonly phase: DestinationPhase }
  /** The guest is this host's. `lost`: pages of it that nobody has any more. */
  | { readonly phase: 'committed'; readonly lost: number }
  /** The copy is destroyed; a Commit that is still under way finds nothing. */
  | ({ readonly phase: 'aborted' } & Reason);

const unexpected = ({ kind }: Message, phase: string): Reason => because('MESSAGE_UNEXPECTED', `${kind} in ${phase}`);

/** Frames that one message asks for. */
export const WANTED_MAX = 1024;

export class Destination {
  state: DestinationState = { phase: 'expecting' };
  private readonly link: Link;
  private guest: DestinationGuest | null = null;
  /** Some of the guest's memory is to follow it. */
  private postCopy = false;
  /** The first question whose answer was given after the end. */
  private firstAfterEnd = Number.POSITIVE_INFINITY;
  /** Both sides know how it ended, so the session may be forgotten. */
  closed = false;
  pagesReceived = 0;
  /** Post-copy: pages that somebody has touched before they had come. */
  faults = 0;

  constructor(
    private readonly local: LocalSide,
    private readonly receiveGuest: ReceiveGuest,
    private readonly ledger: Ledger,
    transmit: Transmit,
  ) {
    this.link = new Link(local, transmit);
  }

  get standing(): Standing {
    const { phase } = this.state;
    if (phase === 'fetching') return 'committed';
    return phase === 'prepared' || phase === 'committed' || phase === 'aborted' ? phase : 'receiving';
  }

  /** Post-copy: pages that are still to come. */
  get pagesMissing(): number {
    return this.guest?.missing ?? 0;
  }

  /** A stream to the source is there; stream 0 carries everything but pages, and nothing goes on without it. */
  connected(stream = CONTROL_STREAM): void {
    this.link.opened(stream);
  }

  /** A cut proves nothing: what is here waits for the source to come back, or for `abort`. */
  disconnected(stream = CONTROL_STREAM): void {
    this.link.cut(stream);
  }

  /** Time has passed without news: asks again. */
  tick(): void {
    if (this.link.connected && !this.closed) this.link.ask();
  }

  receive(frame: Frame): void {
    const { link } = this;
    if (frame.kind === 'standing') {
      this.heardStanding(frame);
      return;
    }
    if (link.peerBoot !== null && frame.boot !== link.peerBoot && frame.kind !== 'ask') return;
    switch (frame.kind) {
      case 'ask':
        if (frame.version < PROTOCOL_VERSION_MIN || frame.version > PROTOCOL_VERSION) this.abort(protocolVersion(frame.version));
        link.answer(frame.number, this.standing);
        return;
      case 'ack':
        link.acknowledged(frame.received);
        return;
      case 'settled':
        this.settled();
        return;
      case 'data':
        link.peerBoot ??= frame.boot;
        for (const message of link.accept(frame.sequence, frame.message)) this.heard(message);
    }
  }

  /**
   * Gives up: allowed in every phase before Commit, also when the source is in doubt, since a Commit that comes later finds
   * the session aborted. The copy is destroyed before anybody is told.
   */
  abort(reason: Reason): void {
    const { phase } = this.state;
    if (phase === 'fetching' || phase === 'committed' || phase === 'aborted') return;
    this.guest?.destroy();
    this.guest = null;
    this.state = { phase: 'aborted', ...reason };
    this.ended();
    this.link.send({ kind: 'aborted', ...reason });
  }

  /**
   * DANGEROUS. An operator knows what the protocol cannot: that the source will never run the guest again. If that is
   * wrong, it runs twice. It is recorded, or not done.
   */
  forceRun(): Failure | null {
    if (this.state.phase !== 'prepared') return null;
    return this.recordOverride('run') ?? this.commit();
  }

  /** An operator does not wait for the source any longer: the copy is destroyed. If it was the only one, the guest is lost. */
  forceAbort(): Failure | null {
    if (this.state.phase !== 'prepared') return null;
    const failure = this.recordOverride('discard');
    if (failure === null) this.abort(because('OPERATOR_OVERRIDE'));
    return failure;
  }

  /**
   * DANGEROUS. An operator does not wait for the source any longer, and the guest runs here already: what it still misses is
   * lost, and whoever touches that gets an error. It is recorded, or not done.
   */
  forceLoss(): Failure | null {
    if (this.state.phase !== 'fetching') return null;
    const failure = this.recordOverride('discard');
    if (failure === null) this.loseOwed();
    return failure;
  }

  private recordOverride(decision: 'run' | 'discard'): Failure | null {
    return this.ledger.record({ kind: 'overridden', session: this.local.session, decision });
  }

  private heard(message: Message): void {
    const { phase } = this.state;
    if (phase === 'committed') return;
    if (phase === 'fetching') {
      if (message.kind === 'pages') this.fetched(message.batch);
      return;
    }
    if (phase === 'aborted') {
      this.heardTooLate(message);
      return;
    }
    if (message.kind === 'abort') this.abort(because(message.reason, message.detail));
    else if (message.kind === 'commit' && phase === 'prepared') this.commit();
    else if (message.kind === 'offer' && phase === 'expecting') this.offered(message);
    else if (message.kind === 'start' && phase === 'opening') this.step(this.guest?.begin(message.opening), 'receiving');
    else if (phase === 'receiving') this.heardWhileReceiving(message);
    else this.abort(unexpected(message, phase));
  }

  /** What was sent before the source knew that this side has given up. Commit must be answered again. */
  private heardTooLate(message: Message): void {
    if (this.state.phase === 'aborted' && message.kind === 'commit')
      this.link.send({ kind: 'aborted', reason: this.state.reason, detail: this.state.detail });
  }

  private offered({ guest }: Extract<Message, { readonly kind: 'offer' }>): void {
    const received = this.receiveGuest(guest);
    if (failed(received)) {
      this.abort(reasonOf(received));
      return;
    }
    this.guest = received;
    this.state = { phase: 'opening' };
    this.link.send({ kind: 'accept', target: received.target });
  }

  private heardWhileReceiving(message: Message): void {
    switch (message.kind) {
      case 'pages':
        this.receivePages(message.batch);
        return;
      case 'owed':
        this.step(this.guest?.owe(message.runs, this.owedFrames), 'receiving');
        this.postCopy = true;
        return;
      case 'state':
        this.step(this.guest?.restore(message.state), 'receiving');
        return;
      case 'prepare':
        this.step(this.guest?.whyUnfit() ?? this.guest?.prepare(), 'prepared');
        if (this.state.phase === 'prepared') this.link.send({ kind: 'prepared' });
        return;
      default:
        this.abort(unexpected(message, this.state.phase));
    }
  }

  private receivePages(batch: PageBatch): void {
    this.pagesReceived += batch.gfns.length;
    const pages = inflated(batch);
    this.step(failed(pages) ? pages : this.guest?.receive(pages), 'receiving');
  }

  private step(refused: Failure | null | undefined, next: DestinationPhase): void {
    if (refused) this.abort(reasonOf(refused));
    else this.state = { phase: next };
  }

  private commit(): Failure | null {
    // Ownership passes with the record: whoever asks a daemon that has restarted must be told so. Without one the guest stays.
    const failure = this.guest?.whyUnfit() ?? this.ledger.record({ kind: 'committed', session: this.local.session });
    if (failure !== null) {
      this.abort(reasonOf(failure));
      return failure;
    }
    this.state = this.postCopy ? { phase: 'fetching' } : { phase: 'committed', lost: 0 };
    this.ended();
    this.guest?.release();
    this.link.send({ kind: 'committed' });
    // The process may have given up all of it before it ran.
    if (this.postCopy && this.pagesMissing === 0) this.complete(0);
    return null;
  }

  /** Every page has come, or is not wanted any more, or never will come. */
  private complete(lost: number): void {
    if (this.state.phase !== 'fetching') return;
    this.state = { phase: 'committed', lost };
    this.ended();
    this.link.send({ kind: 'complete' });
  }

  private fetched(batch: PageBatch): void {
    this.pagesReceived += batch.gfns.length;
    const pages = inflated(batch);
    const refused = failed(pages) ? pages : this.guest?.receive(pages);
    // It cannot be given back, and what has been spoilt on the way is not sent again.
    if (refused) this.loseOwed();
  }

  private loseOwed(): void {
    const lost = this.pagesMissing;
    this.guest?.lose();
    this.complete(lost);
  }

  private readonly owedFrames: OwedFramesHandler = {
    wanted: (gfns) => {
      this.faults += gfns.length;
      for (let at = 0; at < gfns.length; at += WANTED_MAX)
        this.link.send({ kind: 'wanted', gfns: gfns.slice(at, at + WANTED_MAX) });
    },
    whole: () => this.complete(0),
  };

  private ended(): void {
    this.firstAfterEnd = this.link.asked + 1;
  }

  private heardStanding(frame: Extract<Frame, { readonly kind: 'standing' }>): void {
    const { link } = this;
    if (frame.answers === link.asked && frame.standing === 'unknown') this.sourceForgot(frame.boot);
    if (frame.boot === link.peerBoot && frame.standing === 'sent') this.sourceHasNone();
    if (link.peerBoot === frame.boot && frame.standing === 'stayed') this.abort(because('SOURCE_STAYED'));
    const ended = frame.standing === 'sent' || frame.standing === 'stayed' || frame.standing === 'unknown';
    if (frame.answers >= this.firstAfterEnd && ended) this.settled();
    if (frame.boot === link.peerBoot && frame.answers === link.asked) link.heardReceived(frame.received);
  }

  /**
   * A source that knows nothing of the session has ended it, if it is the same boot, and only where the guest stayed with
   * it can this side not have committed. Another boot has lost the guest: then what is complete here is the only copy.
   */
  private sourceForgot(boot: string): void {
    const { phase } = this.state;
    if (phase === 'fetching') this.loseOwed();
    else if (phase !== 'prepared' || boot === this.link.peerBoot) this.abort(because('SOURCE_FORGOT'));
  }

  /** It has been told by its operator that nobody will ask for more. */
  private sourceHasNone(): void {
    if (this.state.phase === 'fetching') this.loseOwed();
  }

  private settled(): void {
    if (this.state.phase !== 'committed' && this.state.phase !== 'aborted') return;
    if (this.state.phase === 'committed') this.ledger.forget(this.local.session);
    this.closed = true;
  }
}
