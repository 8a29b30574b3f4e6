import { type Failure, failed } from '../kernel/failure.js';
import { batchBytes, type SourceGuest } from './guest.js';
import type { Ledger } from './ledger.js';
import { Link, type LocalSide } from './link.js';
import { type Frame, type Message, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, type Standing } from './message.js';

/**
 * The source's side of a migration; `hand-over.md` has the table of states and of what silence means. It has no clock:
 * whoever drives it calls `tick`, and `pump` while there is room on the wire.
 */

/** In the order in which a migration that succeeds goes through them; in the first three the guest runs. */
export const SOURCE_PHASES = ['negotiating', 'copying', 'stopping', 'draining', 'preparing', 'committing', 'revoking'] as const;

/** Where a migration is that has not ended. */
export type SourcePhase = (typeof SOURCE_PHASES)[number];

export type SourceState =
  | { readonly phase: SourcePhase }
  /** The destination owns the guest. */
  | { readonly phase: 'sent' }
  /** The guest has stayed here, or has come back. */
  | { readonly phase: 'stayed'; readonly reason: string };

/** How long to go on copying while the guest runs. */
export interface CopyLimits {
  /** Pages of one message. @default 256 */
  readonly batchPages: number;
  /** Stops the guest when so few pages are left. */
  readonly stopPages: (pagesPerMs: number) => number;
  /** Stops it after so many rounds in any case. */
  readonly rounds: number;
}

export interface MigrationStatistics {
  readonly round: number;
  readonly pagesSent: number;
  readonly pagesLeft: number;
  readonly bytesSent: number;
}

export class Source {
  state: SourceState = { phase: 'negotiating' };
  private readonly link: Link;
  private round = 1;
  private pagesSent = 0;
  private pagesLeft = 0;
  private bytesSent = 0;
  /** The first question whose answer can tell what became of Commit. */
  private firstProof = Number.POSITIVE_INFINITY;
  /** Where the peer's boot, the one that will prepare, keeps its records. */
  private peerLedger: string | null = null;
  private reasonToRevoke = '';
  private startMs: number | null = null;
  private pagesPerMs = 0;

  constructor(
    local: LocalSide,
    private readonly guest: SourceGuest,
    private readonly ledger: Ledger,
    private readonly limits: CopyLimits,
    transmit: (frame: Frame) => void,
  ) {
    this.link = new Link(local, transmit);
    this.link.send({ kind: 'offer', guest: guest.describe() });
  }

  get statistics(): MigrationStatistics {
    const { round, pagesSent, pagesLeft, bytesSent } = this;
    return { round, pagesSent, pagesLeft, bytesSent };
  }

  /** Nothing is left to be said, so the session may be forgotten. */
  get closed(): boolean {
    return (this.state.phase === 'sent' || this.state.phase === 'stayed') && this.link.drained;
  }

  get standing(): Standing {
    switch (this.state.phase) {
      case 'committing':
      case 'revoking':
        return 'in-doubt';
      case 'sent':
      case 'stayed':
        return this.state.phase;
      default:
        return 'sending';
    }
  }

  connected(): void {
    this.link.connected = true;
    this.link.ask();
  }

  /** A cut proves nothing, in any phase: the guest goes on if Commit has not left, and stays paused if it has. */
  disconnected(): void {
    this.link.connected = false;
  }

  /** Time has passed without news: asks again. */
  tick(): void {
    if (this.link.connected && !this.closed) this.link.ask();
  }

