import { describe, expect, it } from 'vitest';
import { APIC, APIC_DM } from '../../../../../../server/kernel/kvm/x86/irq/apic-registers.js';
import { lapicMmioRead, x2apicMsrRead, x2apicMsrWrite } from '../../../../../../server/kernel/kvm/x86/irq/lapic-access.js';
import { lapicGetState, lapicReset, lapicSetState } from '../../../../../../server/kernel/kvm/x86/irq/lapic-state.js';
import { IrqBench, type TestVcpu, takeInterrupt, takeRequest, writeApic } from './fixture.js';

const PAGE = 0xfee0_0000;
const read = ({ apic }: TestVcpu, offset: number): number => {
  const bytes = lapicMmioRead(apic, PAGE + offset, 4);
  return bytes === null ? -1 : new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
};
const at = (state: Uint8Array, offset: number): number => new DataView(state.buffer, state.byteOffset).getUint32(offset, true);

/** An IPI by ICR, from `source` to the APIC with `destId`. */
const ipi = (source: TestVcpu, destId: number, icrLow: number): void => {
  writeApic(source.apic, APIC.ICR2, destId << 24);
  writeApic(source.apic, APIC.ICR, icrLow);
};
const SELF = 0x40000;
const ALL = 0x80000;
const OTHERS = 0xc0000;
const LOGICAL = 1 << 11;

const enableX2apic = (bench: IrqBench, vcpu: TestVcpu): void => {
  bench.cpuidX2apic = true;
  vcpu.apic.setBase(vcpu.apic.apicBase | 0x400n);
  bench.irq.recalculateApicMap();
};

describe('the registers of a local APIC', () => {
  it('are those of recorded KVM after RESET', () => {
    const bench = new IrqBench();
    const bsp = bench.createVcpu(0);
    const ap = bench.createVcpu(1);
    expect(read(bsp, APIC.ID)).toBe(0);
    expect(read(ap, APIC.ID)).toBe(0x0100_0000);
    expect(read(bsp, APIC.LVR)).toBe(0x50014);
    expect(read(bsp, APIC.SPIV)).toBe(0xff);
    expect(read(bsp, APIC.LVT0)).toBe(0x700);
    expect(read(ap, APIC.LVT0)).toBe(0x10000);
    expect(read(bsp, APIC.DFR)).toBe(0xffff_ffff);
  });

  it('keep LINT0 masked at RESET once the quirk is disabled', () => {
    const bench = new IrqBench();
    bench.settings.quirkEnabled = () => false;
    expect(read(bench.createVcpu(0), APIC.LVT0)).toBe(0x10000);
  });

  it('show bytes of a register, and nothing for an access that crosses it', () => {
    const bench = new IrqBench();
    const { apic } = bench.createVcpu(0);
    expect([...(lapicMmioRead(apic, PAGE + APIC.LVR + 2, 1) ?? [])]).toEqual([5]);
    expect([...(lapicMmioRead(apic, PAGE + APIC.LVR + 2, 4) ?? [])]).toEqual([0, 0, 0, 0]);
    expect(lapicMmioRead(apic, PAGE + 0x1000, 4)).toBeNull();
  });

  it('are a hole that reads as ones while the APIC is disabled', () => {
    const bench = new IrqBench();
    const { apic } = bench.createVcpu(0);
    apic.setBase(0xfee0_0100n);
    expect([...(lapicMmioRead(apic, PAGE, 2) ?? [])]).toEqual([0xff, 0xff]);
    bench.settings.quirkEnabled = () => false;
    expect(lapicMmioRead(apic, PAGE, 2)).toBeNull();
  });

  it('mask every LVT entry when software disables the APIC, and keep them masked', () => {
    const bench = new IrqBench();
    const vcpu = bench.createEnabledVcpu();
    writeApic(vcpu.apic, APIC.LVT1, 0x400);
    expect(read(vcpu, APIC.LVT1)).toBe(0x400);
    writeApic(vcpu.apic, APIC.SPIV, 0xff);
    expect(read(vcpu, APIC.LVT1)).toBe(0x10400);
    writeApic(vcpu.apic, APIC.LVTERR, 0x31);
    expect(read(vcpu, APIC.LVTERR)).toBe(0x10031);
  });

  it('have no CMCI entry unless MCG_CAP says so', () => {
    const bench = new IrqBench();
    const vcpu = bench.createEnabledVcpu();
    writeApic(vcpu.apic, APIC.LVTCMCI, 0x33);
    expect(read(vcpu, APIC.LVTCMCI)).toBe(0);
    vcpu.apic.afterSetMcgCap(true);
    expect(read(vcpu, APIC.LVTCMCI)).toBe(0x10000);
    expect(read(vcpu, APIC.LVR)).toBe(0x60014);
  });

  it('report accesses to the TPR to whoever asked', () => {
    const bench = new IrqBench();
    const vcpu = bench.createEnabledVcpu();
    writeApic(vcpu.apic, APIC.TASKPRI, 0x20);
    read(vcpu, APIC.TASKPRI);
    expect(vcpu.tprReports).toBe(2);
  });

  it('let a split irqchip offer directed EOI to an x2APIC guest', () => {
    const bench = new IrqBench();
    bench.settings.irqchipMode = 'split';
    const vcpu = bench.createVcpu(0);
    bench.cpuidX2apic = true;
    vcpu.apic.afterSetCpuid(false);
    expect(read(vcpu, APIC.LVR)).toBe(0x0105_0014);
  });
});

