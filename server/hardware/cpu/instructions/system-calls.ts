import type { Core } from '../core.js';
import { Rflags } from '../flags.js';
import { branch, type Compiled, type Instruction, type InstructionGroup } from '../instruction.js';
import { operandAt } from '../operands.js';
import { Attr, Efer, Gpr, Msr, Seg, Vector } from '../registers.js';
import { GuestFault, SoftwareInterrupt } from '../traps.js';
import { encodedSize } from './stack.js';

const FLAT_CODE = Attr.P | Attr.S | Attr.CODE | Attr.WRITE | Attr.ACCESSED | Attr.G;
const FLAT_DATA = Attr.P | Attr.S | Attr.WRITE | Attr.ACCESSED | Attr.G | Attr.DB;

/** CS and SS as SYSCALL and its kin set them: flat, whatever the descriptor tables say. */
function setFlat(core: Core, selector: number, stackSelector: number, cpl: number, mode: number): void {
  const { state } = core;
  const flat = (segment: number, value: number, attributes: number): void => {
    state.selector[segment] = value;
    state.baseLo[segment] = 0;
    state.baseHi[segment] = 0;
    state.limit[segment] = 0xffffffff;
    state.attributes[segment] = attributes | (cpl << Attr.DPL_SHIFT);
  };
  flat(Seg.CS, selector & 0xffff, FLAT_CODE | mode);
  flat(Seg.SS, stackSelector & 0xffff, FLAT_DATA);
  core.deriveMode();
}

const msr = (core: Core, index: number): bigint => core.state.readMsr(index) ?? 0n;

function requireSyscall(core: Core): void {
  if ((core.state.eferLo & Efer.SCE) === 0) throw new GuestFault(Vector.UD, null);
}

/** SYSCALL: APM volume 2, 6.1.1. */
function systemCall(core: Core, instruction: Instruction): Compiled {
  const { gpr, state, flags } = core;
  const { nextLo, nextHi } = instruction;
  return branch(() => {
    requireSyscall(core);
    const star = msr(core, Msr.STAR);
    const selector = Number((star >> 32n) & 0xfffcn);
    gpr[2 * Gpr.RCX] = nextLo;
    gpr[2 * Gpr.RCX + 1] = nextHi;
    if (state.longMode) {
      gpr[22] = flags.value & ~Rflags.RF;
      gpr[23] = 0;
      const entry = msr(core, core.code64 ? Msr.LSTAR : Msr.CSTAR);
      setFlat(core, selector, selector + 8, 0, Attr.L);
      core.setFlags(0, Number(msr(core, Msr.SYSCALL_MASK) & 0xffffffffn) | Rflags.RF);
      state.rip = entry;
    } else {
      setFlat(core, selector, selector + 8, 0, Attr.DB);
      core.setFlags(0, Rflags.IF | Rflags.VM | Rflags.RF);
      state.rip = star & 0xffffffffn;
    }
  });
}

/** SYSRET: to 64-bit or compatibility code. */
function systemReturn(core: Core, instruction: Instruction): Compiled {
  const { gpr, state } = core;
  const wide = encodedSize(instruction) === 8;
  return branch(() => {
    requireSyscall(core);
    core.requirePrivilege();
    const selector = Number((msr(core, Msr.STAR) >> 48n) & 0xffffn);
    const lo = gpr[2 * Gpr.RCX];
    const hi = wide ? gpr[2 * Gpr.RCX + 1] : 0;
    if (wide && !core.memory.isCanonical(lo, hi)) throw new GuestFault(Vector.GP, 0);
    const image = gpr[22];
    const long = state.longMode;
    setFlat(core, (selector + (wide ? 16 : 0)) | 3, (selector + 8) | 3, 3, wide ? Attr.L : Attr.DB);
    if (long) core.setFlags(image, 0x3c7fd7);
    else core.setFlags(Rflags.IF, Rflags.IF);
    state.ripLo = lo;
    state.ripHi = hi;
  });
}

/** SYSENTER; an invalid CS selector is #GP. */
function systemEnter(core: Core): Compiled {
  const { state } = core;
  return branch(() => {
    const selector = Number(msr(core, Msr.SYSENTER_CS) & 0xfffcn);
    if (!core.protectedMode || selector === 0) throw new GuestFault(Vector.GP, 0);
    const entry = msr(core, Msr.SYSENTER_EIP);
    const stack = msr(core, Msr.SYSENTER_ESP);
    const long = state.longMode;
    setFlat(core, selector, selector + 8, 0, long ? Attr.L : Attr.DB);
    core.setFlags(0, Rflags.IF | Rflags.VM | Rflags.RF);
    state.rip = long ? entry : entry & 0xffffffffn;
    state.setRegister(Gpr.RSP, long ? stack : stack & 0xffffffffn);
  });
}

function systemExit(core: Core, instruction: Instruction): Compiled {
  const { gpr, state } = core;
  const wide = encodedSize(instruction) === 8;
  return branch(() => {
    const selector = Number(msr(core, Msr.SYSENTER_CS) & 0xfffcn);
    if (!core.protectedMode || selector === 0) throw new GuestFault(Vector.GP, 0);
    core.requirePrivilege();
    const ripLo = gpr[2 * Gpr.RDX];
    const ripHi = wide ? gpr[2 * Gpr.RDX + 1] : 0;
    const offset = wide ? 32 : 16;
    const rspLo = gpr[2 * Gpr.RCX];
    const rspHi = wide ? gpr[2 * Gpr.RCX + 1] : 0;
    setFlat(core, (selector + offset) | 3, (selector + offset + 8) | 3, 3, wide ? Attr.L : Attr.DB);
    state.ripLo = ripLo;
    state.ripHi = ripHi;
    gpr[2 * Gpr.RSP] = rspLo;
    gpr[2 * Gpr.RSP + 1] = rspHi;
  });
}

/** INT n, INT3, INTO, INT1: the event returns to the next instruction. */
const softwareInterrupt =
  (fixed: number | null, type: 'software' | 'exception' = 'software') =>
  (_core: Core, instruction: Instruction): Compiled => {
    const operand = fixed === null ? operandAt(instruction, 0) : null;
    const vector = fixed ?? (operand?.kind === 'immediate' ? operand.lo & 0xff : 0);
    const event = new SoftwareInterrupt({ type, vector, errorCode: null });
    return branch(() => {
      throw event;
    });
  };

function overflowInterrupt(core: Core): Compiled {
  const event = new SoftwareInterrupt({ type: 'software', vector: Vector.OF, errorCode: null });
  return {
    run: () => {
      if (core.flags.of === 1) throw event;
    },
    flow: 'next',
  };
}

/** Calls into the system and back. */
export const systemCalls: InstructionGroup = {
  Syscall: systemCall,
  Sysret: systemReturn,
  Sysretq: systemReturn,
  Sysenter: systemEnter,
  Sysexit: systemExit,
  Sysexitq: systemExit,
  Int: softwareInterrupt(null),
  Int3: softwareInterrupt(Vector.BP),
  Int1: softwareInterrupt(Vector.DB, 'exception'),
  Into: overflowInterrupt,
};
