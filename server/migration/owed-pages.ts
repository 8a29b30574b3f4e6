import { PAGE_SIZE } from '../hardware/units.js';
import type { Vm } from '../kernel/kvm/vm.js';
import { WriteLog } from '../kernel/kvm/write-log.js';
import { Aliases } from './aliases.js';
import { FrameQueue, type TakenFrames } from './frame-queue.js';
import { FrameSet } from './frame-set.js';

/** The guest frames that are still to be sent: at first all that were ever touched, then what is written. */
export class OwedPages {
  private frames: FrameQueue;
  private readonly aliases: Aliases;
  private readonly log: WriteLog;

  /** Begins to watch, so nothing that is written from now on is missed. */
  constructor(vm: Vm) {
    this.log = WriteLog.begin(vm);
    this.aliases = new Aliases(vm.memslots);
    const slots = [...vm.memslots].map(({ baseGfn, npages, userspaceAddr }) => {
      const owed = new FrameSet(baseGfn, npages);
      const firstPage = userspaceAddr / PAGE_SIZE;
      for (const { first, count } of vm.mm.touchedPages(userspaceAddr, userspaceAddr + npages * PAGE_SIZE))
        for (let page = first; page < first + count; page++) {
          const frame = baseGfn + page - firstPage;
          if (this.aliases.firstOf(frame) === frame) owed.add(frame);
        }
      return owed;
    });
    this.frames = new FrameQueue(slots);
  }

  get size(): number {
    return this.frames.size;
  }

  /** Takes at most `count` frames for which `property` is as for the first of them. Null: none is owed. */
  take(count: number, property: (frame: number) => boolean): TakenFrames | null {
    return this.frames.take(count, property);
  }

  /** Takes all that is owed: nothing is any more. */
  takeAll(): FrameQueue {
    const { frames } = this;
    this.frames = new FrameQueue([]);
    return frames;
  }

  /** Adds what has been written, and watches it again. What lies in no slot that was there at the beginning is left out. */
  nextRound(): number {
    for (const frame of this.log.take()) this.frames.add(this.aliases.firstOf(frame));
    return this.size;
  }

  end(): void {
    this.log.end();
  }
}