describe('the priorities of a local APIC', () => {
  it('deliver the highest vector first, and hold back what is not above the one in service', () => {
    const bench = new IrqBench();
    const vcpu = bench.createEnabledVcpu();
    for (const vector of [0x31, 0x45, 0x42]) ipi(vcpu, 0, SELF | vector);
    expect(takeInterrupt(vcpu)).toBe(0x45);
    expect(read(vcpu, APIC.PROCPRI)).toBe(0x40);
    expect(takeInterrupt(vcpu)).toBe(-1);
    writeApic(vcpu.apic, APIC.EOI, 0);
    expect(takeInterrupt(vcpu)).toBe(0x42);
    writeApic(vcpu.apic, APIC.EOI, 0);
    expect(takeInterrupt(vcpu)).toBe(0x31);
  });

  it('hold back what is not above the TPR, and ask for another look when it is lowered', () => {
    const bench = new IrqBench();
    const vcpu = bench.createEnabledVcpu();
    vcpu.apic.setCr8(5);
    expect(read(vcpu, APIC.TASKPRI)).toBe(0x50);
    ipi(vcpu, 0, SELF | 0x5f);
    takeRequest(vcpu, 'EVENT');
    expect(takeInterrupt(vcpu)).toBe(-1);
    vcpu.apic.setCr8(4);
    expect(takeRequest(vcpu, 'EVENT')).toBe(true);
    expect(takeInterrupt(vcpu)).toBe(0x5f);
    expect(vcpu.apic.cr8).toBe(4);
  });

  it('merge two messages of one vector into one interrupt', () => {
    const bench = new IrqBench();
    const vcpu = bench.createEnabledVcpu();
    ipi(vcpu, 0, SELF | 0x40);
    ipi(vcpu, 0, SELF | 0x40);
    expect(takeInterrupt(vcpu)).toBe(0x40);
    writeApic(vcpu.apic, APIC.EOI, 0);
    expect(takeInterrupt(vcpu)).toBe(-1);
  });
});

