import { Failure } from '../../failure.js';
import type { Task } from '../../sched/task.js';
import type { MightSleep } from '../../sched/wait.js';
import type { Vm } from '../vm.js';
import { toSevInfo } from './sev-info.js';

/** How a move or a copy gets hold of two VMs at once. */
export interface TwoVmLock {
  /** EINVAL: the same VM; EBUSY: one of them takes part in another move or copy; EINTR: killed while waiting. */
  lock(current: Task, destination: Vm, source: Vm): MightSleep<Failure | null>;
  unlock(current: Task, destination: Vm, source: Vm): void;
}

const KERNEL_REF = 'sev_lock_two_vms';

const busy = (vm: Vm): Failure => new Failure('EBUSY', 'MIGRATION_IN_PROGRESS', KERNEL_REF, { object: `vm ${vm.id}` });

/** What `lock` would answer now, but for the wait. */
export const checkTwoVms = (destination: Vm, source: Vm): Failure | null => {
  if (destination === source)
    return new Failure('EINVAL', 'SAME_VM', KERNEL_REF, { object: `vm ${destination.id}`, allowed: 'two different VMs' });
  if (toSevInfo(destination).migrationInProgress) return busy(destination);
  return toSevInfo(source).migrationInProgress ? busy(source) : null;
};

/**
 * `sev_lock_two_vms`. Two opposite moves would take the two kvm->locks in opposite orders. So each VM is first marked as
 * migrating, which never waits: of two moves that share a VM one gets EBUSY, and only the other goes on to the locks.
 */
export const sevTwoVmLock: TwoVmLock = {
  *lock(current, destination, source) {
    const refused = checkTwoVms(destination, source);
    if (refused !== null) return refused;
    toSevInfo(destination).migrationInProgress = true;
    toSevInfo(source).migrationInProgress = true;
    const killed = yield* lockBoth(current, destination, source);
    if (killed !== null) clearMarks(destination, source);
    return killed;
  },
  unlock(current, destination, source) {
    destination.lock.unlock(current);
    source.lock.unlock(current);
    clearMarks(destination, source);
  },
};

const clearMarks = (destination: Vm, source: Vm): void => {
  toSevInfo(destination).migrationInProgress = false;
  toSevInfo(source).migrationInProgress = false;
};

/** Both kvm->locks, killable, the destination's first. EINTR, with neither held. */
export function* lockBoth(current: Task, destination: Vm, source: Vm): MightSleep<Failure | null> {
  const killed = yield* destination.lock.lockKillable(current);
  if (killed !== null) return killed;
  const killedSecond = yield* source.lock.lockKillable(current);
  if (killedSecond !== null) destination.lock.unlock(current);
  return killedSecond;
}
