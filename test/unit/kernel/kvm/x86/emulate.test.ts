import { describe, expect, it } from 'vitest';
import { KVM_EXIT, KVM_GUESTDBG } from '../../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../../server/kernel/uapi/ioctls.js';
import { kvm_run__debug } from '../../../../../server/kernel/uapi/kvm-run.js';
import { kvm_guest_debug } from '../../../../../server/kernel/uapi/x86-structs.js';
import { CODE, Guest } from './guest.js';

/** No memory is there. */
const DEVICE = 0x20000;
const RF = 0x10000n;
const TF = 0x100n;
const DF = 0x400n;
const ZF = 0x40n;
const CF = 1n;

/** A guest whose DS and ES begin at the device. */
const guestAtDevice = (code: string, registers: Parameters<Guest['setRegs']>[0] = {}): Guest => {
  const guest = new Guest().program(code);
  guest.setSregs(({ ds, es }) => ({ ds: { ...ds, base: BigInt(DEVICE) }, es: { ...es, base: BigInt(DEVICE) } }));
  guest.setRegs(registers);
  return guest;
};

/** KVM_RUN that completes what was begun and no more. */
const complete = (guest: Guest): { errno: string | null; reason: number } => {
  guest.setRun({ immediate_exit: 1 });
  const exit = guest.run();
  guest.setRun({ immediate_exit: 0 });
  return exit;
};

const MMIO = { errno: null, reason: KVM_EXIT.MMIO };

describe('a repeated string instruction and a device of userspace', () => {
  it('goes on to the next load within the KVM_RUN that completes one, also with immediate_exit', () => {
    const guest = guestAtDevice('f3ac f4', { rcx: 3n }); // rep lodsb; hlt
    expect(guest.run()).toEqual(MMIO);
    for (const at of [1, 2]) {
      guest.answerMmio('5a');
      expect(complete(guest)).toEqual(MMIO);
      expect(guest.mmio).toMatchObject({ phys_addr: BigInt(DEVICE + at), len: 1, is_write: 0 });
      expect(guest.regs).toMatchObject({ rcx: BigInt(3 - at), rip: BigInt(CODE) });
    }
    guest.answerMmio('77');
    expect(complete(guest).errno).toBe('EINTR');
    expect(guest.regs).toMatchObject({ rax: 0x77n, rcx: 0n, rip: BigInt(CODE), rflags: 2n | RF });
    expect(guest.run().reason).toBe(KVM_EXIT.HLT);
    expect(guest.regs.rflags & RF).toBe(0n);
  });

  it('looks at immediate_exit behind each store, which has ended the emulation', () => {
    const guest = guestAtDevice('f3aa f4', { rcx: 2n }); // rep stosb; hlt
    for (const left of [1n, 0n]) {
      expect(guest.run()).toEqual(MMIO);
      expect(guest.mmio.is_write).toBe(1);
      expect(complete(guest).errno).toBe('EINTR');
      expect(guest.regs).toMatchObject({ rcx: left, rip: BigInt(CODE), rflags: 2n | RF });
    }
    expect(guest.run().reason).toBe(KVM_EXIT.HLT);
  });

  it('goes back to the guest where the low ten bits of RCX are clear', () => {
    const guest = guestAtDevice('f3ac f4', { rcx: 1026n });
    guest.run();
    expect(complete(guest)).toEqual(MMIO);
    expect(complete(guest).errno).toBe('EINTR');
    expect(guest.regs.rcx).toBe(1024n);
  });

  it('shows no flags of an element before the emulation is over', () => {
    const guest = guestAtDevice('f2ae f4', { rax: 0x10n, rcx: 4n, rflags: 2n }); // repne scasb; hlt
    guest.run();
    guest.answerMmio('20');
    expect(complete(guest)).toEqual(MMIO);
    expect(guest.regs).toMatchObject({ rcx: 3n, rflags: 2n });
    guest.answerMmio('10');
    expect(complete(guest).errno).toBe('EINTR');
    expect(guest.regs.rflags & (ZF | CF | RF)).toBe(ZF);
    expect(guest.regs).toMatchObject({ rcx: 2n, rip: BigInt(CODE + 2) });
  });

  it('stores what INS has read ahead one by one backwards; the exit for one store loses the rest', () => {
    const guest = new Guest().program('f36c f4'); // rep insb; hlt
    guest.setRegs({ rcx: 3n, rdx: 0x80n, rdi: 0x3002n, rflags: 2n | DF });
    guest.run();
    expect(guest.io).toMatchObject({ count: 2, port: 0x80 });
    guest.vcpu.runPages.pio.bytes.set([1, 2]);
    expect(complete(guest).errno).toBe('EINTR');
    expect(guest.read(0x3001, 2)).toBe('0201');
    expect(guest.regs.rcx).toBe(1n);

    const other = guestAtDevice('f36c f4', { rcx: 3n, rdx: 0x80n, rdi: 0x102n, rflags: 2n | DF });
    other.run();
    other.vcpu.runPages.pio.bytes.set([1, 2, 3]);
    expect(complete(other)).toEqual(MMIO);
    expect(other.mmio).toMatchObject({ phys_addr: BigInt(DEVICE + 0x102), is_write: 1 });
    expect(complete(other).errno).toBe('EINTR');
    expect(other.regs.rcx).toBe(2n);
    expect(other.run().reason).toBe(KVM_EXIT.IO);
    expect(other.io.count).toBe(2);
  });
});

