import type { MappedPage, MemoryAccess, PhysicalMemory } from '../../../hardware/cpu/types.js';
import type { Frame } from '../../../hardware/dram.js';
import { type Gfn, type Gpa, gfn, gfnToGpa, gpaToGfn, PAGE_SIZE, type Uva } from '../../../hardware/units.js';
import { Failure, failed, type Result } from '../../failure.js';
import { PageMissing } from '../../mm/missing-pages.js';
import type { MmuNotifier, MmuNotifierEvent } from '../../mm/mmu-notifier.js';
import type { Page } from '../../mm/page.js';
import { KVM_MEMORY_EXIT_FLAG, KVM_X86_QUIRK } from '../../uapi/constants.js';
import { markPageDirty } from '../mark-page-dirty.js';
import type { Memslot } from '../memslots.js';
import type { Vcpu } from '../vcpu.js';
import { VM_TYPE, type Vm } from '../vm.js';
import { NestedPageTable } from './nested-page-table.js';
import { EMULATE, KvmPageFault, RETRY } from './page-fault.js';

/**
 * The MMU of a VM with two-dimensional paging: guest frame to frame of host memory (arch/x86/kvm/mmu/tdp_mmu.c and
 * virt/kvm/kvm_main.c's notifier). Entries shadow the address space of the VM's owner and hold no reference: the
 * notifier zaps them before a page goes.
 */
export class TdpMmu implements MmuNotifier {
  private readonly table: NestedPageTable;

  constructor(private readonly vm: Vm) {
    this.table = new NestedPageTable(vm.kmem, vm.kernel.costs.charge);
  }

  // -- life ---------------------------------------------------------------------------------------------------------

  /** `kvm_init_mmu_notifier`. */
  init(): void {
    this.vm.mm.registerNotifier(this);
  }

  /** `kvm_mmu_load`, before a vCPU enters. */
  load(): void {
    this.table.load();
  }

  /** `mmu_notifier_unregister`. */
  stopNotifications(): void {
    this.vm.mm.unregisterNotifier(this);
  }

  /** `kvm_mmu_uninit_vm`. */
  free(): void {
    this.table.free();
  }

  // -- what is mapped -----------------------------------------------------------------------------------------------

  /** Pages that the nested page table itself takes. */
  get tableCount(): number {
    return this.table.tableCount;
  }

  /** Whether an entry maps a frame. Several VMs may map one frame: shared memory, and what a move leaves behind. */
  maps(frame: Frame): boolean {
    return this.table.maps(frame);
  }

  /** Every page that is mapped, in order of guest frames. */
  mappings(): { readonly gfn: Gfn; readonly frame: Frame; readonly writable: boolean }[] {
    const found: { gfn: Gfn; frame: Frame; writable: boolean }[] = [];
    this.table.forEachMapped(gfn(0), gfn(Number.MAX_SAFE_INTEGER), (at, { frame, writable }) => {
      found.push({ gfn: at, frame, writable });
    });
    return found;
  }

  // -- faults -------------------------------------------------------------------------------------------------------

  /** `kvm_mmu_page_fault` for a data or instruction access of `vcpu`: the page, or what is to be done instead. */
  map(vcpu: Vcpu, address: Gpa, access: MemoryAccess, encrypted: boolean): MappedPage | KvmPageFault {
    const frame = gpaToGfn(address);
    const write = access === 'write';
    const present = this.table.find(frame);
    if (present?.kind === 'mapped' && (present.writable || !write))
      return this.mapping(vcpu, present.frame, present.writable, encrypted);
    const { memslots } = this.vm;
    if (present?.kind === 'mmio' && present.generation === memslots.generation) return EMULATE;
    const mismatch = this.attributeMismatch(address, encrypted);
    if (mismatch !== null) return mismatch;
    const isPrivate = this.isPrivate(frame, encrypted);
    // Beyond its reach the hardware finds nothing, whatever slot may be there.
    const slot = NestedPageTable.holds(frame) ? memslots.find(frame) : undefined;
    if (slot === undefined) {
      if (isPrivate) return this.memoryFault(frame, true, 'PRIVATE_ACCESS_WITHOUT_SLOT');
      if (NestedPageTable.holds(frame)) this.table.set(frame, { kind: 'mmio', generation: memslots.generation });
      return EMULATE;
    }
    if (slot.readonly && write) return vcpu.vm.kernel.ops.encryptedState(vcpu) ? RETRY : EMULATE;
    return this.mapSlot(vcpu, slot, frame, write, isPrivate, encrypted);
  }

