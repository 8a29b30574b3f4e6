import type { Clock } from '../../../clock.js';
import type { KmemCharge, KmemOwner } from '../../../kmem.js';
import { KernelTimer, type TimerQueue } from '../../../timer.js';
import { KVM_IRQCHIP } from '../../../uapi/constants.js';
import { REQUEST } from '../../vcpu.js';
import { type ApicMap, buildApicMap, deliverToApic, destinationsOf } from './apic-map.js';
import { APIC } from './apic-registers.js';
import { I8254, PIT_GSI } from './i8254.js';
import { I8259 } from './i8259.js';
import { Ioapic } from './ioapic.js';
import { apicMapBytes, IRQ_KMEM_SIZE } from './irq-kmem.js';
import { IRQ_SOURCE, type IrqSource } from './irq-line.js';
import { IrqNotifiers } from './irq-notifiers.js';
import { type IrqRoute, IrqRoutingTable } from './irq-routing.js';
import type { Lapic } from './lapic.js';
import { type LapicIrq, type MsiMessage, msiToLapicIrq } from './lapic-irq.js';
import type { RtcStatus } from './rtc-status.js';

/** What KVM_ENABLE_CAP and the VM's ioctls have set; `VmArch` keeps it. */
export interface IrqSettings {
  /** `irqchip_mode`. */
  readonly irqchipMode: 'none' | 'kernel' | 'split';
  readonly bspVcpuId: number;
  /** KVM_X2APIC_API_USE_32BIT_IDS. */
  readonly x2apicFormat: boolean;
  readonly x2apicBroadcastQuirkDisabled: boolean;
  readonly apicBusCycleNs: number;
  /** `kvm_check_has_quirk`: a bit of KVM_X86_QUIRK. */
  quirkEnabled(quirk: number): boolean;
}

/** What the interrupt controllers of a VM need around them. */
export interface IrqHost {
  readonly clock: Clock;
  readonly timers: TimerQueue;
  readonly kmem: KmemOwner;
  /** Local APICs of the online vCPUs, by index (`kvm_for_each_vcpu`). */
  lapics(): Iterable<Lapic>;
  /** AMD keeps ICR of x2APIC mode in two registers (`kvm_x86_ops.x2apic_icr_is_split`). */
  readonly x2apicIcrIsSplit: boolean;
}

/** The full in-kernel irqchip. */
export interface Irqchip {
  readonly pic: I8259;
  readonly ioapic: Ioapic;
}

/** A message that a VM's settings do not allow (`kvm_msi_route_invalid`): -EINVAL. */
export const MSI_INVALID = -22;

/** The interrupt part of `struct kvm_arch`: chips, routing, the map of local APICs, notifiers. */
export class VmIrq {
  /** Null unless KVM_CREATE_IRQCHIP was called. */
  chips: Irqchip | null = null;
  pit: I8254 | null = null;
  readonly notifiers: IrqNotifiers;
  /** GSIs that user space's IOAPIC has (KVM_CAP_SPLIT_IRQCHIP). */
  reservedIoapicPins = 0;
  /** Null before the first local APIC, and when two of them have one id. */
  apicMap: ApicMap | null = null;
  /** A register of which the map is made has changed (`apic_map_dirty`). */
  apicMapDirty = false;
  /** vCPUs whose LVT0 is in NMI mode. */
  vapicsInNmiMode = 0;
  private routing = new IrqRoutingTable();
  private readonly routingCharge: KmemCharge;
  private mapCharge: KmemCharge | null = null;
  private chipCharges: KmemCharge[] = [];
  private pitCharge: KmemCharge | null = null;

  constructor(
    readonly settings: IrqSettings,
    readonly host: IrqHost,
  ) {
    this.routingCharge = host.kmem.charge('kvm_irq_routing_table', this.routing.bytes);
    this.notifiers = new IrqNotifiers(() => {
      if (this.chips !== null) this.scanAll();
    });
  }

  // Chips.

  /** `kvm_pic_init` and `kvm_ioapic_init`, without their places on the buses. */
  createChips(): Irqchip {
    this.chipCharges.push(this.host.kmem.charge('kvm_pic', IRQ_KMEM_SIZE.kvm_pic));
    this.chipCharges.push(this.host.kmem.charge('kvm_ioapic', IRQ_KMEM_SIZE.kvm_ioapic));
    this.chips = { pic: this.createPic(), ioapic: this.createIoapic() };
    return this.chips;
  }

  private createPic(): I8259 {
    const chipOf = (pin: number): number => (pin < 8 ? KVM_IRQCHIP.PIC_MASTER : KVM_IRQCHIP.PIC_SLAVE);
    const taker = (): Lapic | undefined => [...this.host.lapics()].find((apic) => apic.acceptsPicInterrupt());
    return new I8259({
      wake: () => taker()?.event(),
      get taken() {
        return taker() !== undefined;
      },
      acked: (pin) => this.notifyAcked(chipOf(pin), pin),
      masked: (pin, mask) => this.fireMask(chipOf(pin), pin, mask),
    });
  }

