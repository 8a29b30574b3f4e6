import type { KernelTimer } from '../../../timer.js';
import { KVM_IOAPIC_NUM_PINS } from '../../../uapi/constants.js';
import { kvm_ioapic_state } from '../../../uapi/irq-structs.js';
import { apicMatchesDest } from './apic-match.js';
import { APIC, APIC_DEST_SHORTHAND, APIC_DM, APIC_SPIV_DIRECTED_EOI } from './apic-registers.js';
import { RedirectionTable } from './ioapic-redirection.js';
import { IrqLines, type IrqSource } from './irq-line.js';
import type { Lapic } from './lapic.js';
import type { LapicIrq } from './lapic-irq.js';
import { RtcStatus } from './rtc-status.js';

export const IOAPIC_DEFAULT_BASE_ADDRESS = 0xfec0_0000;
export const IOAPIC_MEM_LENGTH = 0x100;
const IOAPIC_VERSION_ID = 0x11;
/** The RTC's pin: its EOIs are tracked for user space (`RTC_GSI`). */
const RTC_PIN = 8;

/** Offsets in the page, and registers behind the window. */
const REG_SELECT = 0x00;
const REG_WINDOW = 0x10;
const REG = { ID: 0x00, VERSION: 0x01, ARB_ID: 0x02, REDIRECTION: 0x10 } as const;

/** EOIs of a level interrupt in a row that leave the line high, before the next one is put off. */
const SUCCESSIVE_IRQ_MAX_COUNT = 10_000;
/** For how long: HZ / 100. */
export const EOI_INJECT_DELAY_NS = 10_000_000n;

/** What the IOAPIC needs from its VM. */
export interface IoapicHost {
  /** `kvm_irq_delivery_to_apic`. */
  deliver(irq: LapicIrq, rtc: RtcStatus | null): number;
  /** `kvm_for_each_vcpu`. */
  lapics(): Iterable<Lapic>;
  /** KVM_REQ_SCAN_IOAPIC on the vCPUs that a message would reach. */
  scanDestinations(irq: LapicIrq): void;
  /** KVM_REQ_SCAN_IOAPIC on every vCPU. */
  scanAll(): void;
  acked(pin: number): void;
  masked(pin: number, mask: boolean): void;
  /** `kvm_irq_has_notifier`. */
  hasAckNotifier(pin: number): boolean;
  /** `kvm_notify_irqfd_resampler`. */
  resample(pin: number): boolean;
  /** The timer of `eoi_inject`. */
  timer(expired: () => void): KernelTimer;
  now(): bigint;
}

/** `struct kvm_ioapic`: the 82093AA with 24 pins (arch/x86/kvm/ioapic.c). */
export class Ioapic {
  private baseAddress = IOAPIC_DEFAULT_BASE_ADDRESS;
  private select = 0;
  private id = 0;
  /** Lines that are high. */
  private irr = 0;
  /** Edges that have been sent, though their line is still high. */
  private irrDelivered = 0;
  private readonly table = new RedirectionTable(KVM_IOAPIC_NUM_PINS);
  private readonly lines = new IrqLines(KVM_IOAPIC_NUM_PINS);
  private readonly rtc = new RtcStatus();
  /** `irq_eoi`: EOIs in a row that found the line still high. */
  private readonly successive = new Uint32Array(KVM_IOAPIC_NUM_PINS);
  private readonly eoiInject: KernelTimer;

  constructor(private readonly host: IoapicHost) {
    this.eoiInject = host.timer(() => this.injectPostponed());
  }

  /** `kvm_ioapic_set_irq`. @returns above 0 how many vCPUs got it, 0 coalesced, -1 masked or nobody there */
  setIrq(pin: number, source: IrqSource, level: boolean, lineStatus: boolean): number {
    return this.setLine(pin, this.lines.set(pin, source, level), lineStatus);
  }

  /** `ioapic_set_irq`. */
  private setLine(pin: number, high: boolean, lineStatus: boolean): number {
    const mask = 1 << pin;
    if (!high) {
      this.irr &= ~mask;
      return 1;
    }
    if (pin === RTC_PIN && lineStatus && this.rtc.pendingEoi > 0) return 0;
    const before = this.irr;
    this.irr |= mask;
    if (!this.table.level(pin)) {
      this.irrDelivered &= ~mask;
      if (before === this.irr) return 0;
    }
    return this.service(pin, lineStatus);
  }

