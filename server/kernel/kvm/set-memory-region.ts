import { type Gfn, gfn, PAGE_SHIFT, PAGE_SIZE, uva } from '../../hardware/units.js';
import { Failure, failed, type Result } from '../failure.js';
import type { IoctlArg } from '../fs/ioctl-arg.js';
import { TASK_SIZE } from '../mm/address-space.js';
import type { Task } from '../sched/task.js';
import { andThen, type MaySleep, type MightSleep } from '../sched/wait.js';
import { KVM_DIRTY_LOG, KVM_MEM } from '../uapi/constants.js';
import { kvm_userspace_memory_region, kvm_userspace_memory_region2 } from '../uapi/kvm-structs.js';
import type { StructValue } from '../uapi/struct.js';
import { copyStruct } from './copy-struct.js';
import { GuestMemfd } from './guest-memfd.js';
import { KVM_ADDRESS_SPACE_NUM, KVM_MEM_MAX_NR_PAGES, KVM_USER_MEM_SLOTS, Memslot } from './memslots.js';
import type { Vm } from './vm.js';
import { kvmMmuSlotRemoveWriteAccess, kvmMmuZapMemslot } from './x86/mmu.js';

type Region = StructValue<typeof kvm_userspace_memory_region2>;

const PAGE = BigInt(PAGE_SIZE);
/** What 64 bits do not hold any more. */
const U64_END = 2n ** 64n;
const USER_END = BigInt(TASK_SIZE);
/** Flags that the first form knows. */
const REGION1_FLAGS = KVM_MEM.LOG_DIRTY_PAGES | KVM_MEM.READONLY;
/** First frame above `kvm_mmu_max_gfn`, of a host with 48 physical address bits. */
const GFN_END = 2 ** (48 - PAGE_SHIFT);

const hex = (value: bigint | number): string => `0x${value.toString(16)}`;

/** `check_memory_region_flags`. */
const validFlags = (vm: Vm, flags: number): number => {
  if ((flags & KVM_MEM.GUEST_MEMFD) !== 0) return KVM_MEM.GUEST_MEMFD;
  const readonly = readonlyMemAllowed(vm) ? KVM_MEM.READONLY : 0;
  return KVM_MEM.LOG_DIRTY_PAGES | KVM_MEM.GUEST_MEMFD | readonly;
};

/** `kvm_arch_has_readonly_mem`: emulating the write needs the guest's registers. */
export const readonlyMemAllowed = (vm: Vm): boolean => !vm.kernel.ops.hasProtectedState(vm);

/** The checks that do not look at the slots, in the order of `kvm_set_memory_region`. A delete passes them too. */
const checkRegion = (vm: Vm, region: Region): Failure | null => {
  const refuse = (reason: string, field: keyof Region, allowed: string): Failure =>
    new Failure('EINVAL', reason, 'kvm_set_memory_region', { field, given: hex(region[field]), allowed });
  const { flags, memory_size: size, guest_phys_addr: gpa, userspace_addr: hva, guest_memfd_offset: offset, slot } = region;
  const valid = validFlags(vm, flags);
  if ((flags & ~valid) !== 0) return refuse('MEMSLOT_FLAGS', 'flags', `bits of ${hex(valid)}`);
  if (size % PAGE !== 0n) return refuse('MEMSLOT_SIZE_UNALIGNED', 'memory_size', 'a multiple of 4096');
  if (gpa % PAGE !== 0n) return refuse('MEMSLOT_GPA_UNALIGNED', 'guest_phys_addr', 'a multiple of 4096');
  if (hva % PAGE !== 0n || hva + size > USER_END)
    return refuse('MEMSLOT_USERSPACE_ADDR', 'userspace_addr', `a multiple of 4096 with its end up to ${hex(TASK_SIZE)}`);
  if ((flags & KVM_MEM.GUEST_MEMFD) !== 0 && (offset % PAGE !== 0n || offset + size >= U64_END))
    return refuse('GUEST_MEMFD_OFFSET', 'guest_memfd_offset', 'a multiple of 4096 without wrap');
  if (slot >>> 16 >= KVM_ADDRESS_SPACE_NUM)
    return refuse('MEMSLOT_ADDRESS_SPACE', 'slot', `bits 31:16 below ${KVM_ADDRESS_SPACE_NUM}`);
  if (gpa + size >= U64_END && size !== 0n)
    return refuse('MEMSLOT_GPA_WRAPS', 'memory_size', 'guest_phys_addr + memory_size below 2^64');
  if (size / PAGE > BigInt(KVM_MEM_MAX_NR_PAGES))
    return refuse('MEMSLOT_TOO_LARGE', 'memory_size', `${KVM_MEM_MAX_NR_PAGES} pages`);
  return null;
};