describe('interprocessor interrupts', () => {
  const three = (): { readonly bench: IrqBench; readonly vcpus: readonly [TestVcpu, TestVcpu, TestVcpu] } => {
    const bench = new IrqBench();
    return { bench, vcpus: [bench.createEnabledVcpu(), bench.createEnabledVcpu(), bench.createEnabledVcpu()] };
  };

  it('reach one APIC by id, itself, everybody, everybody else', () => {
    const { vcpus } = three();
    const [first] = vcpus;
    ipi(first, 1, 0x41);
    expect(vcpus.map(takeInterrupt)).toEqual([-1, 0x41, -1]);
    ipi(first, 0, SELF | 0x52);
    expect(vcpus.map(takeInterrupt)).toEqual([0x52, -1, -1]);
    ipi(first, 0, ALL | 0x63);
    expect(vcpus.map(takeInterrupt)).toEqual([0x63, 0x63, 0x63]);
    ipi(first, 0, OTHERS | 0x74);
    expect(vcpus.map(takeInterrupt)).toEqual([-1, 0x74, 0x74]);
    ipi(first, 0xff, 0x85);
    expect(vcpus.map(takeInterrupt)).toEqual([0x85, 0x85, 0x85]);
  });

  it('reach APICs by logical id, flat and by cluster', () => {
    const { vcpus } = three();
    for (const { apic } of vcpus) writeApic(apic, APIC.LDR, 1 << (24 + apic.id));
    ipi(vcpus[0], 0b110, LOGICAL | 0x41);
    expect(vcpus.map(takeInterrupt)).toEqual([-1, 0x41, 0x41]);
    for (const { apic } of vcpus) {
      writeApic(apic, APIC.DFR, 0x0fff_ffff);
      writeApic(apic, APIC.LDR, (0x20 | (1 << apic.id)) << 24);
    }
    ipi(vcpus[0], 0x25, LOGICAL | 0x52);
    expect(vcpus.map(takeInterrupt)).toEqual([0x52, -1, 0x52]);
    ipi(vcpus[0], 0x35, LOGICAL | 0x63);
    expect(vcpus.map(takeInterrupt)).toEqual([-1, -1, -1]);
  });

  it('find logical destinations one by one when APICs are set up differently', () => {
    const { vcpus } = three();
    writeApic(vcpus[0].apic, APIC.LDR, 0x0100_0000);
    writeApic(vcpus[1].apic, APIC.LDR, 0x0200_0000);
    writeApic(vcpus[2].apic, APIC.DFR, 0x0fff_ffff);
    writeApic(vcpus[2].apic, APIC.LDR, 0x0200_0000);
    ipi(vcpus[0], 0x02, LOGICAL | 0x41);
    expect(vcpus.map(takeInterrupt)).toEqual([-1, 0x41, 0x41]);
  });

  it('spread lowest priority by vector, over the APICs that software has enabled', () => {
    const { vcpus } = three();
    for (const { apic } of vcpus) writeApic(apic, APIC.LDR, 1 << (24 + apic.id));
    ipi(vcpus[0], 0b111, LOGICAL | APIC_DM.LOWEST | 0x40);
    expect(vcpus.map(takeInterrupt)).toEqual([-1, 0x40, -1]);
    ipi(vcpus[0], 0b111, LOGICAL | APIC_DM.LOWEST | 0x51);
    expect(vcpus.map(takeInterrupt)).toEqual([0x51, -1, -1]);
  });

  it('are lost to a vCPU that no APIC register write has followed since its creation', () => {
    const bench = new IrqBench();
    const bsp = bench.createEnabledVcpu();
    const ap = bench.createVcpu(1);
    ipi(bsp, 1, APIC_DM.INIT | 0x4000);
    expect(ap.apic.pendingEvents).toBe(0);
    writeApic(bsp.apic, APIC.SPIV, 0xff);
    ipi(bsp, 1, APIC_DM.INIT | 0x4000);
    expect(ap.apic.pendingEvents).toBe(1);
  });

  it('are discarded by an APIC that software has not enabled, but for NMI, INIT and SIPI', () => {
    const bench = new IrqBench();
    const bsp = bench.createVcpu(0);
    const ap = bench.createVcpu(1);
    writeApic(bsp.apic, APIC.SPIV, 0x1ff);
    ipi(bsp, 1, 0x41);
    expect(takeInterrupt(ap)).toBe(-1);
    ipi(bsp, 1, APIC_DM.NMI);
    expect(ap.nmis).toBe(1);
    ipi(bsp, 1, APIC_DM.INIT | 0x4000);
    ipi(bsp, 1, APIC_DM.STARTUP | 0x02);
    expect(ap.apic.pendingEvents).toBe(3);
    expect(ap.apic.sipiVector).toBe(2);
    expect(takeRequest(ap, 'EVENT')).toBe(true);
  });

  it('of INIT take away a SIPI that nobody has looked at, and a de-assert does nothing', () => {
    const { vcpus } = three();
    ipi(vcpus[0], 1, APIC_DM.STARTUP | 0x02);
    ipi(vcpus[0], 1, APIC_DM.INIT | 0x4000);
    expect(vcpus[1].apic.pendingEvents).toBe(1);
    vcpus[1].apic.pendingEvents = 0;
    ipi(vcpus[0], 1, APIC_DM.INIT | 0x8000);
    expect(vcpus[1].apic.pendingEvents).toBe(0);
  });

  it('kick the vCPU that they are for', () => {
    const { vcpus } = three();
    const before = vcpus[1].kicks;
    ipi(vcpus[0], 1, 0x41);
    expect(vcpus[1].kicks).toBe(before + 1);
    expect(vcpus[2].kicks).toBe(0);
  });

  it('reach both of two APICs with one id, which make the map useless', () => {
    const { bench, vcpus } = three();
    writeApic(vcpus[2].apic, APIC.ID, 1 << 24);
    expect(bench.irq.apicMap).toBeNull();
    ipi(vcpus[0], 1, 0x41);
    expect(vcpus.map(takeInterrupt)).toEqual([-1, 0x41, 0x41]);
  });
});

