import type { PeerStream } from './peer-stream.js';

/** Waits between two attempts; each is twice the one before, and a random part shorter, so that two sides do not collide for ever. */
const FIRST_WAIT_MS = 100;
const LONGEST_WAIT_MS = 2000;

interface Slot {
  stream: PeerStream | null;
  timer: NodeJS.Timeout | null;
  waitMs: number;
}

export interface RedialOptions {
  /** Begins to open a stream. */
  readonly open: (index: number) => PeerStream;
  /** Whether a stream is missing. */
  readonly isNeeded: (index: number) => boolean;
  readonly streams: number;
}

/** Keeps the streams of a session there: dials whatever is missing, again and again, until it is stopped. */
export class Redial {
  private readonly slots: readonly Slot[];
  private readonly options: RedialOptions;
  private stopped = false;

  constructor(options: RedialOptions) {
    this.options = options;
    this.slots = Array.from({ length: options.streams }, () => ({ stream: null, timer: null, waitMs: FIRST_WAIT_MS }));
  }

  /** Dials what is missing, at once. */
  begin(): void {
    for (const index of this.slots.keys()) this.attempt(index);
  }

  /** A stream has proved itself, by whoever it was dialled. */
  opened({ index }: PeerStream): void {
    const slot = this.slots[index];
    if (slot !== undefined) slot.waitMs = FIRST_WAIT_MS;
  }

  /** A stream is gone: another one is dialled after a while. */
  ended(stream: PeerStream): void {
    const slot = this.slots[stream.index];
    if (slot === undefined || this.stopped) return;
    if (slot.stream === stream) slot.stream = null;
    if (slot.stream !== null || slot.timer !== null) return;
    const wait = slot.waitMs * (0.5 + Math.random() / 2);
    slot.waitMs = Math.min(LONGEST_WAIT_MS, 2 * slot.waitMs);
    slot.timer = setTimeout(() => {
      slot.timer = null;
      this.attempt(stream.index);
    }, wait).unref();
  }

  stop(): void {
    this.stopped = true;
    for (const { timer } of this.slots) if (timer !== null) clearTimeout(timer);
  }

  private attempt(index: number): void {
    const slot = this.slots[index];
    if (slot !== undefined && !this.stopped && slot.stream === null && this.options.isNeeded(index))
      slot.stream = this.options.open(index);
  }
}
