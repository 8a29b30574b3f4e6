import { describe, expect, it } from 'vitest';
import { APIC } from '../../../../../../server/kernel/kvm/x86/irq/apic-registers.js';
import { lapicMmioRead, setTscDeadlineMsr, tscDeadlineMsr } from '../../../../../../server/kernel/kvm/x86/irq/lapic-access.js';
import { lapicGetState, lapicSetState } from '../../../../../../server/kernel/kvm/x86/irq/lapic-state.js';
import { IrqBench, type TestVcpu, takeInterrupt, takeRequest, writeApic } from './fixture.js';

const VECTOR = 0x60;
const PERIODIC = 1 << 17;
const TSC_DEADLINE = 2 << 17;
const DIVIDE_BY_1 = 0xb;
const DIVIDE_BY_2 = 0x0;

interface Bench {
  readonly bench: IrqBench;
  readonly vcpu: TestVcpu;
}

const create = (mode: number, divide = DIVIDE_BY_1): Bench => {
  const bench = new IrqBench();
  const vcpu = bench.createEnabledVcpu();
  vcpu.apic.afterSetCpuid(true);
  writeApic(vcpu.apic, APIC.LVTT, VECTOR | mode);
  writeApic(vcpu.apic, APIC.TDCR, divide);
  return { bench, vcpu };
};

/** What the run loop does when it is woken: injects an expiry that waits; the vector that comes of it, or -1. */
const tick = ({ vcpu }: Bench): number => {
  vcpu.apic.injectTimerIrqs();
  const vector = takeInterrupt(vcpu);
  if (vector !== -1) writeApic(vcpu.apic, APIC.EOI, 0);
  return vector;
};

const currentCount = ({ vcpu }: Bench): number => {
  const bytes = lapicMmioRead(vcpu.apic, 0xfee0_0000 + APIC.TMCCT, 4);
  return bytes === null ? -1 : new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
};

