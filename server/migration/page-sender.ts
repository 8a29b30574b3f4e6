import { PAGE_SIZE } from '../hardware/units.js';
import { type Failure, failed, type Result } from '../kernel/failure.js';
import type { CopyProgress } from './copy-progress.js';
import { deflated } from './deflate.js';
import type { HeldMemory, PageBatch, SourceGuest } from './guest.js';
import type { CopyLimits } from './limits.js';
import type { Link } from './link.js';
import { TokenBucket } from './token-bucket.js';

/** Runs of frames that one message names. */
export const OWED_RUNS_MAX = 16_384;
/**
 * Bytes under way while the destination's guest runs without all of its memory: what somebody waits for is behind them. Enough
 * for 1 GB/s over a millisecond.
 */
const PUSH_WINDOW_BYTES = 2 ** 20;
/** Pages of a message then. */
const PUSH_PAGES = 32;

/** Puts a source's pages into messages, as fast as the limits of the migration let it. */
export class PageSender {
  private readonly bucket: TokenBucket | null;
  /** Post-copy: what follows once the guest runs at the destination. */
  private held: HeldMemory | null = null;

  constructor(
    private readonly guest: SourceGuest,
    private readonly link: Link,
    private readonly limits: CopyLimits,
    private readonly progress: CopyProgress,
  ) {
    this.bucket = limits.bandwidth === null ? null : new TokenBucket(limits.bandwidth);
  }

  /** Something of a guest that is (to be) handed over is here only. */
  get holds(): boolean {
    return this.held !== null;
  }

  /**
   * Sends what is to go before the guest does.
   * @param runs the guest is not stopped yet: only then does the limit of bandwidth count
   * @returns milliseconds after which there may be more; 0: at once; null: nothing is left
   */
  send(nowMs: number, stream: number, runs: boolean): Result<number> | null {
    const wait = runs ? (this.bucket?.waitMs(nowMs) ?? 0) : 0;
    if (wait > 0) return wait;
    const batch = this.guest.next(runs ? this.affordablePages : this.limits.batchPages);
    if (failed(batch) || batch === null) return batch;
    this.put(batch, stream, nowMs);
    return 0;
  }

  /** What is owed of the stopped guest stays here until it runs: the destination is only told what it is. */
  holdBack(): Failure | null {
    const held = this.guest.hold();
    if (failed(held)) return held;
    if (held.size === 0) return null;
    this.held = held;
    this.progress.owes(held.size);
    for (let at = 0; at < held.runs.length; at += OWED_RUNS_MAX)
      this.link.send({ kind: 'owed', runs: held.runs.slice(at, at + OWED_RUNS_MAX) });
    return null;
  }

  /** Somebody at the destination waits for frames. */
  want(gfns: readonly number[]): void {
    this.progress.faultsServed += this.held?.want(gfns) ?? 0;
  }

  /**
   * Sends what somebody waits for, else what comes next of that which is held.
   * @returns milliseconds after which there may be more; 0: at once; null: not before something has arrived
   */
  serve(nowMs: number, stream: number): number | null {
    const { held, link } = this;
    if (held === null) return null;
    if (!held.urgent) {
      if (!link.hasCredit(stream, PUSH_WINDOW_BYTES)) return null;
      const wait = this.bucket?.waitMs(nowMs) ?? 0;
      if (wait > 0) return wait;
    }
    const batch = held.next(Math.min(PUSH_PAGES, held.urgent ? this.limits.batchPages : this.affordablePages));
    if (batch === null) return null;
    this.put(batch, stream, nowMs);
    return 0;
  }

  /** Nobody wants what is held any more. */
  release(): void {
    this.held?.release();
    this.held = null;
  }

  private put(batch: PageBatch, stream: number, nowMs: number): void {
    const travelling = this.limits.compress ? deflated(batch) : batch;
    if (travelling !== batch) batch.memory?.release();
    this.link.send({ kind: 'pages', batch: travelling }, stream);
    this.bucket?.take(batch.gfns.length * PAGE_SIZE);
    this.progress.sent(travelling, nowMs);
  }

  /** Pages of the next message while a guest runs: a low limit of bandwidth is no reason for bursts of a whole batch. */
  private get affordablePages(): number {
    const { batchPages } = this.limits;
    return this.bucket === null ? batchPages : Math.max(1, Math.min(batchPages, Math.floor(this.bucket.available / PAGE_SIZE)));
  }
}
