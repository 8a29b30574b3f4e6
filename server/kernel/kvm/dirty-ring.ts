import { PAGE_SIZE } from '../../hardware/units.js';
import { Failure, failed, type Result } from '../failure.js';
import type { KmemOwner } from '../kmem.js';
import type { PageProvider } from '../mm/page-provider.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { KVM_DIRTY_GFN_F } from '../uapi/constants.js';
import { kvm_dirty_gfn } from '../uapi/kvm-structs.js';
import { SharedPage } from './run-pages.js';
import type { Vm } from './vm.js';
import { kvmArchMmuEnableLogDirty } from './x86/mmu.js';

/** `KVM_DIRTY_RING_MAX_ENTRIES`. */
const MAX_ENTRIES = 65_536;
/** `kvm_dirty_ring_get_rsvd_entries`: room for what is pushed between the soft limit and the exit; no PML here. */
const RESERVED_ENTRIES = 64;
const ENTRIES_PER_PAGE = PAGE_SIZE / kvm_dirty_gfn.size;

/** KVM_CAP_DIRTY_LOG_RING: bytes of the largest ring. */
export const KVM_DIRTY_RING_BYTES_MAX = MAX_ENTRIES * kvm_dirty_gfn.size;

/** A harvested entry that has been taken out of a ring. */
interface ResetEntry {
  readonly slot: number;
  readonly offset: number;
}

/** `struct kvm_dirty_ring`: the pages a vCPU has dirtied, in the order in which it did; userspace maps it at page 64. */
export class DirtyRing {
  private dirtyIndex = 0;
  private resetIndex = 0;

  private constructor(readonly pages: readonly SharedPage[]) {}

  /** `kvm_dirty_ring_alloc`. ENOMEM. */
  static allocate(provider: PageProvider, kmem: KmemOwner, bytes: number): Result<DirtyRing> {
    const pages: SharedPage[] = [];
    for (let index = 0; index < bytes / PAGE_SIZE; index++) {
      const page = SharedPage.allocate(provider, kmem, 'dirty_ring');
      if (failed(page)) {
        for (const allocated of pages) allocated.free();
        return page;
      }
      pages.push(page);
    }
    return new DirtyRing(pages);
  }

  get entries(): number {
    return this.pages.length * ENTRIES_PER_PAGE;
  }

  /** `kvm_dirty_ring_soft_full`: KVM_RUN has to return with KVM_EXIT_DIRTY_RING_FULL. */
  get softFull(): boolean {
    return this.dirtyIndex - this.resetIndex >= this.entries - RESERVED_ENTRIES;
  }

  /** `kvm_dirty_ring_push`. @param slot as in kvm_userspace_memory_region @param offset pages from the slot's start */
  push(slot: number, offset: number): void {
    this.at(this.dirtyIndex, (page, at) =>
      kvm_dirty_gfn.write(page, { flags: KVM_DIRTY_GFN_F.DIRTY, slot, offset: BigInt(offset) }, at),
    );
    this.dirtyIndex++;
  }

  /** The part of `kvm_dirty_ring_reset` that empties: the oldest entry, if userspace has marked it harvested. */
  takeHarvested(): ResetEntry | null {
    return this.at(this.resetIndex, (page, at) => {
      const { flags, slot, offset } = kvm_dirty_gfn.decode(page, at);
      if ((flags & KVM_DIRTY_GFN_F.RESET) === 0) return null;
      kvm_dirty_gfn.write(page, { flags: 0 }, at);
      this.resetIndex++;
      return { slot, offset: Number(offset) };
    });
  }

  free(): void {
    for (const page of this.pages) page.free();
  }

  private at<T>(index: number, use: (page: Uint8Array, offset: number) => T): T {
    const entry = index % this.entries;
    const page = this.pages[Math.floor(entry / ENTRIES_PER_PAGE)];
    if (page === undefined) throw new Error('a dirty ring without pages');
    return use(page.bytes, (entry % ENTRIES_PER_PAGE) * kvm_dirty_gfn.size);
  }
}

/** KVM_CAP_DIRTY_LOG_RING and _ACQ_REL (`kvm_vm_ioctl_enable_dirty_log_ring`); `size` in bytes, 32 bits of it count. */
export function* enableDirtyLogRing(current: Task, vm: Vm, argument: bigint): MightSleep<Result<number>> {
  const size = Number(BigInt.asUintN(32, argument));
  const refuse = (reason: string, allowed: string): Failure =>
    new Failure('EINVAL', reason, 'kvm_vm_ioctl_enable_dirty_log_ring', { field: 'args[0]', given: String(argument), allowed });
  if (size === 0 || (size & (size - 1)) !== 0) return refuse('DIRTY_RING_SIZE', 'a power of two');
  if (size < RESERVED_ENTRIES * kvm_dirty_gfn.size || size < PAGE_SIZE) return refuse('DIRTY_RING_SIZE', 'at least 4096');
  if (size > KVM_DIRTY_RING_BYTES_MAX)
    return new Failure('E2BIG', 'DIRTY_RING_TOO_LARGE', 'kvm_vm_ioctl_enable_dirty_log_ring', {
      field: 'args[0]',
      given: String(argument),
      allowed: `at most ${KVM_DIRTY_RING_BYTES_MAX}`,
    });
  if (vm.dirtyRingBytes !== 0) return refuse('DIRTY_RING_ALREADY_ENABLED', 'once');
  yield* vm.lock.lock(current);
  const late = vm.createdVcpus > 0;
  if (!late) vm.dirtyRingBytes = size;
  vm.lock.unlock(current);
  return late ? refuse('DIRTY_RING_AFTER_VCPU', 'before the first vCPU') : 0;
}

/** `kvm_reset_dirty_gfn` for one page: what userspace left in the entry is checked again. */
const resetDirtyGfn = (vm: Vm, { slot: id, offset }: ResetEntry): void => {
  const slot = id > 0xffff ? undefined : vm.memslots.get(id);
  if (slot === undefined || offset >= slot.npages) return;
  kvmArchMmuEnableLogDirty(vm, slot, offset, 1, () => true);
};

/** KVM_RESET_DIRTY_RINGS: returns how many entries were taken out of all rings. EINTR with a signal pending. */
export function* resetDirtyRings(current: Task, vm: Vm): MightSleep<Result<number>> {
  if (vm.dirtyRingBytes === 0) return new Failure('EINVAL', 'DIRTY_RING_NOT_ENABLED', 'kvm_vm_ioctl_reset_dirty_pages');
  yield* vm.slotsLock.lock(current);
  let cleared = 0;
  for (const { dirtyRing } of vm.vcpus) {
    if (current.thread.signalPending) break;
    for (let entry = dirtyRing?.takeHarvested(); entry; entry = dirtyRing?.takeHarvested()) {
      cleared++;
      resetDirtyGfn(vm, entry);
    }
  }
  vm.slotsLock.unlock(current);
  return cleared;
}
