import { type Gfn, gfn, PAGE_SIZE, type Uva } from '../../hardware/units.js';
import type { MmuNotifier, MmuNotifierEvent } from '../mm/mmu-notifier.js';
import type { Memslot } from './memslots.js';
import type { Vm } from './vm.js';

/**
 * The guest frames that have been written since they were last asked for: a dirty log beside that of the slots, so that a
 * migration by the daemon takes nothing away from a VMM that reads KVM_GET_DIRTY_LOG. Unlike KVM's it also sees what the VMM's
 * devices write into guest memory through the VMM's own address space, which a VMM that migrates its guest itself would mark,
 * and what becomes of pages that the VMM gives up (MADV_DONTNEED of a balloon, another mapping in their place).
 * What another process writes into memory that it shares with the VMM, or what a write() puts into the memfd behind it, is not
 * seen, as little as a real kernel's dirty log sees it: a vhost-user back end has its own log, and so has to be stopped or
 * asked before its guest is migrated.
 */
export class WriteLog implements MmuNotifier {
  private written = new Set<Gfn>();
  /** As they were at the beginning: what is written while the VMM takes one of them away, and makes it again, counts too. */
  private readonly slots: readonly Memslot[];

  private constructor(private readonly vm: Vm) {
    this.slots = [...vm.memslots];
  }

  /** Every page's next write is to be seen. */
  static begin(vm: Vm): WriteLog {
    const log = new WriteLog(vm);
    vm.writeLog = log;
    vm.mm.watchWrites(log.noteRange);
    vm.mm.registerNotifier(log);
    vm.arch.mmu.writeProtect(gfn(0), gfn(Number.MAX_SAFE_INTEGER));
    return log;
  }

  end(): void {
    this.vm.mm.unwatchWrites(this.noteRange);
    this.vm.mm.unregisterNotifier(this);
    this.vm.writeLog = null;
  }

  note(frame: Gfn): void {
    this.written.add(frame);
  }

  /** Takes what has been written, and watches it again. */
  take(): ReadonlySet<Gfn> {
    const { written } = this;
    this.written = new Set();
    this.vm.arch.mmu.writeProtectFrames(written);
    return written;
  }

  /** Pages of the VM's owner are about to go: what is there then is something else. */
  invalidateRange(start: Uva, end: Uva, event: MmuNotifierEvent): void {
    if (event !== 'unmap' && event !== 'clear') return;
    for (const { first, count } of this.vm.mm.touchedPages(start, end))
      this.noteRange(first * PAGE_SIZE, (first + count) * PAGE_SIZE);
  }

  /** User addresses [start, end) of the VM's owner have been written. */
  private readonly noteRange = (start: number, end: number): void => {
    for (const { baseGfn, npages, userspaceAddr } of this.slots) {
      const first = Math.max(0, Math.floor((start - userspaceAddr) / PAGE_SIZE));
      const last = Math.min(npages, Math.ceil((end - userspaceAddr) / PAGE_SIZE));
      for (let page = first; page < last; page++) this.note(gfn(baseGfn + page));
    }
  };
}