  /** The fault of a private access to a page that is shared, or the other way round. */
  attributeMismatch(address: Gpa, encrypted: boolean): KvmPageFault | null {
    const frame = gpaToGfn(address);
    const isPrivate = this.isPrivate(frame, encrypted);
    if (isPrivate === this.vm.memoryAttributes.isPrivate(frame)) return null;
    return this.memoryFault(frame, isPrivate, 'MEMORY_ATTRIBUTE_MISMATCH');
  }

  /** `kvm_mmu_faultin_pfn` and `kvm_tdp_mmu_map`. */
  private mapSlot(
    vcpu: Vcpu,
    slot: Memslot,
    frame: Gfn,
    write: boolean,
    isPrivate: boolean,
    encrypted: boolean,
  ): MappedPage | KvmPageFault {
    const page = this.faultIn(slot, frame, write, isPrivate);
    if (page instanceof PageMissing) return new KvmPageFault({ kind: 'missing', page });
    if (failed(page)) return this.memoryFault(frame, isPrivate, page.reason, page);
    if (write) markPageDirty(this.vm, vcpu, slot, frame);
    this.table.set(frame, { kind: 'mapped', frame: page.frame, slot, writable: write });
    vcpu.arch.stat.pf_fixed++;
    return this.mapping(vcpu, page.frame, write, encrypted);
  }

  private faultIn(slot: Memslot, frame: Gfn, write: boolean, isPrivate: boolean): Result<Page> {
    if (!isPrivate && !slot.gmem?.onlyGmem) return this.vm.mm.fault(slot.hva(frame), write);
    return slot.gmem?.page(frame) ?? new Failure('EFAULT', 'PRIVATE_ACCESS_WITHOUT_GUEST_MEMFD', 'kvm_mmu_faultin_pfn_gmem');
  }

  /** Private is what the hardware says; for a VM whose memory only software calls private, what the attribute says. */
  private isPrivate(frame: Gfn, encrypted: boolean): boolean {
    if (!this.vm.kernel.ops.hasPrivateMemory(this.vm)) return false;
    return this.vm.type === VM_TYPE.SW_PROTECTED ? this.vm.memoryAttributes.isPrivate(frame) : encrypted;
  }

  private mapping(vcpu: Vcpu, frame: Frame, writable: boolean, encrypted: boolean): MappedPage {
    return { kind: 'mapped', frame, key: encrypted ? this.vm.kernel.ops.encryptionKey(vcpu) : null, writable };
  }

  /** `kvm_mmu_prepare_memory_fault_exit`. */
  private memoryFault(frame: Gfn, isPrivate: boolean, reason: string, cause?: Failure): KvmPageFault {
    const details = { gpa: `0x${gfnToGpa(frame).toString(16)}`, ...cause?.details };
    return new KvmPageFault({
      kind: 'failed',
      failure: new Failure(cause?.errno ?? 'EFAULT', reason, 'kvm_mmu_prepare_memory_fault_exit', details),
      report: { flags: isPrivate ? BigInt(KVM_MEMORY_EXIT_FLAG.PRIVATE) : 0n, gpa: gfnToGpa(frame), size: PAGE_SIZE },
    });
  }

  // -- invalidation -------------------------------------------------------------------------------------------------

  /** `kvm_mmu_notifier_invalidate_range_start`, and `kvm_mmu_notifier_release` when the address space goes. */
  invalidateRange(start: Uva, end: Uva, event: MmuNotifierEvent): void {
    if (event === 'release') {
      this.zapAll();
      this.vm.kernel.ops.guestMemoryReclaimed(this.vm);
      return;
    }
    let found = false;
    for (const slot of this.vm.memslots.inHvaRange(start, end)) {
      found = true;
      const first = slot.baseGfn + Math.max(0, Math.floor((start - slot.userspaceAddr) / PAGE_SIZE));
      const last = slot.baseGfn + Math.min(slot.npages, Math.ceil((end - slot.userspaceAddr) / PAGE_SIZE));
      if (!slot.gmem?.onlyGmem) this.unmapRange(gfn(first), gfn(last));
    }
    if (found) this.vm.kernel.ops.guestMemoryReclaimed(this.vm);
  }

  /** `kvm_unmap_gfn_range`. */
  unmapRange(first: Gfn, last: Gfn): void {
    if (this.table.zapLeaves(first, last) > 0) this.flushRemoteTlbs();
  }

