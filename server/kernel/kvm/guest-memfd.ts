import { type Gfn, gfn, PAGE_SIZE } from '../../hardware/units.js';
import { Failure, failed, type Result } from '../failure.js';
import { File, type FileOperations, type FileStat, type MmapRequest, OPEN } from '../fs/file.js';
import type { IoctlArg } from '../fs/ioctl-arg.js';
import type { KmemCharge } from '../kmem.js';
import { type MemoryObject, type ObjectMapping, sigbus } from '../mm/memory-object.js';
import type { Page } from '../mm/page.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { GUEST_MEMFD_FLAG } from '../uapi/constants.js';
import { kvm_create_guest_memfd } from '../uapi/kvm-structs.js';
import { copyStruct } from './copy-struct.js';
import { KMEM_SIZE, kvmallocSize } from './kmem-sizes.js';
import type { Memslot } from './memslots.js';
import type { Vm } from './vm.js';
import { kvmMmuUnmapGfnRange } from './x86/mmu.js';

/** `include/uapi/linux/falloc.h`. */
const FALLOC_FL = { KEEP_SIZE: 1, PUNCH_HOLE: 2 } as const;
/** S_IFREG, readable and writable by the owner. */
const REGULAR_FILE_MODE = 0o100600;

/** A memslot's hold on a range of a guest_memfd. */
export interface GuestMemfdBinding {
  /** KVM_MEMSLOT_GMEM_ONLY: shared accesses go to the file too; userspace_addr is not used. */
  readonly onlyGmem: boolean;
  /**
   * `kvm_gmem_get_pfn`: the page behind a guest frame, without a reference, as the vendor has prepared it for the guest.
   * EFAULT once the file is closed.
   */
  page(frame: Gfn): Result<Page>;
  /** `__kvm_gmem_get_pfn`: the same page before that. */
  unpreparedPage(frame: Gfn): Result<Page>;
  /** `kvm_gmem_unbind`: the slot goes. */
  unbind(): void;
}

interface Binding {
  readonly slot: Memslot;
  /** Page index in the file of the slot's first page. */
  readonly first: number;
}

/**
 * A guest_memfd: pages for the guests of one VM, which userspace reaches only by mmap, if at all. File and inode in one,
 * since there is one file only. It holds a reference on its VM for as long as it is open or mapped, and has no gate.
 */
export class GuestMemfd implements FileOperations, MemoryObject {
  readonly name = 'anon_inode:[kvm-gmem]';
  readonly mappings = new Set<ObjectMapping>();
  private readonly pages = new Map<number, Page>();
  private readonly bindings = new Set<Binding>();
  private readonly charge: KmemCharge;
  private readonly inode: number;
  private users = 1;
  private closed = false;

  constructor(
    readonly vm: Vm,
    /** Bytes; up to 2^63 - 4096. */
    readonly size: bigint,
    /** GUEST_MEMFD_FLAG bits. */
    private readonly flags: number,
  ) {
    this.charge = vm.kmem.charge('gmem_file', kvmallocSize(KMEM_SIZE.gmem_file));
    this.inode = vm.kernel.allocateInode();
    vm.get();
  }

  get supportsMmap(): boolean {
    return (this.flags & GUEST_MEMFD_FLAG.MMAP) !== 0;
  }

  /** Pages that have been touched. */
  get pageCount(): number {
    return this.pages.size;
  }

  /** `kvm_gmem_bind`, under slots_lock. EINVAL: wrong VM, offset unaligned or beyond the file, range already bound. */
  bind(vm: Vm, slot: Memslot, offset: bigint): Failure | null {
    const refuse = (reason: string): Failure =>
      new Failure('EINVAL', reason, 'kvm_gmem_bind', {
        field: 'guest_memfd_offset',
        given: `0x${offset.toString(16)}`,
        file_size: `0x${this.size.toString(16)}`,
      });
    if (this.vm !== vm) return new Failure('EINVAL', 'GUEST_MEMFD_OF_OTHER_VM', 'kvm_gmem_bind', { owner: `vm ${this.vm.id}` });
    // loff_t: the sum wraps to a negative number and passes, as it does in the kernel.
    const start = BigInt.asIntN(64, offset);
    const end = BigInt.asIntN(64, start + BigInt(slot.npages) * BigInt(PAGE_SIZE));
    if (start < 0n || start % BigInt(PAGE_SIZE) !== 0n || end > this.size) return refuse('GUEST_MEMFD_OFFSET');
    const first = Number(start / BigInt(PAGE_SIZE));
    for (const other of this.bindings)
      if (first < other.first + other.slot.npages && other.first < first + slot.npages) return refuse('GUEST_MEMFD_RANGE_BOUND');
    const binding: Binding = { slot, first };
    this.bindings.add(binding);
    slot.gmem = {
      onlyGmem: this.supportsMmap,
      page: (frame) => this.preparedPage(binding, frame),
      unpreparedPage: (frame) => this.pageFor(binding, frame),
      unbind: () => this.bindings.delete(binding),
    };
    return null;
  }