/** KVM_SET_USER_MEMORY_REGION: the fields that only the second form has are zero. */
export const setUserMemoryRegion = (current: Task, vm: Vm, arg: IoctlArg): MaySleep<Result<number>> => {
  const region = copyStruct(arg, kvm_userspace_memory_region);
  if (failed(region)) return region;
  const { slot, flags, guest_phys_addr, memory_size, userspace_addr } = region;
  if ((flags & ~REGION1_FLAGS) !== 0)
    return new Failure('EINVAL', 'MEMSLOT_FLAGS', 'kvm_vm_ioctl', {
      field: 'flags',
      given: hex(flags),
      allowed: `bits of ${hex(REGION1_FLAGS)}`,
    });
  const wide = { slot, flags, guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset: 0n, guest_memfd: 0 };
  return setMemoryRegion(current, vm, wide);
};

/** KVM_SET_USER_MEMORY_REGION2. */
export const setUserMemoryRegion2 = (current: Task, vm: Vm, arg: IoctlArg): MaySleep<Result<number>> => {
  const region = copyStruct(arg, kvm_userspace_memory_region2);
  return failed(region) ? region : setMemoryRegion(current, vm, region);
};

/** `kvm_vm_ioctl_set_memory_region` and `kvm_set_memory_region`. */
const setMemoryRegion = (current: Task, vm: Vm, region: Region): MaySleep<Result<number>> => {
  const id = region.slot & 0xffff;
  if (id >= KVM_USER_MEM_SLOTS)
    return new Failure('EINVAL', 'MEMSLOT_NUMBER', 'kvm_vm_ioctl_set_memory_region', {
      field: 'slot',
      given: String(region.slot),
      allowed: `bits 15:0 below ${KVM_USER_MEM_SLOTS}`,
    });
  const changed = vm.slotsLock.with(current, () => checkRegion(vm, region) ?? change(current, vm, id, region));
  return andThen(changed, (refused): Result<number> => refused ?? 0);
};

/** Which of KVM_MR_CREATE, DELETE, MOVE and FLAGS_ONLY it is, and whether the slots allow it. */
const change = (current: Task, vm: Vm, id: number, region: Region): MaySleep<Failure | null> => {
  const refuse = (reason: string): Failure =>
    new Failure('EINVAL', reason, 'kvm_set_memory_region', { object: `vm ${vm.id}`, slot: String(id) });
  const old = vm.memslots.get(id);
  if (region.memory_size === 0n) return old === undefined ? refuse('MEMSLOT_NOT_FOUND') : remove(current, vm, old);
  const base = gfn(Number(region.guest_phys_addr / PAGE));
  const npages = Number(region.memory_size / PAGE);
  if (old === undefined) return overlapping(vm, base, npages, id) ?? create(current, vm, id, base, npages, region);
  if (((region.flags | old.flags) & KVM_MEM.GUEST_MEMFD) !== 0) return refuse('GUEST_MEMFD_MEMSLOT_IMMUTABLE');
  if (BigInt(old.userspaceAddr) !== region.userspace_addr || old.npages !== npages) return refuse('MEMSLOT_RESIZED');
  if (((region.flags ^ old.flags) & KVM_MEM.READONLY) !== 0) return refuse('MEMSLOT_READONLY_CHANGED');
  if (base !== old.baseGfn)
    return overlapping(vm, base, npages, id) ?? aboveMaximum(base, npages) ?? move(current, vm, old, base, region.flags);
  return region.flags === old.flags ? null : setFlags(current, vm, old, region.flags);
};

const overlapping = (vm: Vm, base: Gfn, npages: number, id: number): Failure | null => {
  if (!vm.memslots.overlaps(base, npages, id)) return null;
  const range = `${hex(base * PAGE_SIZE)}-${hex((base + npages) * PAGE_SIZE)}`;
  return new Failure('EEXIST', 'MEMSLOT_OVERLAP', 'kvm_check_memslot_overlap', { object: `vm ${vm.id}`, range });
};

