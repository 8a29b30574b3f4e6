/**
 * Sizes of the interrupt controllers' objects on x86-64, bytes. Counted by hand from the members in 6.18's headers and
 * rounded up to the kmalloc bucket, as `kmem-sizes.ts` does it.
 */
import { PAGE_SIZE } from '../../../../hardware/units.js';
import { kvmallocSize } from '../../kmem-sizes.js';

export const IRQ_KMEM_SIZE = {
  /** `struct kvm_pic` (irq.h): lock, two chips of 32, three devices, 16 lines of 8. */
  kvm_pic: kvmallocSize(248),
  /** `struct kvm_ioapic` (ioapic.h): registers 216, lines 192, rtc_status with 4,096 vCPU ids in bitmap and vectors, work. */
  kvm_ioapic: kvmallocSize(216 + 192 + 24 + 4 + 512 + 4096 + 88 + 100),
  /** `struct kvm_pit` (i8254.h): three channels of 24, timer, notifiers, lock, two devices, work. */
  kvm_pit: kvmallocSize(320),
  /** `struct kvm_lapic` (lapic.h): timer 120, vapic cache 40, state. */
  kvm_lapic: kvmallocSize(232),
  /** Its register page (kvm_create_lapic). */
  kvm_lapic_regs: PAGE_SIZE,
} as const;

/** `struct kvm_apic_map`: header 24, sixteen clusters of four pointers, a pointer for each physical id. */
export const apicMapBytes = (maxApicId: number): number => kvmallocSize(24 + 16 * 4 * 8 + 8 * (maxApicId + 1));
