import { describe, expect, it } from 'vitest';
import { Failure } from '../../../../../../server/kernel/failure.js';
import { IRQ_SOURCE } from '../../../../../../server/kernel/kvm/x86/irq/irq-line.js';
import {
  createRoutingTable,
  defaultRouting,
  type RoutingEntry,
} from '../../../../../../server/kernel/kvm/x86/irq/irq-routing.js';
import { kvm_irq_routing_irqchip, kvm_irq_routing_msi } from '../../../../../../server/kernel/uapi/irq-structs.js';
import { IrqBench, takeInterrupt } from './fixture.js';

const irqchip = (gsi: number, chip: number, pin: number, flags = 0): RoutingEntry => ({
  gsi,
  type: 1,
  flags,
  pad: 0,
  u: kvm_irq_routing_irqchip.encode({ irqchip: chip, pin }),
});
const msi = (gsi: number, data: number, addressHi = 0, flags = 0): RoutingEntry => ({
  gsi,
  type: 2,
  flags,
  pad: 0,
  u: kvm_irq_routing_msi.encode({ address_lo: 0xfee0_0000, address_hi: addressHi, data }),
});

/** 'ok' or the reason of the refusal. */
const outcome = (entries: RoutingEntry[], settings: Partial<IrqBench['settings']> = {}): string => {
  const bench = new IrqBench();
  const table = createRoutingTable(entries, { ...bench.settings, ...settings });
  return table instanceof Failure ? `${table.errno} ${table.reason}` : 'ok';
};

