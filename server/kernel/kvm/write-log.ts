import { type Gfn, gfn } from '../../hardware/units.js';
import type { Vm } from './vm.js';

/**
 * The guest frames that have been written since they were last asked for: a dirty log beside that of the slots, so that a
 * migration by the daemon takes nothing away from a VMM that reads KVM_GET_DIRTY_LOG. As there, only the guest's and KVM's own
 * writes are seen; what the VMM's devices write into guest memory it has to say itself.
 */
export class WriteLog {
  private written = new Set<Gfn>();

  private constructor(private readonly vm: Vm) {}

  /** Every page's next write is to be seen. */
  static begin(vm: Vm): WriteLog {
    const log = new WriteLog(vm);
    vm.writeLog = log;
    vm.arch.mmu.writeProtect(gfn(0), gfn(Number.MAX_SAFE_INTEGER));
    return log;
  }

  end(): void {
    this.vm.writeLog = null;
  }

  note(frame: Gfn): void {
    this.written.add(frame);
  }

  /** Takes what has been written, and watches it again. */
  take(): ReadonlySet<Gfn> {
    const { written } = this;
    this.written = new Set();
    for (const frame of written) this.vm.arch.mmu.writeProtect(frame, gfn(frame + 1));
    return written;
  }
}
