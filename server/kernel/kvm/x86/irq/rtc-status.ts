/**
 * `struct rtc_status` of the IOAPIC: which vCPUs still owe an EOI for the interrupt of GSI 8. User space that emulates
 * the RTC asks with KVM_IRQ_LINE_STATUS whether a tick was lost.
 */
export class RtcStatus {
  /** Vector by vCPU id, for every vCPU that got the interrupt. */
  private readonly vectors = new Map<number, number>();
  /** `pending_eoi`. */
  pendingEoi = 0;

  reset(): void {
    this.vectors.clear();
    this.pendingEoi = 0;
  }

  /** The vector that a vCPU owes an EOI for. */
  vectorOf(vcpuId: number): number | undefined {
    return this.vectors.get(vcpuId);
  }

  /** A vCPU's local APIC has accepted the interrupt. */
  delivered(vcpuId: number, vector: number): void {
    this.vectors.set(vcpuId, vector);
  }

  /** `__rtc_irq_eoi_tracking_restore_one`: what the state of a vCPU's local APIC says now. */
  restore(vcpuId: number, vector: number, owed: boolean): void {
    if (owed === this.vectors.has(vcpuId)) return;
    if (owed) this.vectors.set(vcpuId, vector);
    else this.vectors.delete(vcpuId);
    this.pendingEoi += owed ? 1 : -1;
  }

  /** `rtc_irq_eoi`. */
  eoi(vcpuId: number): void {
    if (this.vectors.delete(vcpuId)) this.pendingEoi--;
  }
}
