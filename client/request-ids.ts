/** Ids that may be out beyond the oldest before the others are acknowledged past it: one long KVM_RUN must not hold up all. */
const BACKLOG_MAX = 128;

/** Replies that are acknowledged at a time: the host keeps many more, and a header less is worth having. */
const ACKNOWLEDGED_AT_ONCE = 64;
/** More than any client can use up. */
const IDS_PER_MS = 1024;

/**
 * The request ids of one process. They count up; ids whose replies have arrived are acknowledged with a later call, so that
 * the host may forget the replies.
 */
export class RequestIds {
  private last: number;
  private acknowledged = 0;
  /** In the order in which they were given out. */
  private readonly outstanding = new Set<number>();

  /** @param first the first id; all before it are acknowledged with the first call */
  constructor(first = 1) {
    this.last = first - 1;
  }

  /**
   * Ids of a process that others have acted as before. Nobody knows how far they counted; but whoever counts up from 1, or
   * from such a number of an earlier moment, has not come this far.
   */
  static takenOver(): RequestIds {
    return new RequestIds(Date.now() * IDS_PER_MS);
  }

  next(): number {
    this.last += 1;
    this.outstanding.add(this.last);
    return this.last;
  }

  /** The reply to `id` has arrived, or nobody wants it any more. */
  arrived(id: number): void {
    this.outstanding.delete(id);
  }

  /**
   * What to send as `simkvm-acknowledge` with call `id`, if it is time to: the highest id up to which every reply has arrived.
   * If that lags far behind, a higher one, followed by those below it that are still out.
   */
  acknowledgement(id: number): string | null {
    if (id - this.acknowledged <= ACKNOWLEDGED_AT_ONCE) return null;
    const { value: oldest = id } = this.outstanding.values().next();
    if (id - oldest > BACKLOG_MAX) {
      this.acknowledged = id - 1;
      const out = [...this.outstanding].filter((other) => other < id);
      return [id - 1, ...out].join(',');
    }
    if (oldest - this.acknowledged <= ACKNOWLEDGED_AT_ONCE) return null;
    this.acknowledged = oldest - 1;
    return String(oldest - 1);
  }
}
