import type { Gpa } from '../../../../hardware/units.js';
import type { KmemCharge } from '../../../kmem.js';
import { REQUEST } from '../../vcpu.js';
import { apicBaseAddress, apicMode, type LapicMode, MSR_IA32_APICBASE_ENABLE, X2APIC_ENABLE } from './apic-base.js';
import { ApicPage } from './apic-page.js';
import {
  APIC,
  APIC_DEFAULT_PHYS_BASE,
  APIC_DM,
  APIC_LVR_DIRECTED_EOI,
  APIC_LVT_LEVEL_TRIGGER,
  APIC_LVT_MASKED,
  APIC_MODE_MASK,
  APIC_SPIV_APIC_ENABLED,
  APIC_VECTOR_MASK,
  APIC_VERSION,
  LVT_ENTRIES,
  LVT_REGISTERS,
} from './apic-registers.js';
import { icrToLapicIrq, type LapicIrq } from './lapic-irq.js';
import { LapicTimer } from './lapic-timer.js';
import type { RtcStatus } from './rtc-status.js';
import type { VmIrq } from './vm-irq.js';

/** What a local APIC needs from its vCPU. */
export interface LapicHost {
  /** `vcpu->vcpu_id`: the x2APIC id. */
  readonly id: number;
  /** `kvm_make_request`: a bit of REQUEST. */
  request(bit: number): void;
  /** `kvm_vcpu_kick`: wakes the vCPU if it is halted, and ends its slice. */
  kick(): void;
  /** `kvm_inject_nmi`. */
  injectNmi(): void;
  /** KVM_REQ_REPORT_TPR_ACCESS, if user space asked for it (KVM_TPR_ACCESS_REPORTING). */
  reportTprAccess(isWrite: boolean): void;
  /** The guest's CPUID has x2APIC. */
  readonly cpuidX2apic: boolean;
  /** `kvm_read_l1_tsc`. */
  readonly guestTsc: bigint;
  /** `virtual_tsc_khz`. */
  readonly tscKhz: number;
}

/** Bits of `Lapic.pendingEvents`. */
export const KVM_APIC_INIT = 1;
export const KVM_APIC_SIPI = 2;

/** `kvm_apic_calc_x2apic_ldr`. */
export const x2apicLdr = (id: number): number => (((id >>> 4) << 16) | (1 << (id & 0xf))) >>> 0;

/** `struct kvm_lapic`: a vCPU's local APIC (arch/x86/kvm/lapic.c), without AVIC, Hyper-V and Xen. */
export class Lapic {
  /** The page's registers; written through the functions of lapic-registers.ts. */
  readonly page = new ApicPage();
  readonly timer: LapicTimer;
  /** Bits KVM_APIC_INIT and KVM_APIC_SIPI: taken by `kvmApicAcceptEvents`. */
  pendingEvents = 0;
  sipiVector = 0;
  /** `apic_arb_prio`. */
  arbPrio = 0;
  /** Vectors whose EOI an IOAPIC wants to see (`ioapic_handled_vectors`); kept by KVM_REQ_SCAN_IOAPIC. */
  readonly ioapicHandledVectors = new Uint32Array(8);
  /** Highest vector in flight for a route that has gone elsewhere; its EOI asks for another scan. */
  highestStalePendingIoapicEoi = -1;
  /** Vector for KVM_EXIT_IOAPIC_EOI. */
  pendingIoapicEoi = 0;
  /** KVM_INTERRUPT's vector with a split irqchip, for LVT0; -1: none (`pending_external_vector`). */
  pendingExternalVector = -1;
  /** KVM_SET_VAPIC_ADDR; null: not set. */
  vapicAddress: Gpa | null = null;
  /** Vectors accepted since somebody began to watch; null: nobody does. */
  watched: Set<number> | null = null;
  /** LVT entries: CMCI depends on MCG_CAP. */
  lvtEntries = LVT_ENTRIES;
  private softwareEnabled = false;
  private mode: LapicMode = 'disabled';
  private base = 0n;
  private address = APIC_DEFAULT_PHYS_BASE;
  /** A hint: false means that IRR is empty. */
  private irrPending = false;
  private lvt0InNmiMode = false;

