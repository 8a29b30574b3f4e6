/**
 * Timers of the simulated kernel (`hrtimer`). Nothing here reads a clock by itself: whoever drives the host calls
 * `advance` with the host's time, the run loop before each slice of a guest, the daemon when `nextDeadline` has come.
 * A test sets the time by hand.
 */

/** Runs at expiry with the time of the queue; the result is the next expiry (HRTIMER_RESTART), or null. */
export type TimerFunction = (now: bigint) => bigint | null;

/** `struct hrtimer`: fires once at its deadline, in nanoseconds of the host's clock, unless its function restarts it. */
export class KernelTimer {
  /** Null: not armed. */
  private expires: bigint | null = null;
  /** Position in the queue's heap, and the order of arming among equal deadlines; for `TimerQueue` only. */
  slot = -1;
  sequence = 0;

  constructor(
    private readonly queue: TimerQueue,
    private readonly expired: TimerFunction,
  ) {}

  /** `hrtimer_get_expires`; null when not armed. */
  get deadline(): bigint | null {
    return this.expires;
  }

  /** `hrtimer_start`: arms the timer, again if it is armed. A deadline that has passed fires at the next `advance`. */
  start(deadline: bigint): void {
    this.cancel();
    this.expires = deadline;
    this.queue.add(this, deadline);
  }

  /** `hrtimer_cancel`. @returns true if it was armed */
  cancel(): boolean {
    if (this.expires === null) return false;
    this.queue.remove(this);
    this.expires = null;
    return true;
  }

  /** For `TimerQueue` only: the timer has left the queue because its time has come. */
  fire(now: bigint): void {
    this.expires = null;
    const next = this.expired(now);
    if (next !== null) this.start(next);
  }
}

interface Armed {
  readonly timer: KernelTimer;
  readonly deadline: bigint;
}

/** Every armed timer of a host, earliest first; among equal deadlines the one that was armed first. */
export class TimerQueue {
  /** Binary heap. */
  private readonly heap: Armed[] = [];
  private armings = 0;

  /** Called when the earliest deadline has moved forward: whoever sleeps until `nextDeadline` looks again. */
  onEarlier: () => void = () => {};

  /** Nanoseconds of the host's clock; null when nothing is armed. */
  nextDeadline(): bigint | null {
    return this.heap[0]?.deadline ?? null;
  }

  /** Fires what is due at `now`, in order of deadlines, also what a firing timer arms for a time that has come. */
  advance(now: bigint): void {
    for (let due = this.heap[0]; due !== undefined && due.deadline <= now; due = this.heap[0]) {
      this.remove(due.timer);
      due.timer.fire(now);
    }
  }

  /** For `KernelTimer` only. */
  add(timer: KernelTimer, deadline: bigint): void {
    timer.sequence = this.armings++;
    timer.slot = this.heap.length;
    this.heap.push({ timer, deadline });
    this.up(timer.slot);
    if (timer.slot === 0) this.onEarlier();
  }

  /** For `KernelTimer` only. */
  remove(timer: KernelTimer): void {
    const { slot } = timer;
    const last = this.heap.pop();
    if (last === undefined || slot < 0) throw new Error('a timer that is not armed was removed');
    timer.slot = -1;
    if (last.timer === timer) return;
    this.place(last, slot);
    this.up(slot);
    this.down(last.timer.slot);
  }

  private place(armed: Armed, slot: number): void {
    this.heap[slot] = armed;
    armed.timer.slot = slot;
  }

  private up(start: number): void {
    for (let slot = start; slot > 0; ) {
      const parent = (slot - 1) >> 1;
      if (!this.swapIfEarlier(slot, parent)) return;
      slot = parent;
    }
  }

  private down(start: number): void {
    for (let slot = start; ; ) {
      const left = 2 * slot + 1;
      const child = this.earlier(left + 1, left) ? left + 1 : left;
      if (!this.swapIfEarlier(child, slot)) return;
      slot = child;
    }
  }

  private swapIfEarlier(slot: number, parent: number): boolean {
    const lower = this.heap[slot];
    const upper = this.heap[parent];
    if (lower === undefined || upper === undefined || !this.earlier(slot, parent)) return false;
    this.place(lower, parent);
    this.place(upper, slot);
    return true;
  }

  private earlier(a: number, b: number): boolean {
    const one = this.heap[a];
    const other = this.heap[b];
    if (one === undefined || other === undefined) return false;
    if (one.deadline !== other.deadline) return one.deadline < other.deadline;
    return one.timer.sequence < other.timer.sequence;
  }
}
