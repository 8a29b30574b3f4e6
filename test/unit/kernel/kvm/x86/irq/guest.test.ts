import { describe, expect, it } from 'vitest';
import { KVM_IRQFD_FLAG, KVM_MP_STATE } from '../../../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../../../server/kernel/uapi/ioctls.js';
import { kvm_irq_routing_entry, kvm_irq_routing_msi, kvm_pit_config } from '../../../../../../server/kernel/uapi/irq-structs.js';
import { kvm_mp_state } from '../../../../../../server/kernel/uapi/kvm-structs.js';
import { CODE, GuestBench } from './guest-bench.js';

const dword = (value: number): string => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return bytes.toString('hex');
};
/** mov dword ptr [address], value */
const store = (address: number, value: number): string => `c705${dword(address)}${dword(value)}`;
/** out port, al */
const out = (port: number): string => `e6${port.toString(16)}`;
/** mov al, value; out port, al */
const outByte = (port: number, value: number): string => `b0${value.toString(16).padStart(2, '0')}${out(port)}`;
const STI = 'fb';
const HLT = 'f4';
const IRET = 'cf';
const apic = (offset: number, value: number): string => store(0xfee0_0000 + offset, value);
const ENABLE_APIC = apic(0xf0, 0x1ff);
const EOI = apic(0xb0, 0);
/** Both words of a redirection entry, destination APIC 0. */
const redirect = (pin: number, low: number): string =>
  store(0xfec0_0000, 0x11 + 2 * pin) + store(0xfec0_0010, 0) + store(0xfec0_0000, 0x10 + 2 * pin) + store(0xfec0_0010, low);
const INIT_PIC = outByte(0x20, 0x11) + outByte(0x21, 0x20) + outByte(0x21, 4) + outByte(0x21, 1) + outByte(0x21, 0);

const VECTOR = 0x45;
const HANDLER = 0x2000;
const LEVEL = 1 << 15;

const msiRoute = (gsi: number, data: number): Uint8Array =>
  kvm_irq_routing_entry.encode({ gsi, type: 2, u: kvm_irq_routing_msi.encode({ address_lo: 0xfee0_0000, data }) });

/** A guest that waits, then says 0x91; its handler says 0x81 and ends the interrupt. */
const waiting = (irqchip: 'kernel' | 'split', prologue: string): GuestBench => {
  const bench = new GuestBench(irqchip);
  bench.write(CODE, ENABLE_APIC + prologue + STI + HLT + out(0x91) + HLT);
  bench.handler(VECTOR, HANDLER, out(0x81) + EOI + IRET);
  return bench;
};

describe('an irqfd', () => {
  it('wakes a halted vCPU by MSI, and its signal reaches the handler once', () => {
    const bench = waiting('kernel', '');
    bench.route(msiRoute(24, VECTOR));
    const { counter, fd } = bench.eventfd();
    bench.irqfd({ fd, gsi: 24 });
    const vcpu = bench.createVcpu();
    const halted = bench.start(vcpu);
    expect(halted()).toBeUndefined();
    counter.signal();
    bench.settle();
    expect(halted()).toEqual({ port: 0x81 });
    expect(counter.value).toBe(0n);
    expect(bench.run(vcpu)).toEqual({ port: 0x91 });
    const again = bench.start(vcpu);
    expect(again()).toBeUndefined();
    expect(bench.process.kernel.findings.all).toEqual([]);
  });

  it('keeps a level high through the IOAPIC until the EOI, and tells its resamplefd', () => {
    // The PIC has the GSI as well, and LVT0 lets it through after RESET.
    const bench = waiting('kernel', outByte(0x21, 0xff) + redirect(5, VECTOR | LEVEL));
    const trigger = bench.eventfd();
    const resample = bench.eventfd();
    bench.irqfd({ fd: trigger.fd, gsi: 5, flags: KVM_IRQFD_FLAG.RESAMPLE, resamplefd: resample.fd });
    const vcpu = bench.createVcpu();
    const halted = bench.start(vcpu);
    trigger.counter.signal();
    bench.settle();
    expect(halted()).toEqual({ port: 0x81 });
    expect(resample.counter.value).toBe(0n);
    expect(bench.run(vcpu)).toEqual({ port: 0x91 });
    expect(resample.counter.value).toBe(1n);
    trigger.counter.signal();
    expect(bench.run(vcpu)).toEqual({ port: 0x81 });
  });
});

