import { Register } from 'iced-x86';
import { Assembler } from './assembler.js';

/** The exception by which a CPU tells an SEV-ES guest that the host has to help (APM volume 2, 15.35.5). */
export const VC_VECTOR = 29;

/** Error codes of #VC: the exit codes of the VMCB. */
const EXIT_IOIO = 0x7b;
const EXIT_NPF = 0x400;
/** Exit code that asks for an MMIO store (GHCB specification, 4.1). */
const MMIO_WRITE = 0x8000_0002;
/** exit_info_1 of `out dx, al`: one byte, out. */
const OUT_BYTE = 0x10;
const GHCB_MSR = 0xc001_0130;
/** GHCB MSR protocol: the guest gives up. */
const TERMINATE = 0x100;

/** Offsets in the GHCB (GHCB specification, 2.6). */
const GHCB = {
  RAX: 0x1f8,
  SW_EXIT_CODE: 0x390,
  SW_EXIT_INFO_1: 0x398,
  SW_EXIT_INFO_2: 0x3a0,
  SW_SCRATCH: 0x3a8,
  VALID_BITMAP: 0x3f0,
  SHARED_BUFFER: 0x800,
  PROTOCOL_VERSION: 0xffa,
} as const;

/** The valid bitmap has a bit for each quadword of the save area. */
const validByte = (offset: number): number => GHCB.VALID_BITMAP + (offset >> 6);
const validMask = (...offsets: readonly number[]): number =>
  offsets.reduce((bits, offset) => bits | (1 << ((offset >> 3) & 7)), 0);

const SAVED = [Register.RAX, Register.RCX, Register.RDX, Register.RBX] as const;
/** On the stack, above the saved registers: error code, RIP. */
const STACK = { RAX: 24, ERROR_CODE: 32, RIP: 40 } as const;

/** WRMSR of the GHCB's MSR and VMGEXIT; `low` has the value's low half. */
const exitToHost = (a: Assembler): Assembler => a.movImm(Register.ECX, GHCB_MSR).clear(Register.EDX).wrmsr().vmgexit();

/**
 * Handles #VC for the two instructions by which the driver touches devices: `out dx, al` (1 byte) and `mov [rdi], eax`
 * (2 bytes). R15 has the address of this vCPU's GHCB. Everything else gives up.
 */
export const vcHandler = (): Assembler => {
  const a = new Assembler(64);
  const { RSP, R15, RAX, EAX, RBX, EBX, RDX, EDX, RDI } = Register;
  const ioio = a.label();
  const mmio = a.label();
  const ask = a.label();
  for (const register of SAVED) a.push(register, register);
  a.cmp32(RSP, STACK.ERROR_CODE, EXIT_IOIO).je(ioio);
  a.cmp32(RSP, STACK.ERROR_CODE, EXIT_NPF).je(mmio);
  exitToHost(a.movImm(EAX, TERMINATE));
  a.hlt();

  // out dx, al: exit_info_1 has port, direction and size; RAX goes along. EDX's upper half is the driver's, and 0.
  a.bind(ioio).shl(EDX, 16).orImm(EDX, OUT_BYTE);
  a.store64(R15, GHCB.SW_EXIT_INFO_1, RDX);
  a.load64(RAX, RSP, STACK.RAX).store64(R15, GHCB.RAX, RAX);
  a.clear(EBX).store64(R15, GHCB.SW_EXIT_INFO_2, RBX).store64(R15, GHCB.SW_SCRATCH, RBX);
  a.add64(RSP, STACK.RIP, 1);
  a.movImm(EBX, EXIT_IOIO).jmp(ask);

  // mov [rdi], eax: the data lies in the shared buffer, to which sw_scratch points.
  a.bind(mmio).load64(RAX, RSP, STACK.RAX).store32(R15, GHCB.SHARED_BUFFER, EAX);
  a.store64(R15, GHCB.SW_EXIT_INFO_1, RDI);
  a.movImm(EBX, 4).store64(R15, GHCB.SW_EXIT_INFO_2, RBX);
  a.lea64(RBX, R15, GHCB.SHARED_BUFFER).store64(R15, GHCB.SW_SCRATCH, RBX);
  a.add64(RSP, STACK.RIP, 2);
  a.movImm(EBX, MMIO_WRITE);

  a.bind(ask).store64(R15, GHCB.SW_EXIT_CODE, RBX);
  a.storeImm8(R15, validByte(GHCB.RAX), validMask(GHCB.RAX));
  a.storeImm8(
    R15,
    validByte(GHCB.SW_EXIT_CODE),
    validMask(GHCB.SW_EXIT_CODE, GHCB.SW_EXIT_INFO_1, GHCB.SW_EXIT_INFO_2, GHCB.SW_SCRATCH),
  );
  a.storeImm16(R15, GHCB.PROTOCOL_VERSION, 1);
  exitToHost(a.mov64(RAX, R15));
  for (const register of SAVED.toReversed()) a.pop(register, register);
  return a.addImm64(RSP, 8).iret();
};