describe('messages from devices', () => {
  it('count the APICs that accept them, as recorded from KVM_SIGNAL_MSI', () => {
    const bench = new IrqBench();
    const msi = (data: number, addressLo = 0xfee0_0000, addressHi = 0): number =>
      bench.irq.setMsi({ addressLo, addressHi, data });
    expect(msi(49)).toBe(-1);
    const vcpu = bench.createVcpu(0);
    expect(msi(49)).toBe(0);
    const state = lapicGetState(vcpu.apic);
    new DataView(state.buffer).setUint32(APIC.SPIV, 0x1ff, true);
    expect(lapicSetState(vcpu.apic, state)).toBeNull();
    expect(msi(49)).toBe(1);
    expect(msi(49)).toBe(1);
    expect(msi(15)).toBe(1);
    expect(msi(49, 0xfee0_5000)).toBe(0);
    expect(msi(49, 0)).toBe(1);
    expect(msi(49, 0xfee0_0000, 256)).toBe(1);
  });

  it('may name 32-bit ids once user space has asked for them', () => {
    const bench = new IrqBench();
    bench.settings.x2apicFormat = true;
    bench.createEnabledVcpu(0);
    const far = bench.createVcpu(300);
    writeApic(far.apic, APIC.SPIV, 0x1ff);
    expect(bench.irq.setMsi({ addressLo: 0xfee2_c000, addressHi: 0x100, data: 0x41 })).toBe(1);
    expect(takeInterrupt(far)).toBe(0x41);
    expect(bench.irq.setMsi({ addressLo: 0xfee2_c000, addressHi: 0x101, data: 0x41 })).toBe(-22);
  });

  it('broadcast by 0xff also reach x2APICs, unless the quirk is disabled', () => {
    const bench = new IrqBench();
    const vcpu = bench.createEnabledVcpu(0);
    enableX2apic(bench, vcpu);
    expect(bench.irq.setMsi({ addressLo: 0xfeef_f000, addressHi: 0, data: 0x41 })).toBe(1);
    bench.settings.x2apicBroadcastQuirkDisabled = true;
    expect(bench.irq.setMsi({ addressLo: 0xfeef_f000, addressHi: 0, data: 0x52 })).toBe(0);
  });
});