  /** `ioapic_service`: sends the pin's message. */
  private service(pin: number, lineStatus: boolean): number {
    const level = this.table.level(pin);
    if (this.table.masked(pin) || (level && this.table.remoteIrr(pin))) return -1;
    if (!level) this.irrDelivered |= 1 << pin;
    const tracked = pin === RTC_PIN && lineStatus;
    const result = this.host.deliver(this.message(pin), tracked ? this.rtc : null);
    if (tracked) this.rtc.pendingEoi = Math.max(result, 0);
    if (result !== 0 && level) this.table.setRemoteIrr(pin, true);
    return result;
  }

  private message(pin: number): LapicIrq {
    return {
      vector: this.table.vector(pin),
      deliveryMode: this.table.deliveryMode(pin),
      logical: this.table.logical(pin),
      level: true,
      levelTriggered: this.table.level(pin),
      shorthand: APIC_DEST_SHORTHAND.NONE,
      destId: this.table.destId(pin),
      msiRedirHint: false,
    };
  }

  /**
   * `kvm_ioapic_update_eoi`: a vCPU has ended `vector`. A level interrupt whose line is still high is sent again.
   * @param levelTriggered what the APIC's TMR says of the vector
   */
  updateEoi(apic: Lapic, vector: number, levelTriggered: boolean): void {
    if (this.rtc.vectorOf(apic.id) === vector) this.rtc.eoi(apic.id);
    for (let pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++)
      if (this.table.vector(pin) === vector) this.endPin(apic, pin, levelTriggered);
  }

  /** `kvm_ioapic_update_eoi_one`. */
  private endPin(apic: Lapic, pin: number, levelTriggered: boolean): void {
    // Remote IRR is cleared after the notifiers: what they raise stays in irr and is sent below.
    this.host.acked(pin);
    if (!levelTriggered || (apic.reg(APIC.SPIV) & APIC_SPIV_DIRECTED_EOI) !== 0) return;
    this.table.setRemoteIrr(pin, false);
    if (this.table.masked(pin) || (this.irr & (1 << pin)) === 0) {
      this.successive[pin] = 0;
      return;
    }
    const count = (this.successive[pin] ?? 0) + 1;
    const storm = count === SUCCESSIVE_IRQ_MAX_COUNT;
    this.successive[pin] = storm ? 0 : count;
    // Hardware would not send it again at once; a guest that never quiets its device gets time to run.
    if (storm) this.eoiInject.start(this.host.now() + EOI_INJECT_DELAY_NS);
    else this.service(pin, false);
  }

  /** `kvm_ioapic_eoi_inject_work`. */
  private injectPostponed(): void {
    for (let pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++)
      if (this.table.level(pin) && (this.irr & (1 << pin)) !== 0 && !this.table.remoteIrr(pin)) this.service(pin, false);
  }

  /** `ioapic_mmio_read`: null if the page is elsewhere. */
  mmioRead(address: number, length: number): Uint8Array | null {
    const offset = address - this.baseAddress;
    if (offset < 0 || offset >= IOAPIC_MEM_LENGTH) return null;
    const data = new Uint8Array(8);
    new DataView(data.buffer).setUint32(0, this.readPage(offset), true);
    return data.slice(0, length);
  }

  private readPage(offset: number): number {
    if (offset === REG_SELECT) return this.select;
    return offset === REG_WINDOW ? this.readWindow() : 0;
  }

  private readWindow(): number {
    switch (this.select) {
      case REG.VERSION:
        return ((KVM_IOAPIC_NUM_PINS - 1) << 16) | IOAPIC_VERSION_ID;
      case REG.ID:
      case REG.ARB_ID:
        return (this.id & 0xf) << 24;
      default: {
        const pin = (this.select - REG.REDIRECTION) >>> 1;
        return pin < KVM_IOAPIC_NUM_PINS ? this.table.word(pin, this.select & 1) : 0xffff_ffff;
      }
    }
  }

