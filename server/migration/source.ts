import { Failure, failed } from '../kernel/failure.js';
import { type CommitFate, CommitProof, type StandingFrame } from './commit-proof.js';
import { CopyProgress, type MigrationStatistics } from './copy-progress.js';
import { CopyRounds } from './copy-rounds.js';
import type { SourceGuest } from './guest.js';
import type { Ledger } from './ledger.js';
import type { CopyLimits } from './limits.js';
import { CONTROL_STREAM, Link, type LocalSide, type Transmit } from './link.js';
import { type Frame, type Message, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, protocolVersion, type Standing } from './message.js';
import { PageSender } from './page-sender.js';
import { because, type Reason, reasonOf } from './reason.js';

/**
 * The source's side of a migration; `hand-over.md` has the table of states and of what silence means. It has no clock:
 * whoever drives it calls `tick` now and then, and `pump` for each stream with room, after everything that has arrived.
 * Times are milliseconds of any clock that does not go back.
 */

/** In the order in which a migration that succeeds goes through them; in the first three the guest runs. */
export const SOURCE_PHASES = [
  'negotiating',
  'copying',
  'stopping',
  'draining',
  'preparing',
  'committing',
  'revoking',
  'serving',
] as const;

/** So long the vCPUs that have been stopped wait for the others, unless the downtime limit is longer. */
export const STOP_PATIENCE_MS = 5000;

/** How often what the VMM's devices have written into the memory of the stopped guest is looked for. */
const LOOKS_MAX = 8;

/** Where a migration is that has not ended. */
export type SourcePhase = (typeof SOURCE_PHASES)[number];

export type SourceState =
  | { readonly phase: SourcePhase }
  /** The destination owns the guest, and all of it that it wants. `lost`: it has restarted since, so that nobody has it. */
  | { readonly phase: 'sent'; readonly lost: boolean }
  /** The guest has stayed here, or has come back. */
  | ({ readonly phase: 'stayed' } & Reason);

export class Source {
  state: SourceState = { phase: 'negotiating' };
  private readonly link: Link;
  private readonly proof: CommitProof;
  private readonly progress: CopyProgress;
  private readonly pages: PageSender;
  private readonly rounds: CopyRounds;
  private nowMs = 0;
  private stoppingMs = 0;
  private looks = 0;
  private reasonToRevoke = because('');
  /** The guest is to be handed over before all of its memory. */
  private postCopy: boolean;

  constructor(
    local: LocalSide,
    private readonly guest: SourceGuest,
    private readonly ledger: Ledger,
    private readonly limits: CopyLimits,
    transmit: Transmit,
  ) {
    this.link = new Link(local, transmit, (message) => this.messageArrived(message));
    this.proof = new CommitProof(this.link);
    this.progress = new CopyProgress(limits.switchoverBandwidth);
    this.pages = new PageSender(guest, this.link, limits, this.progress);
    this.rounds = new CopyRounds(guest, limits, this.progress);
    this.postCopy = limits.postCopy === 'at-once';
    this.link.send({ kind: 'offer', guest: guest.describe() });
  }

