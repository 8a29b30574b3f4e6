/** Milliseconds of its rate that a bucket holds: so long a pause is made up for by a burst. */
const BURST_MS = 50;

/** A limit of so many bytes a second, for whoever can come back later. What is taken may overdraw it once. */
export class TokenBucket {
  private tokens: number;
  private filledMs: number | null = null;

  /** @param bytesPerSecond above 0 */
  constructor(private readonly bytesPerSecond: number) {
    this.tokens = this.capacity;
  }

  /** @returns milliseconds until something may be taken; 0: now */
  waitMs(nowMs: number): number {
    this.fill(nowMs);
    return this.tokens > 0 ? 0 : Math.ceil((1 - this.tokens) / this.perMs);
  }

  /** Bytes that may be taken now without overdrawing it; below 0: it is overdrawn. */
  get available(): number {
    return this.tokens;
  }

  take(bytes: number): void {
    this.tokens -= bytes;
  }

  private get perMs(): number {
    return this.bytesPerSecond / 1000;
  }

  private get capacity(): number {
    return this.perMs * BURST_MS;
  }

  private fill(nowMs: number): void {
    if (this.filledMs !== null) this.tokens = Math.min(this.capacity, this.tokens + (nowMs - this.filledMs) * this.perMs);
    this.filledMs = nowMs;
  }
}
