import type { Charge } from '../../hardware/costs.js';
import type { Task } from '../sched/task.js';
import { type MightSleep, RESCHED } from '../sched/wait.js';

/**
 * `kvm->srcu`: protects memslots and buses for readers that hold no lock. A reader here never waits inside its
 * section, so a grace period needs no bookkeeping: it costs its time, and other tasks may run meanwhile.
 */
export class Srcu {
  constructor(private readonly charge: Charge) {}

  /** `synchronize_srcu`, and `synchronize_srcu_expedited`. */
  *synchronize(current: Task): MightSleep<void> {
    this.charge('srcu_grace_period');
    if (current.scheduler.preemptAtLocks) yield RESCHED;
  }
}
