import { gfn, PAGE_SIZE } from '../hardware/units.js';
import type { Vm } from '../kernel/kvm/vm.js';
import { WriteLog } from '../kernel/kvm/write-log.js';

/** The guest frames that are still to be sent: at first all that were ever touched, then what is written. */
export class OwedPages {
  private readonly owed = new Set<number>();
  private readonly log: WriteLog;

  /** Begins to watch, so nothing that is written from now on is missed. */
  constructor(private readonly vm: Vm) {
    this.log = WriteLog.begin(vm);
    for (const { baseGfn, npages, userspaceAddr } of vm.memslots)
      for (let page = 0; page < npages; page++)
        if (vm.mm.isPresent(userspaceAddr + page * PAGE_SIZE)) this.owed.add(baseGfn + page);
  }

  /** Takes at most `count` frames for which `wanted` holds like for the first of them. */
  take(count: number, wanted: (frame: number) => boolean): { readonly gfns: number[]; readonly alike: boolean } | null {
    const gfns: number[] = [];
    let alike: boolean | null = null;
    for (const frame of this.owed) {
      alike ??= wanted(frame);
      if (gfns.length === count) break;
      if (wanted(frame) !== alike) continue;
      gfns.push(frame);
    }
    for (const frame of gfns) this.owed.delete(frame);
    return alike === null ? null : { gfns, alike };
  }

  /** Adds what has been written, and watches it again. @returns how many are owed */
  nextRound(): number {
    for (const frame of this.log.take()) if (this.vm.memslots.find(gfn(frame)) !== undefined) this.owed.add(frame);
    return this.owed.size;
  }

  end(): void {
    this.log.end();
  }
}
