import type { FrameSet } from './frame-set.js';
import type { FrameRun } from './guest.js';

/** Frames of another kind than the first that a batch skips, for each page that it wants. */
const SKIPPED_MAX = 8;

/** Frames that travel together. */
export interface TakenFrames {
  readonly gfns: number[];
  /** What is so of all of them. */
  readonly alike: boolean;
}

/** Guest frames that are to be sent, by slot. They are taken in ascending order, over and over. */
export class FrameQueue {
  /** Where the next batch begins to look. */
  private cursor = { slot: 0, frame: 0 };

  constructor(private slots: readonly FrameSet[]) {}

  get size(): number {
    return this.slots.reduce((sum, { size }) => sum + size, 0);
  }

  has(frame: number): boolean {
    return this.slotOf(frame)?.has(frame) ?? false;
  }

  /** Adds a frame, if it lies in a slot. */
  add(frame: number): void {
    this.slotOf(frame)?.add(frame);
  }

  delete(frame: number): void {
    this.slotOf(frame)?.delete(frame);
  }

  clear(): void {
    this.slots = [];
  }

  /** None goes from one slot into another that happens to lie behind it. */
  *runs(): Generator<FrameRun> {
    for (const slot of this.slots) yield* slot.runs();
  }

  /** Takes at most `count` frames for which `property` is as for the first of them. Null: there is none. */
  take(count: number, property: (frame: number) => boolean = () => true): TakenFrames | null {
    const [slot, first] = this.first() ?? [null, 0];
    if (slot === null) return null;
    const alike = property(first);
    const gfns: number[] = [];
    let skipped: number | null = null;
    let visited = 0;
    for (let frame: number | null = first; frame !== null && gfns.length < count; frame = slot.next(frame + 1)) {
      if (property(frame) === alike) gfns.push(frame);
      else skipped ??= frame;
      if (++visited === count * SKIPPED_MAX) break;
    }
    for (const frame of gfns) slot.delete(frame);
    this.cursor = { slot: this.slots.indexOf(slot), frame: skipped ?? (gfns.at(-1) ?? first) + 1 };
    return { gfns, alike };
  }

  /** The next batch is looked for behind a frame. */
  goOnBehind(frame: number): void {
    const slot = this.slots.findIndex((each) => each.contains(frame));
    if (slot >= 0) this.cursor = { slot, frame: frame + 1 };
  }

  /** The first frame from the cursor on, and its slot; else the first of all. */
  private first(): readonly [FrameSet, number] | null {
    const { slots, cursor } = this;
    for (let turn = 0; turn <= slots.length; turn++) {
      const slot = slots[(cursor.slot + turn) % slots.length];
      const frame = slot?.next(turn === 0 ? cursor.frame : 0) ?? null;
      if (slot !== undefined && frame !== null) return [slot, frame];
    }
    return null;
  }

  private slotOf(frame: number): FrameSet | undefined {
    return this.slots.find((slot) => slot.contains(frame));
  }
}
