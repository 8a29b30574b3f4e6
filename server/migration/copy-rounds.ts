import { AutoConverge } from './auto-converge.js';
import type { CopyProgress } from './copy-progress.js';
import type { SourceGuest } from './guest.js';
import type { CopyLimits } from './limits.js';

/**
 * The rounds in which a guest that runs is copied: all of its memory, then what it has written since, until little enough is
 * left for it to be stopped.
 */
export class CopyRounds {
  private readonly converge: AutoConverge | null;

  constructor(
    private readonly guest: SourceGuest,
    private readonly limits: CopyLimits,
    private readonly progress: CopyProgress,
  ) {
    this.converge = limits.autoConverge ? new AutoConverge() : null;
  }

  /**
   * All of a round has arrived.
   * @returns whether to copy another one, or to stop the guest; with `hand-over` before all of the rest has been sent
   */
  over(nowMs: number): 'copy' | 'stop' | 'hand-over' {
    const { guest, limits, progress } = this;
    const left = guest.nextRound();
    const sent = progress.roundOver(left, nowMs);
    if (progress.expectedDowntimeMs(nowMs) <= limits.downtimeMs) return 'stop';
    if (progress.round >= limits.rounds) return limits.postCopy === 'after-rounds' ? 'hand-over' : 'stop';
    progress.round++;
    this.slowDown(sent, left);
    return 'copy';
  }

  private slowDown(pagesSent: number, pagesWritten: number): void {
    const { converge } = this;
    if (converge === null || !converge.roundOver(pagesSent, pagesWritten)) return;
    this.progress.throttlePercent = converge.percent;
    this.guest.throttle(converge.percent);
  }
}