  constructor(
    readonly vm: VmIrq,
    readonly host: LapicHost,
    private readonly charges: readonly KmemCharge[] = [],
  ) {
    this.timer = new LapicTimer({
      clock: vm.host.clock,
      timers: vm.host.timers,
      get busCycleNs() {
        return vm.settings.apicBusCycleNs;
      },
      get guestTsc() {
        return host.guestTsc;
      },
      get tscKhz() {
        return host.tscKhz;
      },
      timerExpired: (kick) => {
        host.request(REQUEST.UNBLOCK);
        if (kick) host.kick();
      },
    });
  }

  get id(): number {
    return this.host.id;
  }

  /** `kvm_apic_hw_enabled`, `kvm_apic_present`: the enable bit of IA32_APIC_BASE. */
  get hardwareEnabled(): boolean {
    return this.mode === 'xapic' || this.mode === 'x2apic';
  }

  /** `kvm_apic_sw_enabled`: bit 8 of SPIV. */
  get swEnabled(): boolean {
    return this.softwareEnabled;
  }

  /** `apic_x2apic_mode`. */
  get x2apic(): boolean {
    return this.mode === 'x2apic';
  }

  /** `kvm_xapic_id`. */
  get xapicId(): number {
    return this.reg(APIC.ID) >>> 24;
  }

  /** Guest-physical address of the page. */
  get baseAddress(): number {
    return this.address;
  }

  reg(offset: number): number {
    return this.page.get(offset);
  }

  setReg(offset: number, value: number): void {
    this.page.set(offset, value);
  }

  /** `kvm_lapic_find_highest_irr`; -1: none. */
  highestIrr(): number {
    return this.irrPending ? this.page.highestVector(APIC.IRR) : -1;
  }

  /** `apic_find_highest_isr`; -1: none. */
  highestIsr(): number {
    return this.page.highestVector(APIC.ISR);
  }

  /** `kvm_apic_pending_eoi`: accepted, and not ended yet. */
  pendingEoi(vector: number): boolean {
    return this.page.testVector(APIC.ISR, vector) || this.page.testVector(APIC.IRR, vector);
  }

  // Priorities.

  /** `__apic_update_ppr`. @returns the new PPR, and whether it has become lower */
  private computePpr(): { readonly ppr: number; readonly lowered: boolean } {
    const before = this.reg(APIC.PROCPRI);
    const tpr = this.reg(APIC.TASKPRI);
    const isr = Math.max(this.highestIsr(), 0);
    const ppr = (tpr & 0xf0) >= (isr & 0xf0) ? tpr & 0xff : isr & 0xf0;
    this.setReg(APIC.PROCPRI, ppr);
    return { ppr, lowered: ppr < before };
  }

  private interruptAbove(ppr: number): number {
    const irr = this.highestIrr();
    return irr === -1 || (irr & 0xf0) <= ppr ? -1 : irr;
  }

  /** `apic_update_ppr`. */
  updatePpr(): void {
    const { ppr, lowered } = this.computePpr();
    if (lowered && this.interruptAbove(ppr) !== -1) this.host.request(REQUEST.EVENT);
  }

  /** `kvm_lapic_get_cr8`. */
  get cr8(): number {
    return (this.reg(APIC.TASKPRI) & 0xf0) >> 4;
  }

  /** `kvm_lapic_set_tpr`: a write of CR8. */
  setCr8(cr8: number): void {
    this.setTpr((cr8 & 0x0f) << 4);
  }

  setTpr(tpr: number): void {
    this.setReg(APIC.TASKPRI, tpr);
    this.updatePpr();
  }

  /** `kvm_apic_has_interrupt`: the vector that can be taken now; -1: none. */
  hasInterrupt(): number {
    if (!this.hardwareEnabled) return -1;
    return this.interruptAbove(this.computePpr().ppr);
  }

  /** `kvm_apic_ack_interrupt`: from IRR to ISR. */
  ackInterrupt(vector: number): void {
    this.page.writeVector(APIC.IRR, vector, false);
    this.irrPending = this.page.highestVector(APIC.IRR) !== -1;
    this.page.writeVector(APIC.ISR, vector, true);
    this.computePpr();
  }

  /** `kvm_apic_accept_pic_intr`: LVT0 lets the PIC through. */
  acceptsPicInterrupt(): boolean {
    if (!this.hardwareEnabled) return true;
    const lvt0 = this.reg(APIC.LVT0);
    return (lvt0 & APIC_LVT_MASKED) === 0 && (lvt0 & APIC_MODE_MASK) === APIC_DM.EXTINT;
  }

  // Messages.

