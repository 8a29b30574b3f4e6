import { Failure, type Result } from '../../../failure.js';
import { LazyMap } from '../../../lazy-map.js';
import { KVM_IOAPIC_NUM_PINS, KVM_IRQ_ROUTING, KVM_IRQCHIP, KVM_MSI_FLAG } from '../../../uapi/constants.js';
import { type kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irq_routing_msi } from '../../../uapi/irq-structs.js';
import type { StructValue } from '../../../uapi/struct.js';
import { kvmallocSize } from '../../kmem-sizes.js';
import { PIC_NUM_PINS } from './i8259.js';
import type { MsiMessage } from './lapic-irq.js';
import type { IrqSettings } from './vm-irq.js';

/** `KVM_MAX_IRQ_ROUTES`: entries, and GSIs. */
export const KVM_MAX_IRQ_ROUTES = 4096;

/** `struct kvm_kernel_irq_routing_entry`: where one GSI leads. PIC pins are 0 to 15 over both chips. */
export type IrqRoute =
  | { readonly kind: 'pic'; readonly chip: number; readonly pin: number }
  | { readonly kind: 'ioapic'; readonly chip: number; readonly pin: number }
  | { readonly kind: 'msi'; readonly message: MsiMessage };

/** One `kvm_irq_routing_entry` as user space gave it. */
export type RoutingEntry = StructValue<typeof kvm_irq_routing_entry>;

/**
 * `struct kvm_irq_routing_table` with its pin maps and a list head for each GSI; `struct kvm_kernel_irq_routing_entry`. Counted.
 */
const TABLE_BYTES = 3 * KVM_IOAPIC_NUM_PINS * 4 + 8;
const GSI_BYTES = 8;
const ROUTE_BYTES = 64;

const refuse = (reason: string, index: number, field: string, given: number, allowed: string): Failure =>
  new Failure('EINVAL', reason, 'setup_routing_entry', { field: `entries[${index}].${field}`, given: String(given), allowed });

const irqchipRoute = (entry: RoutingEntry, index: number, split: boolean): Result<IrqRoute> => {
  const { irqchip, pin } = kvm_irq_routing_irqchip.decode(entry.u);
  if (split) return refuse('ROUTE_NEEDS_IRQCHIP', index, 'type', entry.type, 'MSI routes with a split irqchip');
  switch (irqchip) {
    case KVM_IRQCHIP.PIC_MASTER:
    case KVM_IRQCHIP.PIC_SLAVE:
      if (pin >= PIC_NUM_PINS / 2) return refuse('ROUTE_PIN_RANGE', index, 'pin', pin, '0 to 7');
      return { kind: 'pic', chip: irqchip, pin: irqchip === KVM_IRQCHIP.PIC_SLAVE ? pin + PIC_NUM_PINS / 2 : pin };
    case KVM_IRQCHIP.IOAPIC:
      if (pin >= KVM_IOAPIC_NUM_PINS) return refuse('ROUTE_PIN_RANGE', index, 'pin', pin, '0 to 23');
      return { kind: 'ioapic', chip: irqchip, pin };
    default:
      return refuse('ROUTE_IRQCHIP', index, 'irqchip', irqchip, '0 to 2');
  }
};

const msiRoute = (entry: RoutingEntry, index: number, x2apicFormat: boolean): Result<IrqRoute> => {
  const { address_lo, address_hi, data } = kvm_irq_routing_msi.decode(entry.u);
  if (x2apicFormat && (address_hi & 0xff) !== 0)
    return refuse('ROUTE_MSI_ADDRESS', index, 'address_hi', address_hi, 'bits 0-7 zero with 32-bit APIC ids');
  return { kind: 'msi', message: { addressLo: address_lo, addressHi: address_hi, data } };
};

/** `kvm_set_routing_entry`. Hyper-V and Xen routes are unknown here, as in a kernel built without them. */
const toRoute = (entry: RoutingEntry, index: number, settings: IrqSettings): Result<IrqRoute> => {
  switch (entry.type) {
    case KVM_IRQ_ROUTING.IRQCHIP:
      return irqchipRoute(entry, index, settings.irqchipMode === 'split');
    case KVM_IRQ_ROUTING.MSI:
      return msiRoute(entry, index, settings.x2apicFormat);
    default:
      return refuse('ROUTE_TYPE', index, 'type', entry.type, 'IRQCHIP (1), MSI (2)');
  }
};

/** `struct kvm_irq_routing_table`: from GSI to pins and messages, and back from pins to their GSI. */
export class IrqRoutingTable {
  private readonly routes = new LazyMap<number, IrqRoute[]>();
  private readonly gsis = new LazyMap<string, number>();
  private entries = 0;
  /** `nr_rt_entries`: highest GSI and one. */
  private gsiCount = 1;

  /** `kvm_irq_map_gsi`. */
  map(gsi: number): readonly IrqRoute[] {
    return this.routes.get(gsi) ?? [];
  }

