import type { Gfn } from '../../hardware/units.js';
import type { Memslot } from './memslots.js';
import { REQUEST, type Vcpu } from './vcpu.js';
import type { Vm } from './vm.js';

/** `mark_page_dirty_in_slot`. @param vcpu whose write it is; null: the kernel's own, which only a bitmap records */
export const markPageDirty = (vm: Vm, vcpu: Vcpu | null, slot: Memslot, frame: Gfn): void => {
  vm.writeLog?.note(frame);
  if (!slot.logsDirty) return;
  const page = frame - slot.baseGfn;
  const ring = vm.dirtyRingBytes !== 0 ? vcpu?.dirtyRing : null;
  if (!vcpu || !ring) {
    slot.dirtyBitmap?.set(page);
    return;
  }
  ring.push(slot.id, page);
  if (ring.softFull) vcpu.request(REQUEST.DIRTY_RING_SOFT_FULL);
};

/** `kvm_dirty_ring_check_request`: whether KVM_RUN has to return with KVM_EXIT_DIRTY_RING_FULL. */
export const dirtyRingFull = (vcpu: Vcpu): boolean => {
  if (!vcpu.checkRequest(REQUEST.DIRTY_RING_SOFT_FULL) || !vcpu.dirtyRing?.softFull) return false;
  vcpu.request(REQUEST.DIRTY_RING_SOFT_FULL);
  return true;
};