/** `kvm_arch_prepare_memory_region`. */
const aboveMaximum = (base: Gfn, npages: number): Failure | null =>
  base + npages > GFN_END
    ? new Failure('EINVAL', 'MEMSLOT_ABOVE_MAX_GFN', 'kvm_arch_prepare_memory_region', {
        field: 'guest_phys_addr',
        allowed: `below ${hex(GFN_END * PAGE_SIZE)}`,
      })
    : null;

/** KVM_MR_CREATE. */
function* create(current: Task, vm: Vm, id: number, baseGfn: Gfn, npages: number, region: Region): MightSleep<Failure | null> {
  const { flags } = region;
  const shape = { id, baseGfn, npages, userspaceAddr: uva(Number(region.userspace_addr)), flags };
  const slot = new Memslot(shape, vm.kmem);
  const refused = ((flags & KVM_MEM.GUEST_MEMFD) !== 0 ? bind(current, vm, slot, region) : null) ?? aboveMaximum(baseGfn, npages);
  if (refused !== null) {
    slot.free();
    return refused;
  }
  if (slot.logsDirty) startDirtyLog(vm, slot);
  vm.memslots.add(slot);
  yield* activated(current, vm);
  return null;
}

/** `kvm_gmem_bind`: EBADF, or EINVAL for a file that is no guest_memfd, or not this VM's. */
const bind = (current: Task, vm: Vm, slot: Memslot, region: Region): Failure | null => {
  const file = current.process.files.get(region.guest_memfd | 0, 'kvm_gmem_bind');
  if (failed(file)) return file.with({ field: 'guest_memfd' });
  if (!(file.ops instanceof GuestMemfd))
    return new Failure('EINVAL', 'FD_NOT_GUEST_MEMFD', 'kvm_gmem_bind', { field: 'guest_memfd', is: file.ops.name });
  return file.ops.bind(vm, slot, region.guest_memfd_offset);
};

/** `kvm_invalidate_memslot`: nobody finds the slot any more, and no page table maps it. A grace period of its own. */
function* invalidate(current: Task, vm: Vm, slot: Memslot): MightSleep<void> {
  vm.memslots.invalidate([slot]);
  yield* vm.srcu.synchronize(current);
  kvmMmuZapMemslot(vm, slot);
  vm.kernel.ops.guestMemoryReclaimed(vm);
}

/** KVM_MR_DELETE. */
function* remove(current: Task, vm: Vm, slot: Memslot): MightSleep<null> {
  yield* invalidate(current, vm, slot);
  vm.memslots.remove(slot);
  yield* activated(current, vm);
  slot.free();
  return null;
}

/** KVM_MR_MOVE; the dirty log may be switched on or off at the same time, and else moves along. */
function* move(current: Task, vm: Vm, slot: Memslot, base: Gfn, flags: number): MightSleep<null> {
  yield* invalidate(current, vm, slot);
  vm.memslots.remove(slot);
  slot.moveTo(base);
  vm.memslots.add(slot);
  return yield* setFlags(current, vm, slot, flags);
}

/** KVM_MR_FLAGS_ONLY: only the dirty log can change. */
function* setFlags(current: Task, vm: Vm, slot: Memslot, flags: number): MightSleep<null> {
  const logged = slot.logsDirty;
  slot.flags = flags;
  if (slot.logsDirty && !logged) startDirtyLog(vm, slot);
  if (!slot.logsDirty) slot.freeDirtyBitmap();
  vm.memslots.changed();
  yield* activated(current, vm);
  return null;
}

/** `kvm_prepare_memory_region` and `kvm_mmu_slot_apply_flags`: every page's next write is to be seen. */
const startDirtyLog = (vm: Vm, slot: Memslot): void => {
  const initiallySet = (vm.manualDirtyLogProtect & KVM_DIRTY_LOG.INITIALLY_SET) !== 0;
  if (vm.dirtyRingBytes === 0) {
    const bitmap = slot.allocateDirtyBitmap();
    if (initiallySet) bitmap.setAll();
  }
  // With every bit set from the start, pages are protected as userspace clears them.
  if (!initiallySet) kvmMmuSlotRemoveWriteAccess(vm, slot);
};

/** `kvm_activate_memslot`: the changed set of slots is in force once nobody reads the old one. */
function* activated(current: Task, vm: Vm): MightSleep<void> {
  vm.kernel.costs.charge('memslot_commit');
  yield* vm.srcu.synchronize(current);
}
