/** First step and following ones, in per cent of the vCPUs' time, and the highest (QEMU's `cpu-throttle-*` defaults). */
const INITIAL = 20;
const INCREMENT = 10;
const MAX = 99;
/** A round has not converged if the guest has written more than so much of what was copied meanwhile. */
const TRIGGER = 0.5;
/** Rounds of that kind before the vCPUs are slowed down (further). */
const PATIENCE = 2;

/**
 * Auto-converge: how far the vCPUs are slowed down, decided after each round as QEMU's `migration_trigger_throttle` does, which takes
 * rounds together until a second has passed. As there, what the guest writes is compared with what was sent, whatever held that
 * back: a limit of bandwidth is the operator's wish, and who has both gets a guest that is slow enough for it.
 */
export class AutoConverge {
  percent = 0;
  private divergent = 0;

  /** @returns true if `percent` has changed */
  roundOver(pagesSent: number, pagesWritten: number): boolean {
    if (pagesWritten <= TRIGGER * pagesSent || this.percent === MAX) return false;
    if (++this.divergent < PATIENCE) return false;
    this.divergent = 0;
    this.percent = this.percent === 0 ? INITIAL : Math.min(MAX, this.percent + INCREMENT);
    return true;
  }
}
