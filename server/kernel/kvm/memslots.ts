import type { Gfn, Uva } from '../../hardware/units.js';
import { gfn, PAGE_SIZE, uva } from '../../hardware/units.js';
import type { KmemCharge, KmemOwner } from '../kmem.js';
import { KVM_MEM } from '../uapi/constants.js';
import { DirtyBitmap } from './dirty-bitmap.js';
import type { GuestMemfdBinding } from './guest-memfd.js';
import { KMEM_SIZE, kvmallocSize } from './kmem-sizes.js';
import { SlotsByGfn } from './slots-by-gfn.js';

/** KVM_CAP_NR_MEMSLOTS: 32767 slots less the three that KVM keeps for itself. */
export const KVM_USER_MEM_SLOTS = 32_764;
/** `KVM_MEM_MAX_NR_PAGES`. */
export const KVM_MEM_MAX_NR_PAGES = 2 ** 31 - 1;
/** `kvm_arch_nr_memslot_as_ids`: one address space, as on a kernel without CONFIG_KVM_SMM. */
export const KVM_ADDRESS_SPACE_NUM = 1;

/** Pages of 4 KiB in a region of each size that lpage_info and rmap count: 2 MiB, 1 GiB. */
const LARGE_PAGES = [512, 262_144] as const;

export interface MemslotShape {
  readonly id: number;
  readonly baseGfn: Gfn;
  readonly npages: number;
  readonly userspaceAddr: Uva;
  /** KVM_MEM bits. */
  readonly flags: number;
}

/** `struct kvm_memory_slot` with its arch part, charged to the VM for as long as it exists. */
export class Memslot implements MemslotShape {
  readonly id: number;
  readonly npages: number;
  readonly userspaceAddr: Uva;
  baseGfn: Gfn;
  flags: number;
  /** Null without KVM_MEM.LOG_DIRTY_PAGES, or where a dirty ring takes its place. */
  dirtyBitmap: DirtyBitmap | null = null;
  /** What guest_memfd stands behind private (or all) accesses. */
  gmem: GuestMemfdBinding | null = null;
  private dirtyCharge: KmemCharge | null = null;
  private readonly structCharge: KmemCharge;
  private readonly rmapCharge: KmemCharge;
  private readonly lpageCharge: KmemCharge;

  constructor(
    shape: MemslotShape,
    private readonly kmem: KmemOwner,
  ) {
    ({ id: this.id, npages: this.npages, userspaceAddr: this.userspaceAddr, baseGfn: this.baseGfn, flags: this.flags } = shape);
    this.structCharge = kmem.charge('kvm_memory_slot', kvmallocSize(KMEM_SIZE.kvm_memory_slot));
    this.rmapCharge = kmem.charge('kvm_rmap_head', this.rmapBytes);
    this.lpageCharge = kmem.charge('kvm_lpage_info', this.lpageBytes);
  }

  get endGfn(): Gfn {
    return gfn(this.baseGfn + this.npages);
  }

  get readonly(): boolean {
    return (this.flags & KVM_MEM.READONLY) !== 0;
  }

  /** `kvm_slot_dirty_track_enabled`. */
  get logsDirty(): boolean {
    return (this.flags & KVM_MEM.LOG_DIRTY_PAGES) !== 0;
  }

  contains(frame: Gfn): boolean {
    return frame >= this.baseGfn && frame < this.baseGfn + this.npages;
  }

  /** `__gfn_to_hva_memslot`. */
  hva(frame: Gfn): Uva {
    return uva(this.userspaceAddr + (frame - this.baseGfn) * PAGE_SIZE);
  }

  /** `kvm_alloc_dirty_bitmap`: twice the bitmap, since KVM_GET_DIRTY_LOG needs a second one to work on. */
  allocateDirtyBitmap(): DirtyBitmap {
    const bitmap = new DirtyBitmap(this.npages);
    this.dirtyBitmap = bitmap;
    this.dirtyCharge = this.kmem.charge('dirty_bitmap', kvmallocSize(2 * bitmap.bytes));
    return bitmap;
  }

  freeDirtyBitmap(): void {
    this.dirtyBitmap = null;
    this.dirtyCharge?.release();
    this.dirtyCharge = null;
  }

  /** `kvm_alloc_memslot_metadata` for another place: the arrays may have one region more or less there. */
  moveTo(base: Gfn): void {
    this.baseGfn = base;
    this.rmapCharge.resize(this.rmapBytes);
    this.lpageCharge.resize(this.lpageBytes);
  }

