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