  // -- memory ---------------------------------------------------------------------------------------------------------

  /** `kvm_gmem_fault_user_mapping`. */
  fault(index: number): Result<Page> {
    if (BigInt(index) * BigInt(PAGE_SIZE) >= this.size || (this.flags & GUEST_MEMFD_FLAG.INIT_SHARED) === 0)
      return sigbus('kvm_gmem_fault_user_mapping');
    return this.allocate(index);
  }

  attach(mapping: ObjectMapping): void {
    this.users++;
    this.mappings.add(mapping);
  }

  detach(mapping: ObjectMapping): void {
    this.mappings.delete(mapping);
    if (--this.users > 0) return;
    this.vm.kernel.work('fput of a guest_memfd', (current) => this.lastPut(current));
  }

  // -- file operations ------------------------------------------------------------------------------------------------

  stat(): FileStat {
    return { size: Number(this.size), blksize: PAGE_SIZE, blocks: 0, inode: this.inode, mode: REGULAR_FILE_MODE };
  }

  mmap(_current: Task, request: MmapRequest): Result<MemoryObject> {
    if (!this.supportsMmap) return new Failure('ENODEV', 'GUEST_MEMFD_NOT_MAPPABLE', 'kvm_gmem_mmap');
    if (!request.shared) return new Failure('EINVAL', 'GUEST_MEMFD_MAP_PRIVATE', 'kvm_gmem_mmap', { field: 'flags' });
    return this;
  }

  ftruncate(): Failure {
    return new Failure('EINVAL', 'GUEST_MEMFD_SIZE_FIXED', 'kvm_gmem_setattr');
  }

  /** `kvm_gmem_fallocate`. */
  *fallocate(current: Task, mode: number, offset: number, length: number): MightSleep<Failure | null> {
    if ((mode & FALLOC_FL.KEEP_SIZE) === 0 || (mode & ~(FALLOC_FL.KEEP_SIZE | FALLOC_FL.PUNCH_HOLE)) !== 0)
      return new Failure('EOPNOTSUPP', 'FALLOCATE_MODE', 'kvm_gmem_fallocate', { field: 'mode', given: String(mode) });
    if (offset % PAGE_SIZE !== 0 || length % PAGE_SIZE !== 0)
      return new Failure('EINVAL', 'FALLOCATE_UNALIGNED', 'kvm_gmem_fallocate', { field: 'offset, len' });
    const first = offset / PAGE_SIZE;
    const last = first + length / PAGE_SIZE;
    if ((mode & FALLOC_FL.PUNCH_HOLE) !== 0) {
      this.punch(first, last);
      return null;
    }
    if (BigInt(offset) + BigInt(length) > this.size)
      return new Failure('EINVAL', 'FALLOCATE_BEYOND_END', 'kvm_gmem_allocate', { field: 'offset, len' });
    for (let index = first; index < last; index++) {
      if (current.thread.signalPending) return new Failure('EINTR', 'SIGNAL_PENDING', 'kvm_gmem_allocate');
      const page = this.allocate(index);
      if (failed(page)) return page;
    }
    return null;
  }

  *release(current: Task): MightSleep<void> {
    if (--this.users === 0) yield* this.lastPut(current);
  }

  /** `kvm_gmem_release`: the slots stay, without pages behind them. */
  private *lastPut(current: Task): MightSleep<void> {
    const { vm } = this;
    yield* vm.slotsLock.lock(current);
    this.unmapGuest(0, Number.MAX_SAFE_INTEGER);
    this.closed = true;
    this.bindings.clear();
    vm.slotsLock.unlock(current);
    for (const page of this.pages.values()) this.freePage(page);
    vm.kernel.costs.charge('page_freed', this.pages.size);
    this.pages.clear();
    this.charge.release();
    yield* vm.put(current);
  }

