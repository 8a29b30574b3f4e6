import { Failure } from '../../server/kernel/failure.js';
import { lockBoth, type TwoVmLock } from '../../server/kernel/kvm/svm/two-vm-lock.js';

/** The lock of a move without the migration guard: two opposite moves take the two kvm->locks in opposite orders. */
export const unguardedTwoVmLock: TwoVmLock = {
  *lock(current, destination, source) {
    if (destination === source) return new Failure('EINVAL', 'SAME_VM', 'sev_lock_two_vms');
    return yield* lockBoth(current, destination, source);
  },
  unlock(current, destination, source) {
    destination.lock.unlock(current);
    source.lock.unlock(current);
  },
};
