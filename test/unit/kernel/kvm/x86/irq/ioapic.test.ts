import { describe, expect, it } from 'vitest';
import { APIC } from '../../../../../../server/kernel/kvm/x86/irq/apic-registers.js';
import { EOI_INJECT_DELAY_NS, type Ioapic } from '../../../../../../server/kernel/kvm/x86/irq/ioapic.js';
import { IRQ_SOURCE } from '../../../../../../server/kernel/kvm/x86/irq/irq-line.js';
import { createRoutingTable, defaultRouting } from '../../../../../../server/kernel/kvm/x86/irq/irq-routing.js';
import { IrqBench, scan, type TestVcpu, takeInterrupt, word, writeApic } from './fixture.js';

const BASE = 0xfec0_0000;
const LEVEL = 1 << 15;
const MASKED = 1 << 16;
const REMOTE_IRR = 1 << 14;
const { USERSPACE } = IRQ_SOURCE;

const writeRegister = (ioapic: Ioapic, register: number, value: number): void => {
  ioapic.mmioWrite(BASE, word(register));
  ioapic.mmioWrite(BASE + 0x10, word(value));
};

const readRegister = (ioapic: Ioapic, register: number): number => {
  ioapic.mmioWrite(BASE, word(register));
  const bytes = ioapic.mmioRead(BASE + 0x10, 4);
  return bytes === null ? -1 : new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
};

/** Pin to vector, fixed delivery to the APIC with id 0. */
const route = (ioapic: Ioapic, pin: number, low: number, destId = 0): void => {
  writeRegister(ioapic, 0x11 + 2 * pin, destId << 24);
  writeRegister(ioapic, 0x10 + 2 * pin, low);
};

interface Bench {
  readonly bench: IrqBench;
  readonly ioapic: Ioapic;
  readonly vcpu: TestVcpu;
}

const create = (): Bench => {
  const bench = new IrqBench();
  const { ioapic } = bench.irq.createChips();
  const table = createRoutingTable(defaultRouting(), bench.settings);
  if ('errno' in table) throw new Error('default routing refused');
  bench.irq.setRouting(table);
  return { bench, ioapic, vcpu: bench.createEnabledVcpu() };
};

const eoi = ({ vcpu }: Bench): void => writeApic(vcpu.apic, APIC.EOI, 0);

