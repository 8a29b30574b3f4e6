import { describe, expect, it } from 'vitest';
import { KVM_EXIT, KVM_EXIT_IO } from '../../../../../server/kernel/uapi/constants.js';
import { kvm_run } from '../../../../../server/kernel/uapi/kvm-run.js';
import { CODE, Guest } from '../x86/guest.js';
import { Assembler, type Bits, Register } from './assembler.js';
import { longMode, pagedMode, protectedMode } from './modes.js';

const CONSOLE_PORT = 0xe9;
const RESULT_AT = 0x400;
const RESULT = 42;
const TEXT = 'Hello, world!\n';
const EXITS_MAX = 100;

/** Writes TEXT to the console, a byte at a time, and RESULT to memory and EAX. */
const hello = (bits: Bits): string => {
  const a = new Assembler(bits);
  for (const byte of Buffer.from(TEXT)) a.mov8(Register.AL, byte).outByte(CONSOLE_PORT);
  const base = { 16: Register.BX, 32: Register.EBX, 64: Register.RBX }[bits];
  return a.mov32(Register.EBX, RESULT_AT).store32(base, RESULT).mov32(Register.EAX, RESULT).hlt().encode(CODE);
};

/** What a VMM prints for a guest until it does something else. */
const consoleOf = (guest: Guest): string => {
  let text = '';
  for (let left = EXITS_MAX; left > 0 && guest.run().reason === KVM_EXIT.IO; left--) {
    expect(guest.io).toMatchObject({ direction: KVM_EXIT_IO.OUT, size: 1, port: CONSOLE_PORT, count: 1 });
    text += String.fromCharCode(guest.vcpu.runPages.pio.bytes[0] ?? 0);
  }
  return text;
};

describe.each([
  { mode: 'real mode', bits: 16, enter: () => {} },
  { mode: 'protected mode', bits: 32, enter: protectedMode },
  { mode: 'protected mode with paging', bits: 32, enter: pagedMode },
  { mode: 'long mode', bits: 64, enter: longMode },
] as const)('a guest in $mode', ({ bits, enter }) => {
  it('says hello, stores its result and halts', () => {
    const guest = new Guest();
    enter(guest);
    guest.program(hello(bits));
    expect(consoleOf(guest)).toBe(TEXT);
    expect(guest.runPage(kvm_run).exit_reason).toBe(KVM_EXIT.HLT);
    expect(guest.regs.rax).toBe(BigInt(RESULT));
    expect(guest.read(RESULT_AT, 4)).toBe('2a000000');
  });
});
