/** How far back a rate looks, and how finely. */
const WINDOW_MS = 1000;
const STEP_MS = 50;

interface Step {
  readonly startMs: number;
  amount: number;
}

/** How much of something there was in a second, of late. */
export class Rate {
  private steps: Step[] = [];
  private firstMs: number | null = null;

  add(amount: number, nowMs: number): void {
    this.firstMs ??= nowMs;
    const last = this.steps.at(-1);
    if (last !== undefined && nowMs - last.startMs < STEP_MS) last.amount += amount;
    else this.steps.push({ startMs: nowMs, amount });
    this.forget(nowMs);
  }

  /** 0 where nothing has been added. */
  perSecond(nowMs: number): number {
    if (this.firstMs === null) return 0;
    this.forget(nowMs);
    const sum = this.steps.reduce((total, { amount }) => total + amount, 0);
    return (1000 * sum) / Math.min(WINDOW_MS, Math.max(1, nowMs - this.firstMs));
  }

  private forget(nowMs: number): void {
    const { steps } = this;
    const kept = steps.findIndex(({ startMs }) => startMs > nowMs - WINDOW_MS);
    if (kept !== 0) this.steps = kept < 0 ? [] : steps.slice(kept);
  }
}