describe('the IOAPIC', () => {
  it('has the version and the reset state of recorded KVM', () => {
    const { ioapic } = create();
    expect(readRegister(ioapic, 1)).toBe(0x0017_0011);
    const state = Buffer.from(ioapic.getState()).toString('hex');
    expect(state.slice(0, 48)).toBe('0000c0fe0000000001000000000000000000000000000000');
    expect(state.slice(48)).toBe('0000010000000000'.repeat(24));
  });

  it('sends an edge once, and says 0 while the line stays high', () => {
    const world = create();
    route(world.ioapic, 4, 0x44);
    expect(world.ioapic.setIrq(4, USERSPACE, true, false)).toBe(1);
    expect(world.ioapic.setIrq(4, USERSPACE, true, false)).toBe(0);
    expect(takeInterrupt(world.vcpu)).toBe(0x44);
    expect(takeInterrupt(world.vcpu)).toBe(-1);
    world.ioapic.setIrq(4, USERSPACE, false, false);
    expect(world.ioapic.setIrq(4, USERSPACE, true, false)).toBe(1);
  });

  it('drops an edge on a masked pin, and a level is sent when the pin is opened', () => {
    const world = create();
    route(world.ioapic, 4, 0x44 | MASKED);
    expect(world.ioapic.setIrq(4, USERSPACE, true, false)).toBe(-1);
    route(world.ioapic, 4, 0x44);
    expect(takeInterrupt(world.vcpu)).toBe(-1);
    route(world.ioapic, 5, 0x55 | LEVEL | MASKED);
    expect(world.ioapic.setIrq(5, USERSPACE, true, false)).toBe(-1);
    route(world.ioapic, 5, 0x55 | LEVEL);
    expect(takeInterrupt(world.vcpu)).toBe(0x55);
  });

  it('holds a level interrupt back by remote IRR until its EOI, and sends it again if the line is still high', () => {
    const world = create();
    route(world.ioapic, 5, 0x55 | LEVEL);
    scan(world.bench);
    expect(world.ioapic.setIrq(5, USERSPACE, true, false)).toBe(1);
    expect(readRegister(world.ioapic, 0x1a) & REMOTE_IRR).toBe(REMOTE_IRR);
    expect(world.ioapic.setIrq(5, USERSPACE, true, false)).toBe(-1);
    expect(takeInterrupt(world.vcpu)).toBe(0x55);
    eoi(world);
    expect(takeInterrupt(world.vcpu)).toBe(0x55);
    world.ioapic.setIrq(5, USERSPACE, false, false);
    eoi(world);
    expect(takeInterrupt(world.vcpu)).toBe(-1);
    expect(readRegister(world.ioapic, 0x1a) & REMOTE_IRR).toBe(0);
  });

  it('clears remote IRR when a pin is made edge triggered, and lets nobody write it', () => {
    const world = create();
    route(world.ioapic, 5, 0x55 | LEVEL | REMOTE_IRR);
    expect(readRegister(world.ioapic, 0x1a) & REMOTE_IRR).toBe(0);
    world.ioapic.setIrq(5, USERSPACE, true, false);
    writeRegister(world.ioapic, 0x1a, 0x55 | MASKED);
    expect(readRegister(world.ioapic, 0x1a) & REMOTE_IRR).toBe(0);
  });

  it('asks a resampler before a pending level interrupt is let through by unmasking', () => {
    const world = create();
    let asked = 0;
    const notifier = { irqAcked: () => asked++ };
    world.bench.irq.notifiers.registerAck(5, notifier, 'resampler');
    route(world.ioapic, 5, 0x55 | LEVEL | MASKED);
    world.ioapic.setIrq(5, USERSPACE, true, false);
    route(world.ioapic, 5, 0x55 | LEVEL);
    expect(asked).toBe(1);
    expect(takeInterrupt(world.vcpu)).toBe(-1);
    world.ioapic.setIrq(5, USERSPACE, true, false);
    expect(takeInterrupt(world.vcpu)).toBe(0x55);
  });

  it('tells whoever waits for the EOI of a pin, for edges too', () => {
    const world = create();
    const acked: number[] = [];
    world.bench.irq.notifiers.registerAck(4, { irqAcked: () => acked.push(4) }, 'device');
    route(world.ioapic, 4, 0x44);
    scan(world.bench);
    world.ioapic.setIrq(4, USERSPACE, true, false);
    takeInterrupt(world.vcpu);
    eoi(world);
    expect(acked).toEqual([4]);
  });

  it('reaches the APIC that the entry names, and nobody if there is none', () => {
    const world = create();
    const other = world.bench.createEnabledVcpu(1);
    route(world.ioapic, 6, 0x66, 1);
    expect(world.ioapic.setIrq(6, USERSPACE, true, false)).toBe(1);
    expect(takeInterrupt(other)).toBe(0x66);
    expect(takeInterrupt(world.vcpu)).toBe(-1);
    route(world.ioapic, 7, 0x77, 5);
    expect(world.ioapic.setIrq(7, USERSPACE, true, false)).toBe(0);
  });

  it('reports an RTC tick as coalesced until the last one has been ended', () => {
    const world = create();
    route(world.ioapic, 8, 0x88);
    scan(world.bench);
    const tick = (): number => {
      const status = world.ioapic.setIrq(8, USERSPACE, true, true);
      world.ioapic.setIrq(8, USERSPACE, false, true);
      return status;
    };
    expect(tick()).toBe(1);
    scan(world.bench);
    expect(tick()).toBe(0);
    takeInterrupt(world.vcpu);
    expect(tick()).toBe(0);
    eoi(world);
    expect(tick()).toBe(1);
  });

  it('puts off a level interrupt that is ended ten thousand times in a row with the line still high', () => {
    const world = create();
    route(world.ioapic, 5, 0x55 | LEVEL);
    scan(world.bench);
    world.ioapic.setIrq(5, USERSPACE, true, false);
    for (let count = 0; count < 10_000; count++) {
      expect(takeInterrupt(world.vcpu)).toBe(0x55);
      eoi(world);
    }
    expect(takeInterrupt(world.vcpu)).toBe(-1);
    world.bench.advance(EOI_INJECT_DELAY_NS);
    expect(takeInterrupt(world.vcpu)).toBe(0x55);
  });

  it('raises the lines of a state that is set', () => {
    const world = create();
    route(world.ioapic, 5, 0x55 | LEVEL | MASKED);
    world.ioapic.setIrq(5, USERSPACE, true, false);
    const state = world.ioapic.getState();
    const other = create();
    // The mask bit of pin 5, cleared as a VMM might.
    state[24 + 5 * 8 + 2] = 0;
    other.ioapic.setState(state);
    expect(takeInterrupt(other.vcpu)).toBe(0x55);
  });

  it('ignores accesses outside its page', () => {
    const { ioapic } = create();
    expect(ioapic.mmioRead(BASE + 0x100, 4)).toBeNull();
    expect(ioapic.mmioWrite(BASE - 4, word(0))).toBe(false);
  });
});
