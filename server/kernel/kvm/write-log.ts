import { type Gfn, gfn, PAGE_SIZE, uva } from '../../hardware/units.js';
import type { Vm } from './vm.js';

/**
 * The guest frames that have been written since they were last asked for: a dirty log beside that of the slots, so that a
 * migration by the daemon takes nothing away from a VMM that reads KVM_GET_DIRTY_LOG. Unlike KVM's it also sees what the VMM's
 * devices write into guest memory through the VMM's own address space, which a VMM that migrates its guest itself would mark.
 * What another process writes into memory that it shares with the VMM, or what a write() puts into the memfd behind it, is not
 * seen, as little as a real kernel's dirty log sees it: a vhost-user back end has its own log, and so has to be stopped or
 * asked before its guest is migrated.
 */
export class WriteLog {
  private written = new Set<Gfn>();

  private constructor(private readonly vm: Vm) {}

  /** Every page's next write is to be seen. */
  static begin(vm: Vm): WriteLog {
    const log = new WriteLog(vm);
    vm.writeLog = log;
    vm.mm.watchWrites(log.noteRange);
    vm.arch.mmu.writeProtect(gfn(0), gfn(Number.MAX_SAFE_INTEGER));
    return log;
  }

  end(): void {
    this.vm.mm.unwatchWrites(this.noteRange);
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

  /** User addresses [start, end) of the VM's owner have been written. */
  private readonly noteRange = (start: number, end: number): void => {
    for (const { baseGfn, npages, userspaceAddr } of this.vm.memslots.inHvaRange(uva(start), uva(end))) {
      const first = Math.max(0, Math.floor((start - userspaceAddr) / PAGE_SIZE));
      const last = Math.min(npages, Math.ceil((end - userspaceAddr) / PAGE_SIZE));
      for (let page = first; page < last; page++) this.note(gfn(baseGfn + page));
    }
  };
}