describe('the timer of a local APIC', () => {
  it('fires once in one-shot mode, wakes a halted vCPU, and counts down to zero', () => {
    const world = create(0);
    writeApic(world.vcpu.apic, APIC.TMICT, 1_000_000);
    expect(world.bench.timers.nextDeadline()).toBe(1_000_000n);
    world.bench.advance(400_000n);
    expect(currentCount(world)).toBe(600_000);
    expect(world.vcpu.apic.hasPendingTimer).toBe(false);
    world.bench.advance(600_000n);
    expect(takeRequest(world.vcpu, 'UNBLOCK')).toBe(true);
    expect(world.vcpu.kicks).toBe(1);
    expect(world.vcpu.apic.hasPendingTimer).toBe(true);
    expect(tick(world)).toBe(VECTOR);
    world.bench.advance(10_000_000n);
    expect(tick(world)).toBe(-1);
    expect(currentCount(world)).toBe(0);
    expect(world.bench.timers.nextDeadline()).toBeNull();
  });

  it('counts at the bus frequency divided by TDCR', () => {
    const world = create(0, DIVIDE_BY_2);
    writeApic(world.vcpu.apic, APIC.TMICT, 1_000_000);
    expect(world.bench.timers.nextDeadline()).toBe(2_000_000n);
    world.bench.settings.apicBusCycleNs = 10;
    writeApic(world.vcpu.apic, APIC.TMICT, 1_000_000);
    expect(world.bench.timers.nextDeadline()).toBe(20_000_000n);
  });

  it('keeps what is left of the count when the divisor changes', () => {
    const world = create(0);
    writeApic(world.vcpu.apic, APIC.TMICT, 1_000_000);
    world.bench.advance(400_000n);
    writeApic(world.vcpu.apic, APIC.TDCR, DIVIDE_BY_2);
    expect(currentCount(world)).toBe(600_000);
    expect(world.bench.timers.nextDeadline()).toBe(1_600_000n);
  });

  it('repeats in periodic mode, and does not make up for ticks that nobody took', () => {
    const world = create(PERIODIC);
    writeApic(world.vcpu.apic, APIC.TMICT, 1_000_000);
    for (let n = 0; n < 3; n++) {
      world.bench.advance(1_000_000n);
      expect(tick(world)).toBe(VECTOR);
    }
    world.bench.advance(5_500_000n);
    expect(tick(world)).toBe(VECTOR);
    expect(tick(world)).toBe(-1);
    expect(world.bench.timers.nextDeadline()).toBe(world.bench.now + 1_000_000n);
  });

  it('is not faster than 200 microseconds in periodic mode', () => {
    const world = create(PERIODIC);
    writeApic(world.vcpu.apic, APIC.TMICT, 1);
    expect(world.bench.timers.nextDeadline()).toBe(200_000n);
  });

  it("fires when the guest's TSC reaches the deadline, which is then 0", () => {
    const world = create(TSC_DEADLINE);
    world.bench.advance(1_000n);
    setTscDeadlineMsr(world.vcpu.apic, 5_000n);
    expect(tscDeadlineMsr(world.vcpu.apic)).toBe(5_000n);
    world.bench.advance(3_999n);
    expect(tick(world)).toBe(-1);
    world.bench.advance(1n);
    expect(tick(world)).toBe(VECTOR);
    expect(tscDeadlineMsr(world.vcpu.apic)).toBe(0n);
  });

  it('fires at once for a deadline that has passed, and not at all for 0', () => {
    const world = create(TSC_DEADLINE);
    world.bench.advance(1_000n);
    setTscDeadlineMsr(world.vcpu.apic, 999n);
    expect(tick(world)).toBe(VECTOR);
    setTscDeadlineMsr(world.vcpu.apic, 5_000n);
    setTscDeadlineMsr(world.vcpu.apic, 0n);
    world.bench.advance(10_000n);
    expect(tick(world)).toBe(-1);
  });

  it('ignores the deadline register in the other modes, and the count in TSC-deadline mode', () => {
    const oneshot = create(0);
    setTscDeadlineMsr(oneshot.vcpu.apic, 5_000n);
    expect(tscDeadlineMsr(oneshot.vcpu.apic)).toBe(0n);
    const deadline = create(TSC_DEADLINE);
    writeApic(deadline.vcpu.apic, APIC.TMICT, 1_000_000);
    expect(deadline.bench.timers.nextDeadline()).toBeNull();
  });

  it('stops when it is switched to or from TSC-deadline mode', () => {
    const world = create(0);
    writeApic(world.vcpu.apic, APIC.TMICT, 1_000_000);
    writeApic(world.vcpu.apic, APIC.LVTT, VECTOR | TSC_DEADLINE);
    expect(world.bench.timers.nextDeadline()).toBeNull();
  });

  it('has no modes but one-shot until the guest has a CPUID', () => {
    const bench = new IrqBench();
    const vcpu = bench.createEnabledVcpu();
    writeApic(vcpu.apic, APIC.LVTT, VECTOR | PERIODIC);
    expect(vcpu.apic.reg(APIC.LVTT)).toBe(VECTOR);
  });

  it('delivers nothing while its LVT entry is masked', () => {
    const world = create(1 << 16);
    writeApic(world.vcpu.apic, APIC.TMICT, 1_000);
    world.bench.advance(1_000n);
    expect(world.vcpu.apic.hasPendingTimer).toBe(false);
    expect(tick(world)).toBe(-1);
  });

  it('goes on with what was left after KVM_GET_LAPIC and KVM_SET_LAPIC', () => {
    const world = create(PERIODIC);
    writeApic(world.vcpu.apic, APIC.TMICT, 1_000_000);
    world.bench.advance(300_000n);
    const saved = lapicGetState(world.vcpu.apic);
    const other = new IrqBench();
    const restored = other.createVcpu(0);
    restored.apic.afterSetCpuid(true);
    expect(lapicSetState(restored.apic, saved)).toBeNull();
    expect(other.timers.nextDeadline()).toBe(700_000n);
    other.advance(700_000n);
    expect(other.timers.nextDeadline()).toBe(1_700_000n);
  });
});