  /** `kvm_apic_set_irq`. @returns 1 if it was added, 0 if it was discarded */
  setIrq(irq: LapicIrq, rtc: RtcStatus | null = null): number {
    return this.accept(irq.deliveryMode, irq.vector, irq.level, irq.levelTriggered, rtc);
  }

  /** `__apic_accept_irq`. */
  private accept(deliveryMode: number, vector: number, level: boolean, levelTriggered: boolean, rtc: RtcStatus | null): number {
    switch (deliveryMode) {
      case APIC_DM.LOWEST:
      case APIC_DM.FIXED:
        if (deliveryMode === APIC_DM.LOWEST) this.arbPrio++;
        if ((levelTriggered && !level) || !this.softwareEnabled || !this.hardwareEnabled) return 0;
        rtc?.delivered(this.id, vector);
        this.watched?.add(vector);
        this.page.writeVector(APIC.TMR, vector, levelTriggered);
        this.page.writeVector(APIC.IRR, vector, true);
        this.irrPending = true;
        this.event();
        return 1;
      case APIC_DM.REMRD:
        this.host.request(REQUEST.UNHALT);
        this.event();
        return 1;
      case APIC_DM.NMI:
        this.host.injectNmi();
        this.host.kick();
        return 1;
      case APIC_DM.INIT:
        if (levelTriggered && !level) return 0;
        // An INIT takes away a SIPI that has not been looked at.
        this.pendingEvents = KVM_APIC_INIT;
        this.event();
        return 1;
      case APIC_DM.STARTUP:
        this.sipiVector = vector;
        this.pendingEvents |= KVM_APIC_SIPI;
        this.event();
        return 1;
      default:
        // There is no SMM; EXTINT comes through LVT0 alone, where acceptsPicInterrupt sees it.
        return 0;
    }
  }

  /** KVM_REQ_EVENT and a kick. */
  event(): void {
    this.host.request(REQUEST.EVENT);
    this.host.kick();
  }

  /** `kvm_apic_local_deliver`: the interrupt of an LVT entry. */
  localDeliver(lvt: number): number {
    const entry = this.reg(lvt);
    if (!this.hardwareEnabled || (entry & APIC_LVT_MASKED) !== 0) return 0;
    const levelTriggered = (entry & APIC_LVT_LEVEL_TRIGGER) !== 0;
    return this.accept(entry & APIC_MODE_MASK, entry & APIC_VECTOR_MASK, true, levelTriggered, null);
  }

  /** `apic_has_pending_timer`: the timer has expired and its LVT entry would let it through. */
  get hasPendingTimer(): boolean {
    const enabled = this.softwareEnabled && this.hardwareEnabled;
    return enabled && (this.reg(APIC.LVTT) & APIC_LVT_MASKED) === 0 && this.timer.pending > 0;
  }

  /** `kvm_inject_apic_timer_irqs`. */
  injectTimerIrqs(): void {
    if (this.timer.pending === 0) return;
    this.localDeliver(APIC.LVTT);
    this.timer.delivered();
    this.timer.pending = 0;
  }

  /** `apic_set_eoi`: ends the highest interrupt in service; -1 if there was none. */
  setEoi(): number {
    const vector = this.highestIsr();
    if (vector === -1) return -1;
    this.page.writeVector(APIC.ISR, vector, false);
    this.updatePpr();
    this.sendEoiToIoapic(vector);
    this.host.request(REQUEST.EVENT);
    return vector;
  }

  /** `kvm_ioapic_send_eoi`. */
  private sendEoiToIoapic(vector: number): void {
    if (!this.ioapicHandles(vector)) return;
    if (this.highestStalePendingIoapicEoi === vector) this.host.request(REQUEST.SCAN_IOAPIC);
    if (this.vm.settings.irqchipMode === 'split') {
      this.pendingIoapicEoi = vector;
      this.host.request(REQUEST.IOAPIC_EOI_EXIT);
      return;
    }
    this.vm.chips?.ioapic.updateEoi(this, vector, this.page.testVector(APIC.TMR, vector));
  }

  /** `kvm_ioapic_handles_vector`. */
  ioapicHandles(vector: number): boolean {
    return (((this.ioapicHandledVectors[vector >> 5] ?? 0) >>> (vector & 31)) & 1) === 1;
  }

  /** The EOI of `vector` is for an IOAPIC. */
  handleEoiOf(vector: number): void {
    const word = vector >> 5;
    this.ioapicHandledVectors[word] = (this.ioapicHandledVectors[word] ?? 0) | (1 << (vector & 31));
  }

