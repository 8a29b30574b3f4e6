import { PAGE_SIZE } from '../hardware/units.js';
import { batchBytes, type PageBatch } from './guest.js';
import { Rate } from './rate.js';

/** How far a migration is; counts begin with the session. */
export interface MigrationStatistics {
  /** The round of copying, from 1. */
  readonly round: number;
  /** One that is sent twice counts twice. */
  readonly pagesSent: number;
  /** Pages that are known to be owed still. */
  readonly pagesLeft: number;
  /** Bytes of the messages with pages. */
  readonly bytesSent: number;
  /** Bytes of guest memory a second that have arrived, of late. */
  readonly bytesPerSecond: number;
  /** Pages that the guest writes in a second, in the last round. */
  readonly dirtyPagesPerSecond: number;
  /** Milliseconds that the guest would be stopped, if it were now. */
  readonly expectedDowntimeMs: number;
  /** Milliseconds that it was stopped; 0 while it is not known. */
  readonly downtimeMs: number;
  /** How far auto-converge has slowed the vCPUs down, in per cent of their time. */
  readonly throttlePercent: number;
  /** Post-copy: pages that were sent because somebody waited for them. */
  readonly faultsServed: number;
}

/** What the source counts. The times it is told are those of any clock that does not go back. */
export class CopyProgress {
  round = 1;
  throttlePercent = 0;
  faultsServed = 0;
  private pagesSent = 0;
  private pagesLeft = 0;
  private bytesSent = 0;
  private pagesArrived = 0;
  private dirtyPerSecond = 0;
  private roundStartMs: number | null = null;
  private pagesSentBefore = 0;
  private stoppedMs: number | null = null;
  private downtimeMs = 0;
  private readonly rate = new Rate();

  /** @param switchoverBandwidth of `CopyLimits` */
  constructor(private readonly switchoverBandwidth: number | null) {}

  sent(batch: PageBatch, nowMs: number): void {
    // The rate counts from when the first page has left.
    if (this.roundStartMs === null) this.rate.add(0, nowMs);
    this.roundStartMs ??= nowMs;
    this.pagesSent += batch.gfns.length;
    this.pagesLeft = Math.max(0, this.pagesLeft - batch.gfns.length);
    this.bytesSent += batchBytes(batch);
  }

  /** The destination has so many pages more. */
  arrived(pages: number, nowMs: number): void {
    this.rate.add(pages * PAGE_SIZE, nowMs);
    this.pagesArrived += pages;
  }

  /** @returns pages sent in the round that is over */
  roundOver(pagesLeft: number, nowMs: number): number {
    const elapsed = nowMs - (this.roundStartMs ?? nowMs);
    this.dirtyPerSecond = (1000 * pagesLeft) / Math.max(1, elapsed);
    this.roundStartMs = nowMs;
    this.pagesLeft = pagesLeft;
    const sent = this.pagesSent - this.pagesSentBefore;
    this.pagesSentBefore = this.pagesSent;
    return sent;
  }

  owes(pages: number): void {
    this.pagesLeft = pages;
  }

  stopping(nowMs: number): void {
    this.stoppedMs = nowMs;
  }

  /** The guest runs again, here or there. */
  runs(nowMs: number): void {
    if (this.stoppedMs !== null) this.downtimeMs = nowMs - this.stoppedMs;
    this.stoppedMs = null;
  }

  /**
   * What has not arrived, at the rate that is promised for it, or else at the present one; infinite while nothing has arrived and
   * something is left.
   */
  expectedDowntimeMs(nowMs: number): number {
    const bytes = (this.pagesLeft + this.pagesSent - this.pagesArrived) * PAGE_SIZE;
    return bytes === 0 ? 0 : (1000 * bytes) / (this.switchoverBandwidth ?? this.rate.perSecond(nowMs));
  }

  statistics(nowMs: number): MigrationStatistics {
    const { round, pagesSent, pagesLeft, bytesSent, throttlePercent, faultsServed } = this;
    return {
      ...{ round, pagesSent, pagesLeft, bytesSent, throttlePercent, faultsServed },
      bytesPerSecond: this.rate.perSecond(nowMs),
      dirtyPagesPerSecond: this.dirtyPerSecond,
      expectedDowntimeMs: this.expectedDowntimeMs(nowMs),
      downtimeMs: this.stoppedMs === null ? this.downtimeMs : nowMs - this.stoppedMs,
    };
  }
}