describe('x2APIC mode', () => {
  it('has MSRs instead of the page, a fixed id and LDR, and one 64-bit ICR', () => {
    const bench = new IrqBench();
    const first = bench.createEnabledVcpu(0);
    const second = bench.createEnabledVcpu(0x23);
    expect(x2apicMsrRead(first.apic, 0x802)).toBeNull();
    enableX2apic(bench, first);
    enableX2apic(bench, second);
    expect(x2apicMsrRead(second.apic, 0x802)).toBe(0x23n);
    expect(x2apicMsrRead(second.apic, 0x80d)).toBe((2n << 16n) | (1n << 3n));
    expect(x2apicMsrWrite(second.apic, 0x802, 1n)).toBe(false);
    expect(x2apicMsrWrite(first.apic, 0x830, (0x23n << 32n) | 0x41n)).toBe(true);
    expect(takeInterrupt(second)).toBe(0x41);
    expect(x2apicMsrRead(first.apic, 0x830)).toBe((0x23n << 32n) | 0x41n);
    expect(x2apicMsrRead(first.apic, 0x831)).toBeNull();
    expect(x2apicMsrWrite(first.apic, 0x83f, 0x55n)).toBe(true);
    expect(takeInterrupt(first)).toBe(0x55);
  });

  it('refuses reserved bits', () => {
    const bench = new IrqBench();
    const vcpu = bench.createEnabledVcpu(0);
    enableX2apic(bench, vcpu);
    expect(x2apicMsrWrite(vcpu.apic, 0x830, 1n << 13n)).toBe(false);
    expect(x2apicMsrWrite(vcpu.apic, 0x808, 1n << 32n)).toBe(false);
    expect(x2apicMsrWrite(vcpu.apic, 0x828, 1n)).toBe(false);
    expect(x2apicMsrWrite(vcpu.apic, 0x80e, 0n)).toBe(false);
  });

  it('finds logical destinations by cluster', () => {
    const bench = new IrqBench();
    const vcpus = [0x10, 0x11, 0x20].map((id) => bench.createEnabledVcpu(id));
    for (const vcpu of vcpus) enableX2apic(bench, vcpu);
    const [first] = vcpus;
    if (first === undefined) throw new Error('no vCPU');
    x2apicMsrWrite(first.apic, 0x830, (((1n << 16n) | 0b11n) << 32n) | BigInt(LOGICAL) | 0x41n);
    expect(vcpus.map(takeInterrupt)).toEqual([0x41, 0x41, -1]);
  });
});

describe('the saved state of a local APIC', () => {
  it('comes back as it was: registers, pending and served interrupts', () => {
    const bench = new IrqBench();
    const vcpu = bench.createEnabledVcpu();
    ipi(vcpu, 0, SELF | 0x61);
    takeInterrupt(vcpu);
    ipi(vcpu, 0, SELF | 0x72);
    const saved = lapicGetState(vcpu.apic);
    const other = new IrqBench();
    const restored = other.createEnabledVcpu(0);
    ipi(restored, 0, SELF | 0x33);
    takeInterrupt(restored);
    expect(lapicSetState(restored.apic, saved)).toBeNull();
    expect(lapicGetState(restored.apic)).toEqual(saved);
    expect(takeRequest(restored, 'EVENT')).toBe(true);
    expect(takeInterrupt(restored)).toBe(0x72);
    writeApic(restored.apic, APIC.EOI, 0);
    expect(restored.apic.highestIsr()).toBe(0x61);
  });

  it('has the x2APIC id in the upper byte, or whole with 32-bit ids, which have to match', () => {
    const bench = new IrqBench(false);
    const vcpu = bench.createEnabledVcpu(7);
    enableX2apic(bench, vcpu);
    x2apicMsrWrite(vcpu.apic, 0x830, (9n << 32n) | 0x41n);
    const saved = lapicGetState(vcpu.apic);
    expect(at(saved, APIC.ID)).toBe(7 << 24);
    expect(at(saved, APIC.ICR2)).toBe(9);
    new DataView(saved.buffer).setUint32(APIC.ID, 5 << 24, true);
    expect(lapicSetState(vcpu.apic, saved)).toBeNull();
    expect(x2apicMsrRead(vcpu.apic, 0x802)).toBe(7n);
    expect(x2apicMsrRead(vcpu.apic, 0x830)).toBe((9n << 32n) | 0x41n);
    bench.settings.x2apicFormat = true;
    const wide = lapicGetState(vcpu.apic);
    expect(at(wide, APIC.ID)).toBe(7);
    new DataView(wide.buffer).setUint32(APIC.ID, 5, true);
    expect(lapicSetState(vcpu.apic, wide)?.errno).toBe('EINVAL');
  });

  it('survives an INIT as far as base and id go', () => {
    const bench = new IrqBench();
    const vcpu = bench.createEnabledVcpu(3);
    writeApic(vcpu.apic, APIC.ID, 9 << 24);
    ipi(vcpu, 0, SELF | 0x61);
    lapicReset(vcpu.apic, true);
    expect(vcpu.apic.xapicId).toBe(9);
    expect(takeInterrupt(vcpu)).toBe(-1);
    expect(vcpu.apic.swEnabled).toBe(false);
  });
});