  /** `kvm_free_memslot`. */
  free(): void {
    this.gmem?.unbind();
    this.gmem = null;
    this.freeDirtyBitmap();
    this.lpageCharge.release();
    this.rmapCharge.release();
    this.structCharge.release();
  }

  /** `memslot_rmap_alloc`: one array for each page size. A host without any shadow root could do without them. */
  private get rmapBytes(): number {
    const heads = [this.npages, ...LARGE_PAGES.map((pages) => this.regions(pages))];
    return heads.reduce((sum, count) => sum + kvmallocSize(count * KMEM_SIZE.kvm_rmap_head), 0);
  }

  /** `kvm_alloc_memslot_metadata`. */
  private get lpageBytes(): number {
    return LARGE_PAGES.reduce((sum, pages) => sum + kvmallocSize(this.regions(pages) * KMEM_SIZE.kvm_lpage_info), 0);
  }

  /** `__kvm_mmu_slot_lpages`: regions of `pages` pages that the slot touches. */
  private regions(pages: number): number {
    return Math.floor((this.baseGfn + this.npages - 1) / pages) - Math.floor(this.baseGfn / pages) + 1;
  }
}

const NONE: ReadonlySet<Memslot> = new Set();

/** `struct kvm_memslots`: the slots of a VM by id and by guest frame. Changed under slots_lock, read under SRCU. */
export class Memslots {
  /** Bumped with every change; who caches a lookup compares it. */
  generation = 0;
  private readonly byId = new Map<number, Memslot>();
  private readonly byGfn = new SlotsByGfn<Memslot>();
  /** On their way out or to another place. Not a flag of theirs: a lookup does not read what it finds. */
  private invalid = NONE;

  /** `id_to_memslot`. */
  get(id: number): Memslot | undefined {
    return this.byId.get(id);
  }

  get size(): number {
    return this.byId.size;
  }

  /** In order of guest frames. */
  [Symbol.iterator](): IterableIterator<Memslot> {
    return this.byGfn[Symbol.iterator]();
  }

  /** `gfn_to_memslot`: the slot that holds a guest frame, unless it is invalid. */
  find(frame: Gfn): Memslot | undefined {
    const slot = this.byGfn.find(frame);
    return slot !== undefined && this.invalid.size > 0 && this.invalid.has(slot) ? undefined : slot;
  }

  /** `kvm_check_memslot_overlap`: true if a slot other than `id` has a page in [base, base + npages). */
  overlaps(base: Gfn, npages: number, id: number): boolean {
    const end = base + npages;
    let slot = this.byGfn.firstEndingAbove(base);
    // The slot itself may be in the way of its own move: then the next one counts.
    if (slot?.id === id) slot = this.byGfn.firstEndingAbove(slot.endGfn);
    return slot !== undefined && slot.baseGfn < end;
  }

  /** The guest physical address that a user address is mapped at, in the first slot that has it. */
  gpaOf(address: Uva): number | null {
    for (const { userspaceAddr, baseGfn } of this.inHvaRange(address, uva(address + 1)))
      return baseGfn * PAGE_SIZE + address - userspaceAddr;
    return null;
  }

  /** Slots whose user addresses meet [start, end) (`kvm_for_each_memslot_in_hva_range`). */
  *inHvaRange(start: Uva, end: Uva): Generator<Memslot> {
    for (const slot of this.byGfn)
      if (slot.userspaceAddr < end && slot.userspaceAddr + slot.npages * PAGE_SIZE > start) yield slot;
  }

  /** `kvm_replace_memslot` for a new slot. */
  add(slot: Memslot): void {
    this.byId.set(slot.id, slot);
    this.byGfn.add(slot);
    this.changed();
  }

  /** `kvm_replace_memslot` without a new one. The caller frees the slot. */
  remove(slot: Memslot): void {
    this.byId.delete(slot.id);
    this.byGfn.remove(slot);
    if (this.invalid.has(slot)) this.invalid = new Set([...this.invalid].filter((other) => other !== slot));
    this.changed();
  }

  /** KVM_MEMSLOT_INVALID: from now on nobody finds these slots by guest frame, until they have been removed. */
  invalidate(slots: Iterable<Memslot>): void {
    this.invalid = new Set([...this.invalid, ...slots]);
    this.changed();
  }

  /** A slot has got other flags. */
  changed(): void {
    this.generation++;
  }

  /** `kvm_free_memslots`: frees every slot. */
  free(): void {
    for (const slot of this.byGfn) slot.free();
    this.byGfn.clear();
    this.byId.clear();
    this.invalid = NONE;
    this.changed();
  }
}
