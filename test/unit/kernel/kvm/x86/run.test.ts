import { describe, expect, it } from 'vitest';
import { Failure } from '../../../../../server/kernel/failure.js';
import { REQUEST } from '../../../../../server/kernel/kvm/vcpu.js';
import { SIGKILL } from '../../../../../server/kernel/process/thread.js';
import { KVM_EXIT, KVM_INTERNAL_ERROR, KVM_MEM, KVM_MP_STATE } from '../../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../../server/kernel/uapi/ioctls.js';
import { kvm_run, kvm_run__internal, kvm_run__memory_fault } from '../../../../../server/kernel/uapi/kvm-run.js';
import { kvm_interrupt, kvm_mp_state } from '../../../../../server/kernel/uapi/kvm-structs.js';
import { CODE, Guest, pages, STACK } from './guest.js';

const SIGUSR1 = 10;
const HLT = 'f4';
const SPIN = 'ebfe';
/** mov al,[0x5000] with ds = 0x1000: guest-physical 0x15000, beyond the first slot. */
const LOAD_BEYOND = 'b80010 8ed8 a00050 f4';

describe('KVM_RUN', () => {
  it('refuses an argument', () => {
    expect(new Guest().program(HLT).try(IOCTL.KVM_RUN, 1)).toBe('EINVAL');
  });

  it('gives userspace a HLT where no APIC is in the kernel, and goes on behind it', () => {
    const guest = new Guest().program(HLT + HLT);
    expect(guest.run()).toEqual({ errno: null, reason: KVM_EXIT.HLT });
    expect(guest.regs.rip).toBe(BigInt(CODE + 1));
    expect(guest.run().reason).toBe(KVM_EXIT.HLT);
    expect(guest.regs.rip).toBe(BigInt(CODE + 2));
  });

  it('takes EINVAL for a cr8 with reserved bits, and leaves the exit reason alone', () => {
    const guest = new Guest().program(HLT + HLT);
    guest.run();
    guest.setRun({ cr8: 16n });
    expect(guest.run()).toEqual({ errno: 'EINVAL', reason: KVM_EXIT.HLT });
  });

  it('yields between slices, so that a guest without end delays nobody', () => {
    const guest = new Guest().program(SPIN);
    let turns = 0;
    const { result } = guest.startRun(() => {
      if (++turns === 5) guest.process.process.signal(SIGUSR1);
    });
    expect(turns).toBeGreaterThanOrEqual(5);
    expect(guest.exit(result())).toEqual({ errno: 'EINTR', reason: KVM_EXIT.INTR });
  });

  it('is ended by the death of its process', () => {
    const guest = new Guest().program(SPIN);
    let turns = 0;
    const { result } = guest.startRun(() => {
      if (++turns === 2) guest.process.process.signal(SIGKILL);
    });
    expect(guest.exit(result()).errno).toBe('EINTR');
  });

  it('completes a pending IN before it looks at immediate_exit, and leaves the exit reason alone', () => {
    const guest = new Guest().program('e410 88c3 f4');
    expect(guest.run().reason).toBe(KVM_EXIT.IO);
    expect(guest.io).toMatchObject({ direction: 0, size: 1, port: 0x10, count: 1, data_offset: 4096n });
    guest.vcpu.runPages.pio.bytes[0] = 0x5a;
    guest.setRun({ immediate_exit: 1 });
    expect(guest.run()).toEqual({ errno: 'EINTR', reason: KVM_EXIT.IO });
    expect(guest.regs).toMatchObject({ rax: 0x5an, rbx: 0n, rip: BigInt(CODE + 2) });
  });

  it('leaves RIP on an OUT until the next run, which does not advance an RIP that userspace has changed', () => {
    const guest = new Guest().program(`e610 ${HLT}`);
    guest.write(0x1100, HLT);
    guest.run();
    expect(guest.regs.rip).toBe(BigInt(CODE));
    guest.setRegs({ rip: 0x1100n });
    expect(guest.run().reason).toBe(KVM_EXIT.HLT);
    expect(guest.regs.rip).toBe(0x1101n);
  });

  it('splits a store at the page and gives each part an exit, also under immediate_exit', () => {
    // mov ax,0x2000; mov ds,ax; mov dword ptr [0xffe],0x44332211; hlt
    const guest = new Guest().program('b80020 8ed8 66c706fe0f11223344 f4');
    guest.run();
    expect(guest.mmio).toMatchObject({ phys_addr: 0x20ffen, len: 2, is_write: 1 });
    guest.setRun({ immediate_exit: 1 });
    expect(guest.run().errno).toBeNull();
    expect(guest.mmio).toMatchObject({ phys_addr: 0x21000n, len: 2, is_write: 1 });
    expect(guest.run().errno).toBe('EINTR');
    guest.setRun({ immediate_exit: 0 });
    expect(guest.run().reason).toBe(KVM_EXIT.HLT);
  });

  it('completes a load with userspace data even if RAM has come there, and with the segments it began with', () => {
    const guest = new Guest().program(LOAD_BEYOND);
    guest.run();
    expect(guest.mmio).toMatchObject({ phys_addr: 0x15000n, len: 1, is_write: 0 });
    guest.addSlot(0x10000, pages(16), { slot: 1 });
    guest.write(0x15000, 'ee');
    guest.setSregs(({ ds }) => ({ ds: { ...ds, base: 0n, selector: 0 } }));
    guest.answerMmio('a5');
    expect(guest.run().reason).toBe(KVM_EXIT.HLT);
    expect(guest.regs.rax & 0xffn).toBe(0xa5n);
    expect(guest.sregs.ds.base).toBe(0n);
  });

  it('sends a write to a read-only slot to userspace and lets reads through', () => {
    // mov ax,0x1000; mov ds,ax; mov bl,[0]; mov byte ptr [0],0x77; hlt
    const guest = new Guest().program('b80010 8ed8 8a1e0000 c606000077 f4');
    guest.addSlot(0x10000, pages(1), { slot: 1, flags: KVM_MEM.READONLY });
    guest.write(0x10000, '42');
    guest.run();
    expect(guest.mmio).toMatchObject({ phys_addr: 0x10000n, is_write: 1 });
    expect(guest.regs.rbx).toBe(0x42n);
    guest.run();
    expect(guest.read(0x10000, 1)).toBe('42');
  });

  it('fails with EFAULT and tells of the page where a slot has no memory behind it', () => {
    const guest = new Guest().program(LOAD_BEYOND);
    guest.addSlot(0x10000, pages(16), { slot: 1 });
    guest.mm.munmap(guest.memory + 0x15000, pages(1));
    expect(guest.run()).toEqual({ errno: 'EFAULT', reason: KVM_EXIT.MEMORY_FAULT });
    expect(guest.runPage(kvm_run__memory_fault)).toEqual({ flags: 0n, gpa: 0x15000n, size: 4096n });
  });

  it('reports an instruction that cannot be fetched as an emulation failure', () => {
    // jmp 0x2000:0
    expect(new Guest().program('ea00000020').run().reason).toBe(KVM_EXIT.INTERNAL_ERROR);
  });

  it.each([
    ['INT 0x20', 'cd20'],
    ['INT3', 'cc'],
    ['INTO', 'b07f 0401 ce'],
  ])('tells userspace that %s cannot push its frame where no memory is, and stays on the instruction', (_name, code) => {
    const guest = new Guest().program(`${code} f4`);
    guest.setSregs(({ ss }) => ({ ss: { ...ss, base: 0x20000n } }));
    expect(guest.run().reason).toBe(KVM_EXIT.INTERNAL_ERROR);
    expect(guest.runPage(kvm_run__internal).suberror).toBe(KVM_INTERNAL_ERROR.DELIVERY_EV);
    const length = code.replaceAll(' ', '').length / 2;
    expect(guest.regs.rip).toBe(BigInt(CODE + (length > 2 ? length - 1 : 0)));
    expect(guest.regs.rsp).toBe(BigInt(STACK));
  });

  it('answers EIO to KVM_REQ_VM_DEAD, with exit reason 0', () => {
    const guest = new Guest().program(SPIN);
    let turns = 0;
    const { result } = guest.startRun(() => {
      if (++turns === 3) guest.vcpu.request(REQUEST.VM_DEAD);
    });
    expect(guest.exit(result())).toEqual({ errno: 'EIO', reason: KVM_EXIT.UNKNOWN });
    const failure = result();
    expect(failure instanceof Failure && failure.reason).toBe('VM_DEAD_IN_RUN');
  });

  it('tells userspace when it may inject, and takes what is injected', () => {
    // mov word [0x80],0x1100; mov word [0x82],0; sti; nop; 1: hlt; jmp 1b
    const guest = new Guest().program('c70680000011 c70682000000 fb 90 f4 ebfd');
    guest.write(0x1100, 'e680 cf');
    guest.run();
    expect(guest.runPage(kvm_run)).toMatchObject({ if_flag: 1, ready_for_interrupt_injection: 1 });
    expect(guest.try(IOCTL.KVM_INTERRUPT, kvm_interrupt.encode({ irq: 0x20 }))).toBe(0);
    expect(guest.run().reason).toBe(KVM_EXIT.IO);
    expect(guest.io.port).toBe(0x80);
    expect(guest.run().reason).toBe(KVM_EXIT.HLT);
  });

  it('opens the interrupt window as soon as IF is set and the shadow is over', () => {
    const guest = new Guest().program('fb 90 90 f4');
    guest.setRun({ request_interrupt_window: 1 });
    expect(guest.run().reason).toBe(KVM_EXIT.IRQ_WINDOW_OPEN);
    expect(guest.regs.rip).toBe(BigInt(CODE + 2));
  });
});

