import type { Core } from './core.js';
import { type Compiled, end, type Instruction, type InstructionGroup } from './instruction.js';
import { arithmetic } from './instructions/arithmetic.js';
import { branches } from './instructions/branches.js';
import { controlRegisters } from './instructions/control-registers.js';
import { dataMovement } from './instructions/data-movement.js';
import { decimal } from './instructions/decimal.js';
import { fpu } from './instructions/fpu.js';
import { segmentRegisters } from './instructions/segment-registers.js';
import { shiftsAndBits } from './instructions/shifts-and-bits.js';
import { sseGroup } from './instructions/sse.js';
import { stack } from './instructions/stack.js';
import { strings } from './instructions/strings.js';
import { system } from './instructions/system.js';
import { systemCalls } from './instructions/system-calls.js';
import { OutsideSubset } from './operands.js';
import { UnsupportedInstruction } from './traps.js';

/*
 * The subset. In: everything of the integer instruction set up to BMI's TZCNT and LZCNT, MOVBE, POPCNT, string and port
 * instructions, far transfers through segments and call gates, SYSCALL and SYSENTER, control, debug and model-specific
 * registers, the SSE2 moves and integer operations that compilers emit, FXSAVE and the x87 control instructions. Outside,
 * ending `run` with `unsupported`: x87 and SSE arithmetic, MMX, AVX, XSAVE, BMI's other instructions, RDRAND, task
 * switches and task gates, virtual 8086 mode, SMM, nested SVM, and protection keys.
 *
 * Not modelled: alignment checks (#AC), data breakpoints, PCID; PDPTEs are read at each walk. Real processors prefetch and
 * keep stale paging-structure entries longer than this TLB does.
 *
 * What the manuals leave undefined is as an AMD EPYC (Zen) does it: AF is cleared by shifts and logical operations; OF of a
 * shift or rotation by more than one is that of its first step, but left alone by ROL and ROR with an immediate; MUL and
 * IMUL take SF and PF from the lower half and clear ZF and AF; DIV and IDIV leave the flags alone, BT and its kin all but
 * CF; BSF and BSR set PF from the index, clear the others, and leave the destination alone for zero. Not so: OF of RCL
 * and RCR by more than one is that of the last step, SHLD and SHRD of 16 bits by more than 16 repeat their operands,
 * BSWAP of 16 bits gives zero, DAA, DAS and AAM clear OF. See `test/unit/hardware/cpu/native-results.txt`.
 */
const GENERAL: InstructionGroup = {
  ...dataMovement,
  ...stack,
  ...arithmetic,
  ...decimal,
  ...shiftsAndBits,
  ...branches,
  ...strings,
  ...segmentRegisters,
  ...controlRegisters,
  ...system,
  ...systemCalls,
  ...fpu,
};

/** The subset, as the decoder library names it, in alphabetical order. */
export const mnemonics: readonly string[] = [...new Set([...Object.keys(GENERAL), ...Object.keys(sseGroup)])].sort();

/** MOVSD and CMPSD name a string instruction and an SSE one. */
const usesXmm = (instruction: Instruction): boolean => instruction.operands.some((operand) => operand.kind === 'xmm');

/** Turns an instruction into a closure over the machine. What is outside the subset gives up when it is executed. */
export function compile(core: Core, instruction: Instruction): Compiled {
  const group = usesXmm(instruction) ? sseGroup : GENERAL;
  const compileOne = Object.hasOwn(group, instruction.mnemonic) ? group[instruction.mnemonic] : undefined;
  if (compileOne === undefined) return unsupported();
  try {
    return compileOne(core, instruction);
  } catch (reason) {
    if (reason instanceof OutsideSubset) return unsupported();
    throw reason;
  }
}

const unsupported = (): Compiled =>
  end(() => {
    throw new UnsupportedInstruction();
  });