  statistics(nowMs: number): MigrationStatistics {
    return this.progress.statistics(nowMs);
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
      case 'serving':
      case 'sent':
      case 'stayed':
        return this.state.phase;
      default:
        return 'sending';
    }
  }

  /** A stream to the destination is there; stream 0 carries everything but pages, and nothing goes on without it. */
  connected(stream = CONTROL_STREAM): void {
    this.link.opened(stream);
  }

  /** A cut proves nothing, in any phase: the guest goes on if Commit has not left, and stays paused if it has. */
  disconnected(stream = CONTROL_STREAM): void {
    this.link.cut(stream);
  }

  /** Time has passed without news: asks again, and does not have the guest stand still for longer than anybody would want. */
  tick(nowMs: number): void {
    const { waitsFor } = this;
    if (waitsFor !== null && nowMs - this.stoppingMs > Math.max(STOP_PATIENCE_MS, this.limits.downtimeMs))
      this.cancel(because('VCPUS_NOT_STOPPED', waitsFor));
    if (this.link.connected && !this.closed) this.link.ask();
  }

  /** For people: what keeps the guest from being stopped. Null: nothing does. */
  get waitsFor(): string | null {
    return this.state.phase === 'stopping' ? this.guest.waitsFor : null;
  }

  /**
   * Sends the next pages over a stream that has room.
   * @returns milliseconds after which there may be more to send: 0: at once; null: not before something has arrived
   */
  pump(nowMs: number, stream = CONTROL_STREAM): number | null {
    this.nowMs = nowMs;
    const { phase } = this.state;
    if (!this.link.hasCredit(stream)) return null;
    if (phase === 'serving') return this.pages.serve(nowMs, stream);
    if (phase !== 'copying' && phase !== 'draining') return null;
    if (phase === 'copying' && this.postCopy) {
      // What is under way would count as downtime.
      if (this.link.drained) this.stop();
      return null;
    }
    const failure = phase === 'draining' && this.postCopy && !this.pages.holds ? this.pages.holdBack() : null;
    const next = failure ?? this.pages.send(nowMs, stream, phase === 'copying');
    if (failed(next)) {
      this.cancel(reasonOf(next));
      return null;
    }
    return next ?? this.nothingOwed();
  }

  receive(frame: Frame, nowMs: number): void {
    this.nowMs = nowMs;
    this.heardFrame(frame);
  }

  /**
   * Hands the guest over now, or as soon as it is copied at all: what the destination does not have yet follows while it runs.
   * EINVAL: that was not allowed when the migration began; EBUSY: the guest has been stopped without.
   */
  startPostCopy(): Failure | null {
    const { limits, state } = this;
    if (limits.postCopy === 'never')
      return new Failure('EINVAL', 'POST_COPY_NOT_ALLOWED', 'server/migration', {
        field: 'limits.post_copy',
        given: limits.postCopy,
        allowed: 'a migration that was begun with it',
      });
    if (this.postCopy) return null;
    if (state.phase !== 'negotiating' && state.phase !== 'copying')
      return new Failure('EBUSY', 'GUEST_IS_STOPPED', 'server/migration', {
        state: state.phase,
        allowed: 'negotiating or copying',
      });
    this.postCopy = true;
    return null;
  }

  /** Gives the migration up. Before Commit has left the guest runs on at once; afterwards the destination has to agree. */
  cancel(reason: Reason): void {
    switch (this.state.phase) {
      case 'committing':
        this.reasonToRevoke = reason;
        this.state = { phase: 'revoking' };
        this.link.send({ kind: 'abort', ...reason });
        return;
      case 'revoking':
      case 'serving':
      case 'sent':
      case 'stayed':
        return;
      default:
        this.stay(reason);
        this.link.send({ kind: 'abort', ...reason });
    }
  }

  /**
   * DANGEROUS. An operator knows what the protocol cannot: that the destination's copy will never run. If that is wrong,
   * the guest runs twice. It is recorded, or not done.
   */
  forceRun(session: string): Failure | null {
    if (this.standing !== 'in-doubt') return null;
    const failure = this.ledger.record({ kind: 'overridden', session, decision: 'run' });
    if (failure === null) this.stay(because('OPERATOR_OVERRIDE'));
    return failure;
  }

  /**
   * DANGEROUS. An operator knows what the protocol cannot: that the destination owns the guest. If that is wrong, the guest
   * is lost. While it serves: that the destination will not ask for the rest any more. It is recorded, or not
   * done.
   */
  forceSent(session: string): Failure | null {
    if (this.standing !== 'in-doubt' && this.standing !== 'serving') return null;
    const failure = this.ledger.record({ kind: 'overridden', session, decision: 'discard' });
    if (failure !== null) return failure;
    this.destinationOwns();
    this.servedAll();
    return null;
  }

  private messageArrived(message: Message): void {
    if (message.kind !== 'pages') return;
    this.progress.arrived(message.batch.gfns.length, this.nowMs);
    message.batch.memory?.release();
  }

  private heardFrame(frame: Frame): void {
    const { link } = this;
    if (frame.kind === 'standing') {
      this.heardStanding(frame);
      return;
    }
    if (link.peerBoot !== null && frame.boot !== link.peerBoot && frame.kind !== 'ask') return;
    switch (frame.kind) {
      case 'ask':
        if (frame.version < PROTOCOL_VERSION_MIN || frame.version > PROTOCOL_VERSION) this.cancel(protocolVersion(frame.version));
        link.answer(frame.number, this.standing);
        return;
      case 'ack':
        link.acknowledged(frame.received);
        return;
      case 'settled':
        return;
      case 'data':
        link.peerBoot ??= frame.boot;
        for (const message of link.accept(frame.sequence, frame.message)) this.heard(message);
    }
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
        this.destinationAborted(because(message.reason, message.detail));
        return;
      case 'wanted':
        this.pages.want(message.gfns);
        return;
      case 'complete':
        this.servedAll();
        return;
      default:
        this.cancel(because('MESSAGE_UNEXPECTED', `${message.kind} in ${phase}`));
    }
  }

  private accepted(target: Uint8Array): void {
    const opening = this.guest.begin(target);
    if (failed(opening)) {
      this.cancel(reasonOf(opening));
      return;
    }
    // From here on it can be said how much there is to be sent, and what has been.
    this.progress.owes(this.guest.nextRound());
    this.state = { phase: 'copying' };
    this.link.send({ kind: 'start', opening });
  }

  private nothingOwed(): number | null {
    if (this.state.phase === 'draining') {
      if (this.writtenSince()) return 0;
      this.allSent();
      return null;
    }
    // What is still under way would count as downtime, so a round is over when all of it has arrived.
    if (!this.link.drained) return null;
    this.roundOver();
    return 0;
  }

  /**
   * The VMM's devices do not stop with the vCPUs: what they have written into memory until the state is read goes too, unless there
   * is no end of it. With post-copy memory is what it was when the list of the rest was made.
   */
  private writtenSince(): boolean {
    if (this.postCopy || this.looks >= LOOKS_MAX) return false;
    this.looks++;
    const pages = this.guest.nextRound();
    this.progress.owes(pages);
    return pages > 0;
  }

  private roundOver(): void {
    const next = this.rounds.over(this.nowMs);
    if (next === 'copy') return;
    if (next === 'hand-over') this.postCopy = true;
    this.stop();
  }

  private stop(): void {
    this.state = { phase: 'stopping' };
    this.stoppingMs = this.nowMs;
    this.progress.stopping(this.nowMs);
    this.guest.stop((failure) => this.stopped(failure));
  }

  private stopped(failure: Failure | null): void {
    if (this.state.phase !== 'stopping') return;
    if (failure !== null) {
      this.cancel(reasonOf(failure));
      return;
    }
    this.progress.owes(this.guest.nextRound());
    this.state = { phase: 'draining' };
  }

  private allSent(): void {
    const state = this.guest.state();
    if (failed(state)) {
      this.cancel(reasonOf(state));
      return;
    }
    this.state = { phase: 'preparing' };
    this.link.send({ kind: 'state', state });
    this.link.send({ kind: 'prepare' });
  }

  private commit(): void {
    const refused = this.guest.fence();
    if (refused !== null) {
      this.cancel(reasonOf(refused));
      return;
    }
    this.proof.commitLeaves();
    // From here on only the destination can say whose the guest is.
    this.state = { phase: 'committing' };
    this.link.send({ kind: 'commit' });
  }

  private heardStanding(frame: StandingFrame): void {
    const { link, proof, standing } = this;
    link.peerBoot ??= frame.boot;
    proof.heard(frame);
    const isLatest = frame.answers === link.asked;
    const sameBoot = frame.boot === link.peerBoot;
    if (standing === 'in-doubt') this.learn(proof.fateBy(frame));
    else if (isLatest && (!sameBoot || frame.standing === 'unknown')) this.peerForgot();
    // It asks again since it has not heard that it may forget its record.
    if (standing === 'sent' && frame.standing === 'committed') link.settle();
    if (sameBoot && isLatest) link.heardReceived(frame.received);
  }

  private learn(fate: CommitFate | null): void {
    if (fate === 'refused') this.destinationAborted(because('DESTINATION_ABORTED'));
    else if (fate === 'never-arrived') this.destinationGone();
    else if (fate !== null) this.destinationOwns();
    if (fate === 'taken-and-lost') this.servedAll(true);
  }

  /** The destination knows nothing of the session (any more), or has restarted. */
  private peerForgot(): void {
    const { standing } = this;
    // It has heard of the end, or there is nobody any more who could.
    if (standing === 'sent' || standing === 'stayed') this.link.close();
    // The guest is lost with its holder; what is here is of no use to anybody.
    else if (standing === 'serving') this.servedAll(true);
    else this.destinationGone();
  }

  /** Before Commit has left, one that knows nothing of the session cannot have the guest, and nothing can go on. */
  private destinationGone(): void {
    this.stay(because('DESTINATION_RESTARTED'));
    this.link.close();
  }

  private destinationAborted(reason: Reason): void {
    this.stay(this.state.phase === 'revoking' ? this.reasonToRevoke : reason);
    this.link.close();
  }

  private destinationOwns(): void {
    const { phase } = this.state;
    if (phase === 'committing' || phase === 'revoking') {
      this.state = { phase: 'serving' };
      this.progress.runs(this.nowMs);
      this.guest.finish();
      if (!this.pages.holds) this.servedAll();
    } else if (phase === 'sent') this.link.settle();
  }

  /** The destination needs nothing of the guest any more. */
  private servedAll(lost = false): void {
    if (this.state.phase !== 'serving' && !(lost && this.state.phase === 'sent')) return;
    this.pages.release();
    this.state = { phase: 'sent', lost };
    this.link.close();
    this.link.settle();
  }

  private stay(reason: Reason): void {
    const { phase } = this.state;
    if (phase === 'serving' || phase === 'sent' || phase === 'stayed') return;
    this.state = { phase: 'stayed', ...reason };
    this.pages.release();
    this.progress.runs(this.nowMs);
    this.progress.throttlePercent = 0;
    this.guest.resume();
  }
}