describe('a vCPU with an in-kernel APIC', () => {
  const withIrqchip = (): Guest =>
    new Guest({}, ({ process, vmFd }) => process.must(process.ioctl(vmFd, IOCTL.KVM_CREATE_IRQCHIP)));

  it('sleeps in HLT until a signal, and stays halted', () => {
    const guest = withIrqchip().program(HLT);
    const { task, result } = guest.startRun();
    expect(result()).toBeUndefined();
    task.signal(SIGUSR1);
    guest.kernel.scheduler.run();
    expect(guest.exit(result())).toEqual({ errno: 'EINTR', reason: KVM_EXIT.INTR });
    expect(guest.get(IOCTL.KVM_GET_MP_STATE, kvm_mp_state).mp_state).toBe(KVM_MP_STATE.HALTED);
  });

  it('is not woken by the death of its VM', () => {
    const guest = withIrqchip().program(HLT);
    const { task, result } = guest.startRun();
    guest.vcpu.request(REQUEST.VM_DEAD);
    guest.kernel.scheduler.run();
    expect(result()).toBeUndefined();
    task.signal(SIGUSR1);
    guest.kernel.scheduler.run();
    expect(guest.exit(result()).errno).toBe('EINTR');
  });

  it('waits for INIT and SIPI unless it is the bootstrap processor, and is interruptible', () => {
    const guest = withIrqchip();
    const { fd } = guest.process.createVcpu(guest.vmFd, 1);
    const { task, result } = guest.process.startIoctl(fd, IOCTL.KVM_RUN);
    expect(result()).toBeUndefined();
    task.signal(SIGUSR1);
    guest.kernel.scheduler.run();
    const failure = result();
    expect(failure instanceof Failure && failure.errno).toBe('EINTR');
  });
});