  /** `kvm_gmem_prepare_folio`. */
  private preparedPage(binding: Binding, frame: Gfn): Result<Page> {
    const page = this.pageFor(binding, frame);
    if (failed(page)) return page;
    return this.vm.kernel.ops.gmemPrepare?.(this.vm, frame, page) ?? page;
  }

  /** `kvm_gmem_free_folio`: a page that the vendor cannot take away from the guest is leaked. */
  private freePage(page: Page): void {
    if (this.vm.kernel.ops.gmemInvalidate?.(page) !== false) page.put();
  }

  private pageFor(binding: Binding, frame: Gfn): Result<Page> {
    if (this.closed) return new Failure('EFAULT', 'GUEST_MEMFD_CLOSED', 'kvm_gmem_get_pfn');
    const index = binding.first + (frame - binding.slot.baseGfn);
    if (BigInt(index) * BigInt(PAGE_SIZE) >= this.size)
      return new Failure('EFAULT', 'GUEST_MEMFD_BEYOND_END', 'kvm_gmem_get_pfn');
    return this.allocate(index);
  }

  /** `kvm_gmem_get_folio`. */
  private allocate(index: number): Result<Page> {
    const present = this.pages.get(index);
    if (present !== undefined) return present;
    const page = this.vm.kernel.pages.allocate();
    if (!failed(page)) {
      this.pages.set(index, page);
      this.vm.kernel.costs.charge('page_allocated');
    }
    return page;
  }

  /** `kvm_gmem_punch_hole`: guests and mappings lose the pages before they are freed. */
  punch(first: number, last: number): void {
    this.unmapGuest(first, last);
    for (const mapping of this.mappings) mapping.unmapPages(first, last);
    for (const [index, page] of this.pages) {
      if (index < first || index >= last) continue;
      this.pages.delete(index);
      this.vm.kernel.costs.charge('page_freed');
      this.freePage(page);
    }
  }

  /** `kvm_gmem_invalidate_begin`. */
  private unmapGuest(first: number, last: number): void {
    for (const { slot, first: slotFirst } of this.bindings) {
      const from = Math.max(first, slotFirst) - slotFirst;
      const to = Math.min(last - slotFirst, slot.npages);
      if (from < to) kvmMmuUnmapGfnRange(this.vm, slot, gfn(slot.baseGfn + from), gfn(slot.baseGfn + to));
    }
  }
}

/** KVM_CAP_GUEST_MEMFD_FLAGS: files that start shared make sense only where memory is not private by hardware. */
export const supportedGuestMemfdFlags = (vm: Vm | null): number =>
  GUEST_MEMFD_FLAG.MMAP | (vm?.kernel.ops.hasPrivateMemory(vm) ? 0 : GUEST_MEMFD_FLAG.INIT_SHARED);

/** KVM_CREATE_GUEST_MEMFD (`kvm_gmem_create`): a descriptor that, alone among KVM's, is not close-on-exec. */
export const kvmGmemCreate = (current: Task, vm: Vm, arg: IoctlArg): Result<number> => {
  const request = copyStruct(arg, kvm_create_guest_memfd);
  if (failed(request)) return request;
  const valid = supportedGuestMemfdFlags(vm);
  if ((request.flags & ~BigInt(valid)) !== 0n)
    return new Failure('EINVAL', 'GUEST_MEMFD_FLAGS', 'kvm_gmem_create', {
      field: 'flags',
      given: `0x${request.flags.toString(16)}`,
      allowed: `0x${valid.toString(16)}`,
    });
  const size = BigInt.asIntN(64, request.size);
  if (size <= 0n || size % BigInt(PAGE_SIZE) !== 0n)
    return new Failure('EINVAL', 'GUEST_MEMFD_SIZE', 'kvm_gmem_create', {
      field: 'size',
      given: `0x${request.size.toString(16)}`,
      allowed: 'a positive multiple of 4096',
    });
  const { files } = current.process;
  if (files.full) return new Failure('EMFILE', 'FD_TABLE_FULL', 'get_unused_fd_flags');
  return files.install(new File(new GuestMemfd(vm, size, Number(request.flags)), OPEN.RDWR), false);
};