  private createIoapic(): Ioapic {
    return new Ioapic({
      deliver: (irq, rtc) => this.deliverToApic(null, irq, rtc),
      lapics: () => this.host.lapics(),
      scanDestinations: (irq) => {
        for (const apic of destinationsOf(this, irq)) apic.host.request(REQUEST.SCAN_IOAPIC);
      },
      scanAll: () => this.scanAll(),
      acked: (pin) => this.notifyAcked(KVM_IRQCHIP.IOAPIC, pin),
      masked: (pin, mask) => this.fireMask(KVM_IRQCHIP.IOAPIC, pin, mask),
      hasAckNotifier: (pin) => this.notifiers.hasAck(this.routing.gsiOf(KVM_IRQCHIP.IOAPIC, pin)),
      resample: (pin) => this.notifiers.resample(this.routing.gsiOf(KVM_IRQCHIP.IOAPIC, pin)),
      timer: (expired) =>
        new KernelTimer(this.host.timers, () => {
          expired();
          return null;
        }),
      now: () => this.host.clock.now(),
    });
  }

  /** `kvm_create_pit`, without its places on the bus. */
  createPit(): I8254 {
    this.pitCharge = this.host.kmem.charge('kvm_pit', IRQ_KMEM_SIZE.kvm_pit);
    this.pit = new I8254({
      clock: this.host.clock,
      timers: this.host.timers,
      notifiers: this.notifiers,
      tick: () => this.pitTick(),
    });
    return this.pit;
  }

  /** Channel 0's edge on GSI 0, and the NMI watchdog by virtual wire. */
  private pitTick(): void {
    this.setIrq(IRQ_SOURCE.PIT, PIT_GSI, true, false);
    this.setIrq(IRQ_SOURCE.PIT, PIT_GSI, false, false);
    if (this.vapicsInNmiMode > 0) for (const apic of this.host.lapics()) apic.localDeliver(APIC.LVT0);
  }

  // Routing.

  get routes(): IrqRoutingTable {
    return this.routing;
  }

  /** Puts a new table in place; user space's IOAPIC may have other vectors from now on. */
  setRouting(table: IrqRoutingTable): void {
    this.routing = table;
    this.routingCharge.resize(table.bytes);
    if (this.settings.irqchipMode === 'split') this.scanAll();
  }

  /**
   * `kvm_set_irq`: raises or lowers a GSI. @param lineStatus the caller wants to know of coalesced RTC ticks
   * @returns how many took it, 0 coalesced, -1 ignored
   */
  setIrq(source: IrqSource, gsi: number, level: boolean, lineStatus: boolean): number {
    let status = -1;
    for (const route of this.routing.map(gsi)) {
      const result = this.setRoute(route, source, level, lineStatus);
      if (result >= 0) status = Math.max(status, 0) + result;
    }
    return status;
  }

  private setRoute(route: IrqRoute, source: IrqSource, level: boolean, lineStatus: boolean): number {
    switch (route.kind) {
      case 'pic':
        return this.chips?.pic.setIrq(route.pin, source, level) ?? -1;
      case 'ioapic':
        return this.chips?.ioapic.setIrq(route.pin, source, level, lineStatus) ?? -1;
      case 'msi':
        return level ? this.setMsi(route.message) : -1;
    }
  }

  /** `kvm_set_msi`. @returns how many APICs accepted it, -1 if there was nobody, MSI_INVALID */
  setMsi(message: MsiMessage): number {
    const { x2apicFormat } = this.settings;
    if (x2apicFormat && (message.addressHi & 0xff) !== 0) return MSI_INVALID;
    return this.deliverToApic(null, msiToLapicIrq(message, x2apicFormat));
  }

  /** `kvm_notify_acked_irq`. */
  private notifyAcked(chip: number, pin: number): void {
    const gsi = this.routing.gsiOf(chip, pin);
    if (gsi !== -1) this.notifiers.acked(gsi);
  }

  private fireMask(chip: number, pin: number, mask: boolean): void {
    const gsi = this.routing.gsiOf(chip, pin);
    if (gsi !== -1) this.notifiers.masked(gsi, mask);
  }

  // Local APICs.

  /** `kvm_irq_delivery_to_apic`. @param source null for a message from a device */
  deliverToApic(source: Lapic | null, irq: LapicIrq, rtc: RtcStatus | null = null): number {
    return deliverToApic(this, source, irq, rtc);
  }

  /** `kvm_recalculate_apic_map`, if a register has been written of which the map is made. */
  recalculateApicMap(): void {
    if (!this.apicMapDirty) return;
    this.apicMapDirty = false;
    this.apicMap = buildApicMap(this.host.lapics(), this.settings.x2apicFormat);
    const bytes = this.apicMap === null ? 0 : apicMapBytes(this.apicMap.maxApicId);
    this.mapCharge ??= this.host.kmem.charge('kvm_apic_map', 0);
    this.mapCharge.resize(bytes);
    this.scanAll();
  }

  /** `kvm_make_scan_ioapic_request`. */
  scanAll(): void {
    for (const apic of this.host.lapics()) apic.host.request(REQUEST.SCAN_IOAPIC);
  }

  /** `kvm_free_pit`. */
  destroyPit(): void {
    this.pit?.destroy();
    this.pit = null;
    this.pitCharge?.release();
    this.pitCharge = null;
  }

  /** `kvm_pic_destroy`, `kvm_ioapic_destroy`. */
  destroyChips(): void {
    this.chips?.ioapic.destroy();
    this.chips = null;
    for (const charge of this.chipCharges) charge.release();
    this.chipCharges = [];
  }

  /** What `kvm_arch_destroy_vm` and `kvm_free_irq_routing` free; the local APICs go with their vCPUs before. */
  destroy(): void {
    this.destroyPit();
    this.destroyChips();
    this.mapCharge?.release();
    this.mapCharge = null;
    this.routingCharge.release();
  }
}