  /** `kvm_mmu_zap_all`, `kvm_mmu_zap_all_fast`: every table page goes. */
  zapAll(): void {
    if (!this.table.hasRoot) return;
    this.table.zapAll();
    this.flushRemoteTlbs();
  }

  /** `kvm_flush_remote_tlbs`: vCPUs inside the guest are interrupted, the others flush before they enter. */
  private flushRemoteTlbs(): void {
    const { charge } = this.vm.kernel.costs;
    for (const { arch } of this.vm.vcpus) {
      arch.flushTlb();
      arch.stat.tlb_flush++;
      charge('tlb_flush');
      if (arch.inGuest) charge('ipi');
    }
  }

  // -- dirty log ----------------------------------------------------------------------------------------------------

  /** Takes the right to write from the mapped pages of [first, last) that `wanted` names. */
  writeProtect(first: Gfn, last: Gfn, wanted: (frame: Gfn) => boolean = () => true): void {
    let changed = false;
    this.table.forEachMapped(first, last, (at, spte) => {
      if (!spte.writable || !wanted(at)) return;
      spte.writable = false;
      changed = true;
    });
    if (changed) this.flushRemoteTlbs();
  }

  /** The same of single pages (`kvm_mmu_write_protect_pt_masked`), with one flush for all. */
  writeProtectFrames(frames: Iterable<Gfn>): void {
    let changed = false;
    for (const frame of frames) {
      const spte = this.table.find(frame);
      if (spte?.kind !== 'mapped' || !spte.writable) continue;
      spte.writable = false;
      changed = true;
    }
    if (changed) this.flushRemoteTlbs();
  }
}

/** Guest-physical memory as one vCPU reaches it: the VM's MMU, and last the vendor's own look (RMP, TD ownership). */
export class VcpuMemory implements PhysicalMemory {
  constructor(private readonly vcpu: Vcpu) {}

  map(address: Gpa, access: MemoryAccess, encrypted: boolean): MappedPage | KvmPageFault {
    const { vcpu } = this;
    const { ops } = vcpu.vm.kernel;
    vcpu.arch.stat.pf_taken++;
    if (vcpu.arch.emulation?.owns(address, access)) return EMULATE;
    const page = vcpu.vm.arch.mmu.map(vcpu, address, access, encrypted);
    if (page.kind !== 'mapped') {
      if (page.outcome.kind === 'missing') vcpu.arch.awaitedPage = page.outcome.page;
      return page;
    }
    const checked = ops.checkMapping?.(vcpu, address, page, access) ?? page;
    if (checked.kind === 'mapped') return checked;
    return checked instanceof KvmPageFault ? checked : RETRY;
  }
}

/** `kvm_mmu_unmap_gfn_range`: what a guest_memfd takes away from a slot. */
export const kvmMmuUnmapGfnRange = (vm: Vm, _slot: Memslot, first: Gfn, last: Gfn): void => vm.arch.mmu.unmapRange(first, last);

/**
 * `kvm_arch_flush_shadow_memslot`: a slot is deleted or moved. A default VM loses every entry, unless the quirk is
 * switched off (KVM_X86_QUIRK_SLOT_ZAP_ALL); others lose only the slot's.
 */
export const kvmMmuZapMemslot = (vm: Vm, slot: Memslot): void => {
  if (vm.type === VM_TYPE.DEFAULT && vm.arch.quirkEnabled(KVM_X86_QUIRK.SLOT_ZAP_ALL)) vm.arch.mmu.zapAll();
  else vm.arch.mmu.unmapRange(slot.baseGfn, slot.endGfn);
};

/** `kvm_arch_flush_shadow_all`. */
export const kvmMmuZapAll = (vm: Vm): void => vm.arch.mmu.zapAll();

/** `kvm_mmu_slot_remove_write_access`: the dirty log has been switched on. */
export const kvmMmuSlotRemoveWriteAccess = (vm: Vm, slot: Memslot): void => vm.arch.mmu.writeProtect(slot.baseGfn, slot.endGfn);

/**
 * `kvm_arch_mmu_enable_log_dirty_pt_masked`: pages of a slot are to be logged again at their next write.
 * @param wanted whether the page at an offset within the slot is among them
 */
export const kvmArchMmuEnableLogDirty = (
  vm: Vm,
  slot: Memslot,
  firstPage: number,
  npages: number,
  wanted: (page: number) => boolean,
): void => {
  const first = gfn(slot.baseGfn + firstPage);
  vm.arch.mmu.writeProtect(first, gfn(first + npages), (frame) => wanted(frame - slot.baseGfn));
};