  /** `ioapic_mmio_write`: false if the page is elsewhere. */
  mmioWrite(address: number, bytes: Uint8Array): boolean {
    const offset = address - this.baseAddress;
    if (offset < 0 || offset >= IOAPIC_MEM_LENGTH) return false;
    const word = new Uint8Array(4);
    word.set(bytes.subarray(0, 4));
    const value = new DataView(word.buffer).getUint32(0, true);
    if (offset === REG_SELECT) this.select = value & 0xff;
    else if (offset === REG_WINDOW) this.writeWindow(value);
    return true;
  }

  /** `ioapic_write_indirect`. */
  private writeWindow(value: number): void {
    if (this.select === REG.VERSION || this.select === REG.ARB_ID) return;
    if (this.select === REG.ID) {
      this.id = (value >>> 24) & 0xf;
      return;
    }
    const pin = (this.select - REG.REDIRECTION) >>> 1;
    if (pin < KVM_IOAPIC_NUM_PINS) this.writeRedirection(pin, this.select & 1, value);
  }

  private writeRedirection(pin: number, half: number, value: number): void {
    const maskBefore = this.table.masked(pin);
    const before = this.message(pin);
    this.table.write(pin, half, value);
    const mask = this.table.masked(pin);
    if (mask !== maskBefore) this.host.masked(pin, mask);
    this.serviceUnmasked(pin);
    const after = this.message(pin);
    if (after.deliveryMode !== APIC_DM.FIXED) {
      this.host.scanAll();
      return;
    }
    this.host.scanDestinations(after);
    // The old destination may still have to see an EOI of this vector.
    if (before.destId !== after.destId || before.logical !== after.logical)
      this.host.scanDestinations({ ...after, destId: before.destId });
  }

  /**
   * A level interrupt that is pending on a pin which has just been opened. Its device may have dropped the line while the
   * pin was masked: a resampler, if there is one, finds out and raises it again, instead of an interrupt too many.
   */
  private serviceUnmasked(pin: number): void {
    const { table } = this;
    if (!table.level(pin) || (this.irr & (1 << pin)) === 0 || table.masked(pin) || table.remoteIrr(pin)) return;
    if (this.host.resample(pin)) this.irr &= ~(1 << pin);
    else this.service(pin, false);
  }

  /** `kvm_ioapic_scan_entry`: tells an APIC which EOIs it has to report. */
  scan(apic: Lapic): void {
    const owed = this.rtc.vectorOf(apic.id);
    if (owed !== undefined) apic.handleEoiOf(owed);
    for (let pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++) {
      if (!this.table.level(pin) && pin !== RTC_PIN && !this.host.hasAckNotifier(pin)) continue;
      const irq = this.message(pin);
      if (apicMatchesDest(apic, null, irq)) apic.handleEoiOf(irq.vector);
      else apic.handleStaleEoiOf(irq.vector);
    }
  }

  /** `kvm_rtc_eoi_tracking_restore_one`: after a vCPU's local APIC has been set. */
  restoreRtcEoi(apic: Lapic): void {
    const irq = this.message(RTC_PIN);
    if (apicMatchesDest(apic, null, irq)) this.rtc.restore(apic.id, irq.vector, apic.pendingEoi(irq.vector));
  }

  /** KVM_GET_IRQCHIP (`kvm_get_ioapic`). */
  getState(): Uint8Array {
    return kvm_ioapic_state.encode({
      base_address: BigInt(this.baseAddress),
      ioregsel: this.select,
      id: this.id,
      irr: (this.irr & ~this.irrDelivered) >>> 0,
      redirtbl: this.table.entries(),
    });
  }

  /** KVM_SET_IRQCHIP (`kvm_set_ioapic`): lines that were high are raised again. */
  setState(bytes: Uint8Array): void {
    const state = kvm_ioapic_state.decode(bytes);
    this.baseAddress = Number(state.base_address);
    this.select = state.ioregsel;
    this.id = state.id;
    this.table.restore(state.redirtbl);
    this.irr = 0;
    this.irrDelivered = 0;
    this.host.scanAll();
    this.rtc.reset();
    for (let pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++) if (state.irr & (1 << pin)) this.setLine(pin, true, true);
    this.rtc.reset();
    for (const apic of this.host.lapics()) this.restoreRtcEoi(apic);
  }

  /** `kvm_ioapic_destroy`. */
  destroy(): void {
    this.eoiInject.cancel();
  }
}
