import { Failure, failed, type Result } from '../failure.js';
import type { IoctlArg } from '../fs/ioctl-arg.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { KVM_DIRTY_LOG } from '../uapi/constants.js';
import { kvm_clear_dirty_log, kvm_dirty_log } from '../uapi/kvm-structs.js';
import { copyStruct } from './copy-struct.js';
import type { DirtyBitmap } from './dirty-bitmap.js';
import { KVM_USER_MEM_SLOTS, type Memslot } from './memslots.js';
import type { Vm } from './vm.js';
import { kvmArchMmuEnableLogDirty } from './x86/mmu.js';

interface LoggedSlot {
  readonly slot: Memslot;
  readonly bitmap: DirtyBitmap;
}

/** The checks that both calls share: ENXIO with a ring, EINVAL for the number, ENOENT without a log. */
const loggedSlot = (vm: Vm, number: number, kernelRef: string, alignment: Failure | null): Result<LoggedSlot> => {
  if (vm.dirtyRingBytes !== 0) return new Failure('ENXIO', 'DIRTY_RING_IN_USE', kernelRef, { object: `vm ${vm.id}` });
  // Bits 31:16 are the address space, of which there is one.
  if (number >= KVM_USER_MEM_SLOTS)
    return new Failure('EINVAL', 'MEMSLOT_NUMBER', kernelRef, {
      field: 'slot',
      given: String(number),
      allowed: `below ${KVM_USER_MEM_SLOTS}`,
    });
  if (alignment !== null) return alignment;
  const slot = vm.memslots.get(number);
  const bitmap = slot?.dirtyBitmap;
  if (slot && bitmap) return { slot, bitmap };
  const reason = slot ? 'MEMSLOT_WITHOUT_DIRTY_LOG' : 'MEMSLOT_NOT_FOUND';
  return new Failure('ENOENT', reason, kernelRef, { object: `vm ${vm.id}`, slot: String(number) });
};

/** KVM_GET_DIRTY_LOG (`kvm_get_dirty_log_protect`): takes the bits, unless KVM_CLEAR_DIRTY_LOG is to do so. */
export function* getDirtyLog(current: Task, vm: Vm, arg: IoctlArg): MightSleep<Result<number>> {
  const log = copyStruct(arg, kvm_dirty_log);
  if (failed(log)) return log;
  yield* vm.slotsLock.lock(current);
  const result = getDirtyLogProtect(vm, log.slot, log.dirty_bitmap, arg);
  vm.slotsLock.unlock(current);
  return result ?? 0;
}

const getDirtyLogProtect = (vm: Vm, number: number, destination: bigint, arg: IoctlArg): Failure | null => {
  const logged = loggedSlot(vm, number, 'kvm_get_dirty_log_protect', null);
  if (failed(logged)) return logged;
  const { slot, bitmap } = logged;
  const bits = bitmap.read(0, bitmap.bytes);
  if (vm.manualDirtyLogProtect === 0 && !bitmap.empty) {
    kvmArchMmuEnableLogDirty(vm, slot, 0, slot.npages, (page) => bitmap.test(page));
    // Gone even if the copy below fails.
    bitmap.clearAll();
  }
  return arg.user.copyOut(destination, bits);
};

/** KVM_CLEAR_DIRTY_LOG (`kvm_clear_dirty_log_protect`); works without the capability too. */
export function* clearDirtyLog(current: Task, vm: Vm, arg: IoctlArg): MightSleep<Result<number>> {
  const log = copyStruct(arg, kvm_clear_dirty_log);
  if (failed(log)) return log;
  yield* vm.slotsLock.lock(current);
  const result = clearDirtyLogProtect(vm, log, arg);
  vm.slotsLock.unlock(current);
  return result ?? 0;
}

const clearDirtyLogProtect = (
  vm: Vm,
  log: { slot: number; num_pages: number; first_page: bigint; dirty_bitmap: bigint },
  arg: IoctlArg,
): Failure | null => {
  const refuse = (reason: string, field: string, given: bigint | number): Failure =>
    new Failure('EINVAL', reason, 'kvm_clear_dirty_log_protect', { field, given: String(given) });
  const unaligned = log.first_page % 64n === 0n ? null : refuse('DIRTY_LOG_FIRST_PAGE', 'first_page', log.first_page);
  const logged = loggedSlot(vm, log.slot, 'kvm_clear_dirty_log_protect', unaligned);
  if (failed(logged)) return logged;
  const { slot, bitmap } = logged;
  const rest = BigInt(slot.npages) - log.first_page;
  const count = BigInt(log.num_pages);
  if (rest < 0n || count > rest || (count < rest && count % 64n !== 0n))
    return refuse('DIRTY_LOG_NUM_PAGES', 'num_pages', log.num_pages);
  const first = Number(log.first_page);
  const cleared = arg.user.copyIn(log.dirty_bitmap, Math.ceil(log.num_pages / 64) * 8);
  if (failed(cleared)) return cleared;
  const wanted = (page: number): boolean => (((cleared[(page - first) >>> 3] ?? 0) >>> ((page - first) & 7)) & 1) === 1;
  const pages: number[] = [];
  for (const page of bitmap.pages(first, first + log.num_pages)) if (wanted(page)) pages.push(page);
  if (pages.length === 0) return null;
  kvmArchMmuEnableLogDirty(vm, slot, first, log.num_pages, (page) => wanted(page) && bitmap.test(page));
  for (const page of pages) bitmap.clear(page);
  return null;
};

/** KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 (in `kvm_vm_ioctl_enable_cap_generic`). */
export const enableManualDirtyLogProtect = (vm: Vm, flags: number, argument: bigint): Result<number> => {
  const enabled = (argument & BigInt(KVM_DIRTY_LOG.MANUAL_PROTECT_ENABLE)) !== 0n;
  const allowed = enabled ? BigInt(KVM_DIRTY_LOG.MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG.INITIALLY_SET) : 0n;
  if (flags !== 0 || (argument & ~allowed) !== 0n)
    return new Failure('EINVAL', 'MANUAL_DIRTY_LOG_ARGUMENT', 'kvm_vm_ioctl_enable_cap_generic', {
      field: flags !== 0 ? 'flags' : 'args[0]',
      given: `0x${argument.toString(16)}`,
      allowed: `0x${allowed.toString(16)}`,
    });
  vm.manualDirtyLogProtect = Number(argument);
  return 0;
};