describe('an emulated instruction', () => {
  const LOAD = '8a04 90 f4'; // mov al, [si]; nop; hlt
  const STORE = '8804 90 f4';

  const step = (code: string): Guest => {
    const guest = guestAtDevice(code);
    guest.must(
      guest.vcpuFd,
      IOCTL.KVM_SET_GUEST_DEBUG,
      kvm_guest_debug.encode({ control: KVM_GUESTDBG.ENABLE | KVM_GUESTDBG.SINGLESTEP }),
    );
    return guest;
  };

  it('is one, however often it is begun again', () => {
    const guest = guestAtDevice(LOAD);
    guest.run();
    guest.run();
    expect(guest.vcpu.arch.stat.insn_emulation).toBe(1);
  });

  it('ends a single step behind a load, and not behind a store that went to userspace', () => {
    const loading = step(LOAD);
    expect(loading.run()).toEqual(MMIO);
    expect(loading.run().reason).toBe(KVM_EXIT.DEBUG);
    expect(loading.runPage(kvm_run__debug).pc).toBe(BigInt(CODE + 2));

    const storing = step(STORE);
    expect(storing.run()).toEqual(MMIO);
    expect(storing.run().reason).toBe(KVM_EXIT.DEBUG);
    expect(storing.runPage(kvm_run__debug).pc).toBe(BigInt(CODE + 3));
  });

  it('is traced by the guest itself, also where the debugger has the breakpoints', () => {
    const guest = guestAtDevice(LOAD, { rflags: 2n | TF });
    const control = KVM_GUESTDBG.ENABLE | KVM_GUESTDBG.USE_HW_BP;
    guest.must(guest.vcpuFd, IOCTL.KVM_SET_GUEST_DEBUG, kvm_guest_debug.encode({ control }));
    guest.write(4, '00200000'); // IVT: #DB at 0x2000
    guest.write(0x2000, 'f4');
    expect(guest.run()).toEqual(MMIO);
    expect(guest.run().reason).toBe(KVM_EXIT.HLT);
    expect(guest.regs.rip).toBe(0x2001n);
  });

  it('goes on with the RFLAGS that it was decoded with', () => {
    const guest = guestAtDevice('1204 f4', { rax: 1n, rflags: 2n | CF }); // adc al, [si]; hlt
    guest.run();
    guest.setRegs({ rflags: 2n });
    guest.answerMmio('01');
    expect(guest.run().reason).toBe(KVM_EXIT.HLT);
    expect(guest.regs.rax).toBe(3n);
  });
});