describe('GSI routing', () => {
  it('accepts and refuses what recorded KVM does', () => {
    expect(outcome([])).toBe('ok');
    expect(outcome([irqchip(0, 0, 0)])).toBe('ok');
    expect(outcome([irqchip(0, 1, 7)])).toBe('ok');
    expect(outcome([irqchip(0, 2, 23)])).toBe('ok');
    expect(outcome([irqchip(0, 2, 24)])).toBe('EINVAL ROUTE_PIN_RANGE');
    expect(outcome([irqchip(0, 0, 8)])).toBe('EINVAL ROUTE_PIN_RANGE');
    expect(outcome([irqchip(0, 3, 0)])).toBe('EINVAL ROUTE_IRQCHIP');
    expect(outcome([irqchip(4095, 0, 0)])).toBe('ok');
    expect(outcome([irqchip(4096, 0, 0)])).toBe('EINVAL ROUTE_GSI_RANGE');
    expect(outcome([msi(1, 49)])).toBe('ok');
    expect(outcome([msi(1, 49, 0, 1)])).toBe('ok');
    expect(outcome([msi(1, 49, 0, 2)])).toBe('EINVAL ROUTE_FLAGS');
    expect(outcome([irqchip(1, 0, 0, 1)])).toBe('EINVAL ROUTE_FLAGS');
    for (const type of [0, 3, 4, 5, 9]) expect(outcome([{ ...msi(1, 49), type }])).toBe('EINVAL ROUTE_TYPE');
    expect(outcome([msi(1, 49, 1)])).toBe('ok');
    expect(outcome([msi(1, 49, 1)], { x2apicFormat: true })).toBe('EINVAL ROUTE_MSI_ADDRESS');
    expect(outcome([irqchip(1, 0, 1), irqchip(1, 2, 1)])).toBe('ok');
    expect(outcome([irqchip(1, 0, 1), irqchip(1, 0, 2)])).toBe('EINVAL ROUTE_GSI_TAKEN');
    expect(outcome([msi(1, 49), msi(1, 50)])).toBe('EINVAL ROUTE_GSI_TAKEN');
    expect(outcome([irqchip(1, 0, 1), msi(1, 49)])).toBe('EINVAL ROUTE_GSI_TAKEN');
  });

  it('has no chips to lead to with a split irqchip', () => {
    expect(outcome([irqchip(0, 2, 0)], { irqchipMode: 'split' })).toBe('EINVAL ROUTE_NEEDS_IRQCHIP');
    expect(outcome([msi(0, 49)], { irqchipMode: 'split' })).toBe('ok');
  });

  it('leads a GSI to IOAPIC and PIC by default, and tells the sum of what they say', () => {
    const bench = new IrqBench();
    bench.irq.createChips();
    const table = createRoutingTable(defaultRouting(), bench.settings);
    if (table instanceof Failure) throw new Error(table.reason);
    bench.irq.setRouting(table);
    expect(table.map(5).map(({ kind }) => kind)).toEqual(['ioapic', 'pic']);
    expect(table.map(20).map(({ kind }) => kind)).toEqual(['ioapic']);
    expect(table.gsiOf(1, 10)).toBe(10);
    // The IOAPIC's pins are masked, so the PIC's answer is all there is.
    expect(bench.irq.setIrq(IRQ_SOURCE.USERSPACE, 5, true, true)).toBe(1);
    expect(bench.irq.setIrq(IRQ_SOURCE.USERSPACE, 24, true, true)).toBe(-1);
  });

  it('replaces the table as a whole', () => {
    const bench = new IrqBench();
    const { pic } = bench.irq.createChips();
    const table = createRoutingTable([irqchip(40, 0, 5)], bench.settings);
    if (table instanceof Failure) throw new Error(table.reason);
    bench.irq.setRouting(table);
    expect(bench.irq.setIrq(IRQ_SOURCE.USERSPACE, 5, true, true)).toBe(-1);
    expect(bench.irq.setIrq(IRQ_SOURCE.USERSPACE, 40, true, true)).toBe(1);
    expect(Buffer.from(pic.getState('master')).toString('hex')).toBe('202000000000000000000000000000f8');
  });

  it('sends an MSI for a rising line alone', () => {
    const bench = new IrqBench();
    const vcpu = bench.createEnabledVcpu();
    const table = createRoutingTable([msi(3, 0x45)], bench.settings);
    if (table instanceof Failure) throw new Error(table.reason);
    bench.irq.setRouting(table);
    expect(bench.irq.setIrq(IRQ_SOURCE.USERSPACE, 3, true, false)).toBe(1);
    expect(bench.irq.setIrq(IRQ_SOURCE.USERSPACE, 3, false, false)).toBe(-1);
    expect(takeInterrupt(vcpu)).toBe(0x45);
  });

  it('charges kernel memory as it grows, and gives everything back', () => {
    const bench = new IrqBench();
    const before = bench.kmem.chargedByType.get('kvm_irq_routing_table') ?? 0;
    bench.irq.createChips();
    bench.irq.createPit();
    const table = createRoutingTable([msi(4095, 0x45)], bench.settings);
    if (table instanceof Failure) throw new Error(table.reason);
    bench.irq.setRouting(table);
    expect(bench.kmem.chargedByType.get('kvm_irq_routing_table')).toBeGreaterThan(before + 32_000);
    bench.irq.destroy();
    expect(bench.kmem.chargedBytes).toBe(0);
  });
});

describe('the PIT through GSI 0', () => {
  it('reaches PIC and guest, and vCPUs whose LVT0 is in NMI mode', () => {
    const bench = new IrqBench();
    const { pic } = bench.irq.createChips();
    const table = createRoutingTable(defaultRouting(), bench.settings);
    if (table instanceof Failure) throw new Error(table.reason);
    bench.irq.setRouting(table);
    const vcpu = bench.createEnabledVcpu(0);
    const watchdog = bench.createEnabledVcpu(1);
    watchdog.apic.setReg(0x350, 0x400);
    watchdog.apic.manageNmiWatchdog(0x400);
    const pit = bench.irq.createPit();
    pit.write(0x43, 0x34);
    pit.write(0x40, 0xa9);
    pit.write(0x40, 0x04);
    bench.advance(1_000_000n);
    expect(pic.intr).toBe(true);
    expect(vcpu.nmis).toBe(0);
    expect(watchdog.nmis).toBe(1);
    // The guest takes and ends it, so the next tick follows.
    pic.readIrq();
    pic.write(0x20, 0x20);
    bench.advance(1_000_000n);
    expect(pic.intr).toBe(true);
  });
});