  /** A route that leads elsewhere now, while its interrupt is still in flight here (`kvm_scan_ioapic_irq`). */
  handleStaleEoiOf(vector: number): void {
    if (!this.pendingEoi(vector)) return;
    this.handleEoiOf(vector);
    this.highestStalePendingIoapicEoi = Math.max(this.highestStalePendingIoapicEoi, vector);
  }

  /** `kvm_apic_send_ipi`. */
  sendIpi(icrLow: number, icrHigh: number): void {
    this.vm.deliverToApic(this, icrToLapicIrq(icrLow, this.x2apic ? icrHigh >>> 0 : icrHigh >>> 24));
  }

  // Registers with a meaning beyond their bits.

  /** `apic_update_lvtt`. */
  updateLvtt(): void {
    if (this.timer.setMode(this.reg(APIC.LVTT))) this.setReg(APIC.TMICT, 0);
  }

  /** `apic_set_spiv`. */
  setSpiv(value: number): void {
    this.setReg(APIC.SPIV, value);
    const enabled = (value & APIC_SPIV_APIC_ENABLED) !== 0;
    if (enabled === this.softwareEnabled) return;
    this.softwareEnabled = enabled;
    this.vm.apicMapDirty = true;
  }

  setXapicId(id: number): void {
    this.setMapped(APIC.ID, (id & 0xff) << 24);
  }

  /** A register of which the APIC map is made. */
  setMapped(offset: number, value: number): void {
    this.setReg(offset, value);
    this.vm.apicMapDirty = true;
  }

  /** `apic_manage_nmi_watchdog`: the PIT's ticks reach vCPUs whose LVT0 is in NMI mode. */
  manageNmiWatchdog(lvt0: number): void {
    const nmi = (lvt0 & (APIC_MODE_MASK | APIC_LVT_MASKED)) === APIC_DM.NMI;
    if (nmi === this.lvt0InNmiMode) return;
    this.lvt0InNmiMode = nmi;
    this.vm.vapicsInNmiMode += nmi ? 1 : -1;
  }

  /** Says that IRR may hold something, after the page was written as a whole. */
  irrChanged(): void {
    this.irrPending = true;
  }

  /** The APIC's part of `kvm_vcpu_after_set_cpuid`. */
  afterSetCpuid(tscDeadlineTimer: boolean): void {
    this.timer.modeMask = tscDeadlineTimer ? 3 << 17 : 1 << 17;
    this.setVersion();
  }

  /** `kvm_apic_after_set_mcg_cap`. @param cmci MCG_CMCI_P */
  afterSetMcgCap(cmci: boolean): void {
    const entries = cmci ? LVT_REGISTERS.length : LVT_ENTRIES;
    if (entries > this.lvtEntries) this.setReg(APIC.LVTCMCI, APIC_LVT_MASKED);
    this.lvtEntries = entries;
    this.setVersion();
  }

  /** `kvm_apic_set_version`: with a split irqchip and x2APIC the guest may suppress EOI broadcasts. */
  setVersion(): void {
    const directedEoi = this.host.cpuidX2apic && this.vm.settings.irqchipMode === 'split' ? APIC_LVR_DIRECTED_EOI : 0;
    this.setReg(APIC.LVR, APIC_VERSION | ((this.lvtEntries - 1) << 16) | directedEoi);
  }

  /** IA32_APIC_BASE. */
  get apicBase(): bigint {
    return this.base;
  }

  /** `__kvm_apic_set_base`; the caller has checked the value, and recalculates the map afterwards. */
  setBase(value: bigint): void {
    const changed = this.base ^ value;
    this.base = value;
    this.mode = apicMode(value);
    this.address = apicBaseAddress(value);
    if ((changed & MSR_IA32_APICBASE_ENABLE) !== 0n) {
      if (this.hardwareEnabled) this.setXapicId(this.id);
      else this.vm.apicMapDirty = true;
    }
    if ((changed & X2APIC_ENABLE) === 0n) return;
    if (this.x2apic) {
      this.setMapped(APIC.ID, this.id);
      this.setMapped(APIC.LDR, x2apicLdr(this.id));
    } else if (this.hardwareEnabled) this.setXapicId(this.id);
  }

  /** `kvm_free_lapic`. */
  free(): void {
    this.timer.stop();
    this.manageNmiWatchdog(APIC_LVT_MASKED);
    for (const charge of this.charges) charge.release();
  }
}
