import { type Gfn, gfn } from '../../hardware/units.js';
import { Failure, failed, type Result } from '../failure.js';
import type { Page } from '../mm/page.js';
import type { Task } from '../sched/task.js';
import type { Memslot } from './memslots.js';
import type { Vm } from './vm.js';

/** One page whose initial contents the vendor sets. */
export interface PopulatedPage {
  readonly frame: Gfn;
  readonly page: Page;
  /** Which page of the range it is. */
  readonly index: number;
}

/** What stops at a page, or null to go on with the next. */
const populatePage = (
  current: Task,
  vm: Vm,
  slot: Memslot,
  populated: Omit<PopulatedPage, 'page'>,
  post: (page: PopulatedPage) => Failure | null,
): Failure | null => {
  const kernelRef = 'kvm_gmem_populate';
  const { frame } = populated;
  if (current.thread.signalPending) return new Failure('EINTR', 'SIGNAL_PENDING', kernelRef);
  const page = slot.gmem?.unpreparedPage(frame) ?? new Failure('EFAULT', 'GUEST_MEMFD_CLOSED', kernelRef);
  if (failed(page)) return page;
  if (!vm.memoryAttributes.isPrivate(frame))
    return new Failure('EINVAL', 'PAGE_NOT_PRIVATE', kernelRef, { gfn: `0x${frame.toString(16)}` });
  return post({ ...populated, page });
};

/**
 * `kvm_gmem_populate`, under slots_lock: initial contents for pages of a guest_memfd, which must be private, as far as the
 * slot goes. Returns how many there were; a failure only where the first page failed.
 */
export const kvmGmemPopulate = (
  current: Task,
  vm: Vm,
  slot: Memslot,
  start: Gfn,
  npages: number,
  post: (page: PopulatedPage) => Failure | null,
): Result<number> => {
  const count = Math.min(npages, slot.endGfn - start);
  for (let index = 0; index < count; index++) {
    const failure = populatePage(current, vm, slot, { frame: gfn(start + index), index }, post);
    if (failure !== null) return index === 0 ? failure : index;
  }
  return count;
};