  /**
   * Sends the next pages, if there is room.
   * @param nowMs any clock that does not go back
   * @returns true if there may be more to send at once
   */
  pump(nowMs: number): boolean {
    const { phase } = this.state;
    if ((phase !== 'copying' && phase !== 'draining') || !this.link.hasCredit) return false;
    const batch = this.guest.next(this.limits.batchPages);
    if (failed(batch)) {
      this.cancel(batch.reason);
      return false;
    }
    this.startMs ??= nowMs;
    if (batch !== null) {
      this.link.send({ kind: 'pages', batch });
      this.pagesSent += batch.gfns.length;
      this.pagesLeft = Math.max(0, this.pagesLeft - batch.gfns.length);
      this.bytesSent += batchBytes(batch);
      this.pagesPerMs = this.pagesSent / Math.max(1, nowMs - this.startMs);
      return true;
    }
    if (phase === 'draining') this.allSent();
    else this.roundOver();
    return true;
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
        if (frame.version < PROTOCOL_VERSION_MIN || frame.version > PROTOCOL_VERSION) this.cancel('PROTOCOL_VERSION');
        link.answer(frame.number, this.standing);
        return;
      case 'ack':
        link.acknowledged(frame.received);
        return;
      case 'settled':
        return;
      case 'data': {
        link.peerBoot ??= frame.boot;
        const message = link.accept(frame.sequence, frame.message);
        if (message !== null) this.heard(message);
      }
    }
  }

  /** Gives the migration up. Before Commit has left the guest runs on at once; afterwards the destination has to agree. */
  cancel(reason: string): void {
    switch (this.state.phase) {
      case 'committing':
        this.reasonToRevoke = reason;
        this.state = { phase: 'revoking' };
        this.link.send({ kind: 'abort', reason });
        return;
      case 'revoking':
      case 'sent':
      case 'stayed':
        return;
      default:
        this.stay(reason);
        this.link.send({ kind: 'abort', reason });
    }
  }

  /**
   * DANGEROUS. An operator knows what the protocol cannot: that the destination's copy will never run. If that is wrong,
   * the guest runs twice. It is recorded.
   */
  forceRun(session: string): void {
    if (this.standing !== 'in-doubt') return;
    this.ledger.record({ kind: 'overridden', session, decision: 'run' });
    this.stay('OPERATOR_OVERRIDE');
  }

  /**
   * DANGEROUS. An operator knows what the protocol cannot: that the destination owns the guest. If that is wrong, the guest
   * is lost. It is recorded.
   */
  forceSent(session: string): void {
    if (this.standing !== 'in-doubt') return;
    this.ledger.record({ kind: 'overridden', session, decision: 'discard' });
    this.destinationOwns();
  }

  private heard(message: Message): void {
    const { phase } = this.state;
    switch (message.kind) {
      case 'accept':
        if (phase === 'negotiating') this.accepted(message.target);
        return;
      case 'prepared':
        if (phase === 'preparing') this.commit();
        return;
      case 'committed':
        this.destinationOwns();
        return;
      case 'aborted':
        this.destinationAborted(message.reason);
        return;
      default:
        this.cancel('MESSAGE_UNEXPECTED');
    }
  }

  private accepted(target: Uint8Array): void {
    const opening = this.guest.begin(target);
    if (failed(opening)) {
      this.cancel(opening.reason);
      return;
    }
    this.state = { phase: 'copying' };
    this.link.send({ kind: 'start', opening });
  }

  private roundOver(): void {
    this.pagesLeft = this.guest.nextRound();
    if (this.pagesLeft > this.limits.stopPages(this.pagesPerMs) && this.round < this.limits.rounds) {
      this.round++;
      return;
    }
    this.state = { phase: 'stopping' };
    this.guest.stop((failure) => this.stopped(failure));
  }

  private stopped(failure: Failure | null): void {
    if (this.state.phase !== 'stopping') return;
    if (failure !== null) {
      this.cancel(failure.reason);
      return;
    }
    this.pagesLeft = this.guest.nextRound();
    this.state = { phase: 'draining' };
  }

  private allSent(): void {
    const state = this.guest.state();
    if (failed(state)) {
      this.cancel(state.reason);
      return;
    }
    this.state = { phase: 'preparing' };
    this.link.send({ kind: 'state', state });
    this.link.send({ kind: 'prepare' });
  }

  private commit(): void {
    const refused = this.guest.fence();
    if (refused !== null) {
      this.cancel(refused.reason);
      return;
    }
    this.firstProof = this.link.asked + 1;
    // From here on only the destination can say whose the guest is.
    this.state = { phase: 'committing' };
    this.link.send({ kind: 'commit' });
  }

  private heardStanding(frame: Extract<Frame, { readonly kind: 'standing' }>): void {
    const { link } = this;
    link.peerBoot ??= frame.boot;
    if (frame.boot === link.peerBoot) this.peerLedger = frame.ledger;
    if (this.state.phase === 'sent' || this.state.phase === 'stayed') {
      if (frame.standing === 'committed') this.destinationOwns();
      // It has heard of the end, or there is nobody any more who could.
      if (frame.answers === link.asked && (frame.boot !== link.peerBoot || frame.standing === 'unknown')) link.close();
    } else if (this.standing === 'in-doubt') {
      if (frame.answers >= this.firstProof) this.heardProof(frame);
    } else if (frame.answers === link.asked && (frame.boot !== link.peerBoot || frame.standing === 'unknown'))
      this.destinationGone();
    if (frame.boot !== link.peerBoot || frame.answers !== link.asked) return;
    link.heardReceived(frame.received);
  }

  private heardProof({ standing, boot, ledger }: Extract<Frame, { readonly kind: 'standing' }>): void {
    if (standing === 'committed') this.destinationOwns();
    else if (standing === 'aborted') this.destinationAborted('DESTINATION_ABORTED');
    else if (standing === 'unknown' && this.provesNothingRan(boot, ledger)) this.destinationGone();
  }

  /** Another boot that keeps the same records and has none of a Commit: it was not received, and can not be any more. */
  private provesNothingRan(boot: string, ledger: string | null): boolean {
    return boot !== this.link.peerBoot && ledger !== null && ledger === this.peerLedger;
  }

  /** Before Commit has left, one that knows nothing of the session cannot have the guest, and nothing can go on. */
  private destinationGone(): void {
    this.stay('DESTINATION_RESTARTED');
    this.link.close();
  }

  private destinationAborted(reason: string): void {
    this.stay(this.state.phase === 'revoking' ? this.reasonToRevoke : reason);
    this.link.close();
  }

  private destinationOwns(): void {
    const { phase } = this.state;
    if (phase === 'committing' || phase === 'revoking') {
      this.state = { phase: 'sent' };
      this.guest.finish();
      this.link.close();
    }
    if (this.state.phase === 'sent') this.link.settle();
  }

  private stay(reason: string): void {
    if (this.state.phase === 'sent' || this.state.phase === 'stayed') return;
    this.state = { phase: 'stayed', reason };
    this.guest.resume();
  }
}