describe('timers of a guest', () => {
  it('wake a halted vCPU: the APIC timer, one-shot', () => {
    const bench = waiting('kernel', apic(0x3e0, 0xb) + apic(0x320, VECTOR) + apic(0x380, 1_000_000));
    const vcpu = bench.createVcpu();
    const halted = bench.start(vcpu);
    bench.advance(999_999n);
    expect(halted()).toBeUndefined();
    bench.advance(1n);
    expect(halted()).toEqual({ port: 0x81 });
    expect(bench.run(vcpu)).toEqual({ port: 0x91 });
  });

  it('wake a halted vCPU: the APIC timer by TSC deadline', () => {
    // mov ecx, 0x6e0; mov eax, 2450000; xor edx, edx; wrmsr
    const bench = waiting('kernel', `${apic(0x320, VECTOR | (2 << 17))}b9e0060000b8${dword(2_450_000)}31d20f30`);
    const vcpu = bench.createVcpu();
    bench.setCpuid(vcpu.fd, 1 << 24);
    const halted = bench.start(vcpu);
    bench.advance(999_000n);
    expect(halted()).toBeUndefined();
    bench.advance(1_000n);
    expect(halted()).toEqual({ port: 0x81 });
  });

  it('interrupt a guest that never halts', () => {
    const bench = new GuestBench();
    // jmp $
    bench.write(CODE, `${ENABLE_APIC}${apic(0x3e0, 0xb)}${apic(0x320, VECTOR)}${apic(0x380, 1_000_000)}${out(0x90)}${STI}ebfe`);
    bench.handler(VECTOR, HANDLER, out(0x81) + EOI + IRET);
    const vcpu = bench.createVcpu();
    expect(bench.run(vcpu)).toEqual({ port: 0x90 });
    bench.advance(1_000_000n);
    expect(bench.run(vcpu)).toEqual({ port: 0x81 });
  });

  it('wake a halted vCPU: the PIT through the PIC, tick after tick', () => {
    const bench = new GuestBench();
    bench.vm(IOCTL.KVM_CREATE_PIT2, kvm_pit_config.encode({ flags: 0 }));
    // Channel 0, mode 2, count 1193: about a millisecond. jmp back to HLT.
    const pit = outByte(0x43, 0x34) + outByte(0x40, 0xa9) + outByte(0x40, 0x04);
    bench.write(CODE, `${INIT_PIC}${pit}${STI}${HLT}ebfd`);
    bench.handler(0x20, HANDLER, outByte(0x20, 0x20) + out(0x81) + IRET);
    const vcpu = bench.createVcpu();
    for (let tick = 0; tick < 3; tick++) {
      const halted = bench.start(vcpu);
      expect(halted()).toBeUndefined();
      bench.advance(1_000_000n);
      expect(halted()).toEqual({ port: 0x81 });
    }
  });
});

describe('vCPUs among themselves', () => {
  it('wake each other by IPI', () => {
    const bench = new GuestBench();
    const apCode = 0x1800;
    bench.write(CODE, ENABLE_APIC + apic(0x310, 1 << 24) + apic(0x300, VECTOR) + out(0x90) + HLT);
    bench.write(apCode, ENABLE_APIC + STI + HLT + out(0x92) + HLT);
    bench.handler(VECTOR, HANDLER, out(0x81) + EOI + IRET);
    const bsp = bench.createVcpu(0);
    const ap = bench.createVcpu(1, apCode);
    const runnable = kvm_mp_state.encode({ mp_state: KVM_MP_STATE.RUNNABLE });
    bench.process.must(bench.process.ioctl(ap.fd, IOCTL.KVM_SET_MP_STATE, runnable));
    const halted = bench.start(ap);
    expect(halted()).toBeUndefined();
    expect(bench.run(bsp)).toEqual({ port: 0x90 });
    bench.settle();
    expect(halted()).toEqual({ port: 0x81 });
    expect(bench.run(ap)).toEqual({ port: 0x92 });
  });
});

describe('a split irqchip', () => {
  it('tells user space of the EOI of a level-triggered message', () => {
    const bench = waiting('split', '');
    bench.route(msiRoute(5, VECTOR | LEVEL | 0x4000));
    const { counter, fd } = bench.eventfd();
    bench.irqfd({ fd, gsi: 5 });
    const vcpu = bench.createVcpu();
    const halted = bench.start(vcpu);
    counter.signal();
    bench.settle();
    expect(halted()).toEqual({ port: 0x81 });
    expect(bench.run(vcpu)).toEqual({ eoi: VECTOR });
    expect(bench.run(vcpu)).toEqual({ port: 0x91 });
  });

  it('tells nothing of the EOI of an edge', () => {
    const bench = waiting('split', '');
    bench.route(msiRoute(5, VECTOR));
    const { counter, fd } = bench.eventfd();
    bench.irqfd({ fd, gsi: 5 });
    const vcpu = bench.createVcpu();
    const halted = bench.start(vcpu);
    counter.signal();
    bench.settle();
    expect(halted()).toEqual({ port: 0x81 });
    expect(bench.run(vcpu)).toEqual({ port: 0x91 });
  });

  it('takes the interrupts of a PIC in user space from KVM_INTERRUPT', () => {
    const bench = waiting('split', '');
    const vcpu = bench.createVcpu();
    const interrupt = new Uint8Array(4);
    interrupt[0] = VECTOR;
    expect(bench.process.try(vcpu.fd, IOCTL.KVM_INTERRUPT, interrupt)).toBe(0);
    expect(bench.process.try(vcpu.fd, IOCTL.KVM_INTERRUPT, interrupt)).toBe('EEXIST');
    // LVT0 of a split irqchip is open after RESET, as a virtual wire.
    expect(bench.run(vcpu)).toEqual({ port: 0x81 });
    expect(bench.process.try(vcpu.fd, IOCTL.KVM_INTERRUPT, interrupt)).toBe(0);
  });
});

describe('everything that an irqchip has taken', () => {
  it('is given back with the VM: kernel memory, timers', () => {
    const bench = new GuestBench();
    bench.vm(IOCTL.KVM_CREATE_PIT2, kvm_pit_config.encode({ flags: 1 }));
    bench.write(
      CODE,
      `${outByte(0x43, 0x34)}${outByte(0x40, 0xa9)}${outByte(0x40, 0x04)}${ENABLE_APIC}${apic(0x380, 1_000_000)}${out(0x90)}`,
    );
    const vcpu = bench.createVcpu();
    expect(bench.run(vcpu)).toEqual({ port: 0x90 });
    expect(vcpu.vcpu.vm.kmem.chargedByType.get('kvm_lapic_regs')).toBe(4096);
    expect(bench.process.kernel.timers.nextDeadline()).not.toBeNull();
    bench.process.closeAll();
    expect(vcpu.vcpu.vm.kmem.chargedBytes).toBe(0);
    expect(bench.process.kernel.timers.nextDeadline()).toBeNull();
    expect(bench.process.kernel.findings.all).toEqual([]);
  });
});