  /** `kvm_irq_map_chip_pin`; -1: no GSI leads there. */
  gsiOf(chip: number, pin: number): number {
    return this.gsis.get(`${chip}:${pin}`) ?? -1;
  }

  /** MSI routes of the GSIs below `pins`: those that user space's IOAPIC has (split irqchip). */
  *messagesBelow(pins: number): Iterable<MsiMessage> {
    for (const [gsi, routes] of this.routes) {
      if (gsi >= pins) continue;
      for (const route of routes) if (route.kind === 'msi') yield route.message;
    }
  }

  /** The routes as KVM_SET_GSI_ROUTING takes them, by GSI; KVM_MSI_VALID_DEVID, which x86 does not look at, is not among it. */
  list(): RoutingEntry[] {
    return [...this.routes].flatMap(([gsi, routes]) => routes.map((route) => toEntry(gsi, route)));
  }

  /** Routes in all. */
  get size(): number {
    return this.entries;
  }

  /** Kernel memory of the table. */
  get bytes(): number {
    return kvmallocSize(TABLE_BYTES + this.gsiCount * GSI_BYTES) + this.entries * ROUTE_BYTES;
  }

  /** `setup_routing_entry`: one GSI may lead to different chips, but to one MSI alone. */
  add(entry: RoutingEntry, index: number, settings: IrqSettings): Failure | null {
    if (entry.gsi >= KVM_MAX_IRQ_ROUTES) return refuse('ROUTE_GSI_RANGE', index, 'gsi', entry.gsi, 'below 4096');
    const validFlags = entry.type === KVM_IRQ_ROUTING.MSI ? KVM_MSI_FLAG.VALID_DEVID : 0;
    if ((entry.flags & ~validFlags) !== 0) return refuse('ROUTE_FLAGS', index, 'flags', entry.flags, String(validFlags));
    const present = this.routes.get(entry.gsi) ?? [];
    const chip = entry.type === KVM_IRQ_ROUTING.IRQCHIP ? kvm_irq_routing_irqchip.decode(entry.u).irqchip : -1;
    if (present.some((route) => route.kind === 'msi' || chip === -1 || route.chip === chip))
      return refuse('ROUTE_GSI_TAKEN', index, 'gsi', entry.gsi, 'one route to each chip, or one MSI');
    const route = toRoute(entry, index, settings);
    if (route instanceof Failure) return route;
    this.routes.set(entry.gsi, [...present, route]);
    if (route.kind !== 'msi') this.gsis.set(`${route.chip}:${route.pin}`, entry.gsi);
    this.entries++;
    this.gsiCount = Math.max(this.gsiCount, entry.gsi + 1);
    return null;
  }
}

/** Builds a table (`kvm_set_irq_routing`); the GSIs of all entries are looked at before anything else. */
export const createRoutingTable = (entries: readonly RoutingEntry[], settings: IrqSettings): Result<IrqRoutingTable> => {
  const table = new IrqRoutingTable();
  const outOfRange = entries.findIndex(({ gsi }) => gsi >= KVM_MAX_IRQ_ROUTES);
  if (outOfRange >= 0) return refuse('ROUTE_GSI_RANGE', outOfRange, 'gsi', entries[outOfRange]?.gsi ?? 0, 'below 4096');
  for (const [index, entry] of entries.entries()) {
    const refused = table.add(entry, index, settings);
    if (refused !== null) return refused;
  }
  return table;
};

const chipEntry = (gsi: number, irqchip: number, pin: number): RoutingEntry => ({
  gsi,
  type: KVM_IRQ_ROUTING.IRQCHIP,
  flags: 0,
  pad: 0,
  u: kvm_irq_routing_irqchip.encode({ irqchip, pin }),
});

/** The other way round than `toRoute`. */
const toEntry = (gsi: number, route: IrqRoute): RoutingEntry => {
  if (route.kind === 'msi') {
    const { addressLo, addressHi, data } = route.message;
    const u = kvm_irq_routing_msi.encode({ address_lo: addressLo, address_hi: addressHi, data });
    return { gsi, type: KVM_IRQ_ROUTING.MSI, flags: 0, pad: 0, u };
  }
  return chipEntry(gsi, route.chip, route.chip === KVM_IRQCHIP.PIC_SLAVE ? route.pin - PIC_NUM_PINS / 2 : route.pin);
};

/** `default_routing`: GSI n is pin n of the IOAPIC, and of the PICs as far as they go. */
export const defaultRouting = (): RoutingEntry[] =>
  Array.from({ length: KVM_IOAPIC_NUM_PINS }, (_, gsi) => {
    const ioapic = chipEntry(gsi, KVM_IRQCHIP.IOAPIC, gsi);
    if (gsi >= PIC_NUM_PINS) return [ioapic];
    return [ioapic, chipEntry(gsi, gsi < 8 ? KVM_IRQCHIP.PIC_MASTER : KVM_IRQCHIP.PIC_SLAVE, gsi % 8)];
  }).flat();
