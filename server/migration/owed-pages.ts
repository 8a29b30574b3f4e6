import { PAGE_SIZE } from '../hardware/units.js';
import type { Vm } from '../kernel/kvm/vm.js';
import { WriteLog } from '../kernel/kvm/write-log.js';
import { FrameSet } from './frame-set.js';

/** Frames of another kind than the first that a batch skips, for each page that it wants. */
const SKIPPED_MAX = 8;

/** Frames that travel together. */
export interface TakenFrames {
  readonly gfns: number[];
  /** What is so of all of them. */
  readonly alike: boolean;
}

/**
 * The guest frames that are still to be sent: at first all that were ever touched, then what is written. They are taken in
 * ascending order, over and over.
 */
export class OwedPages {
  private readonly slots: readonly FrameSet[];
  private readonly log: WriteLog;
  /** Where the next batch begins to look. */
  private cursor = { slot: 0, frame: 0 };

  /** Begins to watch, so nothing that is written from now on is missed. */
  constructor(vm: Vm) {
    this.log = WriteLog.begin(vm);
    this.slots = [...vm.memslots].map(({ baseGfn, npages, userspaceAddr }) => {
      const owed = new FrameSet(baseGfn, npages);
      for (const address of vm.mm.touchedPages(userspaceAddr, userspaceAddr + npages * PAGE_SIZE))
        owed.add(baseGfn + (address - userspaceAddr) / PAGE_SIZE);
      return owed;
    });
  }

  get size(): number {
    return this.slots.reduce((sum, { size }) => sum + size, 0);
  }

  /** Takes at most `count` frames for which `property` is as for the first of them. Null: none is owed. */
  take(count: number, property: (frame: number) => boolean): TakenFrames | null {
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

  /** Adds what has been written, and watches it again. What lies in no slot that was there at the beginning is left out. */
  nextRound(): number {
    for (const frame of this.log.take()) this.slots.find((slot) => slot.contains(frame))?.add(frame);
    return this.size;
  }

  end(): void {
    this.log.end();
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
}
