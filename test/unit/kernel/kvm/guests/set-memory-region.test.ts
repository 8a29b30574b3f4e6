import { describe, expect, it } from 'vitest';
import { KVM_EXIT, KVM_INTERNAL_ERROR } from '../../../../../server/kernel/uapi/constants.js';
import { kvm_run__internal } from '../../../../../server/kernel/uapi/kvm-run.js';
import { CODE, type Exit, Guest, pages } from '../x86/guest.js';
import { Assembler, Register } from './assembler.js';
import { longMode } from './modes.js';

const REGION_GPA = 0xc000_0000;
const REGION_SLOT = 10;
const REGION_OFFSET = 0x20000;
const SPARE_GPA = 0x1000_0000;
const REPORT_PORT = 0x80;
const SIGUSR1 = 10;
/** Steps of the scheduler after which the host does something, and after which the guest has waited long enough. */
const CHANGE_AFTER = 3;
const END_AFTER = 40;
const INVALID_OPCODE = 6;
const GATE_BYTES = 16;

/** Reads the region until it is not zero, and reports what it is then. */
const reader = (): string => {
  const a = new Assembler(64);
  a.mov32(Register.EBX, REGION_GPA).mov32(Register.ESI, 0).mov32(Register.EDX, REPORT_PORT);
  const again = a.label();
  a.bind(again).load64(Register.RAX, Register.RBX).compare(Register.EAX, Register.ESI).je(again);
  return a.outDword().hlt().encode(CODE);
};

const startGuest = (code: string): Guest => {
  const guest = new Guest();
  longMode(guest);
  guest.addSlot(REGION_GPA, pages(1), { slot: REGION_SLOT, offset: REGION_OFFSET });
  return guest.program(code);
};

const setRegion = (guest: Guest, gpa: number, size: number): void =>
  guest.addSlot(gpa, size, { slot: REGION_SLOT, offset: REGION_OFFSET });

/** Lets the guest run for a while; then `change` is done, and what KVM_RUN comes back with is given. */
const runAndChange = (guest: Guest, change: () => void): Exit => {
  let turns = 0;
  const { result } = guest.startRun(() => {
    turns++;
    if (turns === CHANGE_AFTER) change();
    if (turns === END_AFTER) guest.process.process.signal(SIGUSR1);
  });
  return guest.exit(result());
};

/** What kvm's set_memory_region_test checks, of a guest that reads while its memory changes. */
describe('a region that changes under a reader', () => {
  it('shows the guest what the host stores', () => {
    const guest = startGuest(reader());
    expect(runAndChange(guest, () => guest.write(REGION_OFFSET, '01000000')).reason).toBe(KVM_EXIT.IO);
    expect(guest.regs.rax).toBe(1n);
  });

  it('and moves away leaves a load of 8 bytes to userspace; what is stored meanwhile is not seen', () => {
    const guest = startGuest(reader());
    const exit = runAndChange(guest, () => {
      guest.write(REGION_OFFSET, '02000000');
      setRegion(guest, SPARE_GPA, pages(1));
    });
    expect(exit).toEqual({ errno: null, reason: KVM_EXIT.MMIO });
    expect(guest.mmio).toMatchObject({ phys_addr: BigInt(REGION_GPA), len: 8, is_write: 0 });
    guest.write(REGION_OFFSET, '00000000');
    setRegion(guest, REGION_GPA, pages(1));
    guest.answerMmio('0000000000000000');
    expect(runAndChange(guest, () => guest.write(REGION_OFFSET, '01000000')).reason).toBe(KVM_EXIT.IO);
    expect(guest.regs.rax).toBe(1n);
  });

  it('and is deleted is a hole, and when it is made again the memory that it was', () => {
    const guest = startGuest(reader());
    expect(runAndChange(guest, () => setRegion(guest, REGION_GPA, 0)).reason).toBe(KVM_EXIT.MMIO);
    guest.answerMmio('0000000000000000');
    setRegion(guest, REGION_GPA, pages(1));
    expect(runAndChange(guest, () => guest.write(REGION_OFFSET, '07000000')).reason).toBe(KVM_EXIT.IO);
    expect(guest.regs.rax).toBe(7n);
  });

  it('and holds the code ends the guest when it is deleted', () => {
    const guest = startGuest(reader());
    const { reason } = runAndChange(guest, () => guest.addSlot(0, 0));
    expect([KVM_EXIT.SHUTDOWN, KVM_EXIT.INTERNAL_ERROR]).toContain(reason);
  });
});

describe('a guest without the memory that it needs', () => {
  it('ends with an internal error if it has no slot at all', () => {
    const guest = new Guest();
    guest.addSlot(0, 0);
    expect(guest.run()).toEqual({ errno: null, reason: KVM_EXIT.INTERNAL_ERROR });
  });

  it('cannot be given an exception if its IDT lies in a hole', () => {
    const guest = startGuest(new Assembler(64).ud2().encode(CODE));
    const base = BigInt(REGION_GPA + pages(1));
    guest.setSregs(({ idt }) => ({ idt: { ...idt, base, limit: 0xfff } }));
    expect(guest.run()).toEqual({ errno: null, reason: KVM_EXIT.INTERNAL_ERROR });
    const { suberror, data } = guest.runPage(kvm_run__internal);
    expect(suberror).toBe(KVM_INTERNAL_ERROR.DELIVERY_EV);
    expect(data[3]).toBe(base + BigInt(INVALID_OPCODE * GATE_BYTES));
  });
});
