import type { Core } from '../core.js';
import { Rflags } from '../flags.js';
import { type Compiled, end, type Instruction, type InstructionGroup, next } from '../instruction.js';
import { OutsideSubset, operandAt, reader, sizeOf, writer } from '../operands.js';
import { writableFlags } from '../privilege.js';
import { Gpr, Seg, Vector } from '../registers.js';
import { loadSegment } from '../segmentation.js';
import { GuestFault } from '../traps.js';
import { shadowAfterStackSegment } from './segment-registers.js';

const RBP = 2 * Gpr.RBP;

/** The operand size of an instruction that only its encoding tells, by a suffix ('Pushfw', 'Retnd_imm16'). */
export function encodedSize(instruction: Instruction): 2 | 4 | 8 {
  const [opcode = ''] = instruction.code.split('_');
  if (opcode.endsWith('w')) return 2;
  if (opcode.endsWith('d')) return 4;
  if (opcode.endsWith('q')) return 8;
  return instruction.bits === 64 ? 8 : instruction.bits === 32 ? 4 : 2;
}

function push(core: Core, instruction: Instruction): Compiled {
  const operand = operandAt(instruction, 0);
  if (operand.kind === 'segment') {
    const size = encodedSize(instruction);
    const { selector } = core.state;
    return next(() => core.push(size, selector[operand.index], 0));
  }
  if (operand.kind === 'immediate') {
    const { lo, hi } = operand;
    const size = pushedImmediateSize(instruction);
    return next(() => core.push(size, lo, hi));
  }
  const size = sizeOf(instruction, 0);
  const read = reader(core, instruction, 0, size);
  if (size === 8) {
    return next(() => {
      const lo = read();
      core.push64(lo, core.hi);
    });
  }
  if (size === 4) return next(() => core.push32(read()));
  return next(() => core.push16(read()));
}

/** 'Push_imm16', 'Pushw_imm8', 'Pushd_imm32', 'Pushq_imm8'. */
const pushedImmediateSize = (instruction: Instruction): number =>
  instruction.code === 'Push_imm16' ? 2 : encodedSize(instruction);

/** POP to memory computes its address with the RSP that follows the pop. */
function pop(core: Core, instruction: Instruction): Compiled {
  const operand = operandAt(instruction, 0);
  if (operand.kind === 'segment') {
    const size = encodedSize(instruction);
    return end(() => {
      // Only the selector is read, whatever the size of its place on the stack.
      const selector = core.peek(2, 0);
      loadSegment(core, operand.index, selector);
      core.addToStackPointer(size);
      if (operand.index === Seg.SS) shadowAfterStackSegment(core);
    });
  }
  const size = sizeOf(instruction, 0);
  const write = writer(core, instruction, 0);
  if (operand.kind === 'gpr') {
    return next(() => {
      const lo = core.pop(size);
      write(lo, core.hi);
    });
  }
  return next(() => {
    const lo = core.peek(size, 0);
    const { hi } = core;
    core.addToStackPointer(size);
    try {
      write(lo, hi);
    } catch (trap) {
      core.addToStackPointer(-size);
      throw trap;
    }
  });
}

function pushAll(core: Core, instruction: Instruction): Compiled {
  const size = encodedSize(instruction);
  const { gpr, memory } = core;
  return next(() => {
    for (const delta of [-size, -8 * size]) memory.probeWrite(core.stackAddress(delta, size, true), 0, size);
    const rsp = gpr[2 * Gpr.RSP];
    for (let index = 0; index < 8; index++) core.push(size, index === Gpr.RSP ? rsp : gpr[2 * index], 0);
  });
}

function popAll(core: Core, instruction: Instruction): Compiled {
  const size = encodedSize(instruction);
  const { gpr } = core;
  const { gpr16 } = core.state;
  return next(() => {
    const values = Array.from({ length: 8 }, (_, slot) => core.peek(size, size * slot));
    values.forEach((value, slot) => {
      const index = 7 - slot;
      if (index === Gpr.RSP) return;
      if (size === 2) {
        gpr16[4 * index] = value;
      } else {
        gpr[2 * index] = value;
        gpr[2 * index + 1] = 0;
      }
    });
    core.addToStackPointer(8 * size);
  });
}

function pushFlags(core: Core, instruction: Instruction): Compiled {
  const size = encodedSize(instruction);
  return next(() => core.push(size, core.flags.value & ~(Rflags.RF | Rflags.VM), 0));
}

function popFlags(core: Core, instruction: Instruction): Compiled {
  const size = encodedSize(instruction);
  return end(() => {
    const image = core.pop(size);
    core.setFlags(image, writableFlags(core, size));
  });
}

/** ENTER with its nesting level. */
function enter(core: Core, instruction: Instruction): Compiled {
  const size = encodedSize(instruction);
  const allocation = operandAt(instruction, 0);
  const nesting = operandAt(instruction, 1);
  if (allocation.kind !== 'immediate' || nesting.kind !== 'immediate') throw new OutsideSubset(instruction.code);
  const bytes = allocation.lo & 0xffff;
  const level = nesting.lo & 31;
  const { gpr, memory } = core;
  const { gpr16 } = core.state;
  return next(() => {
    const rspLo = gpr[2 * Gpr.RSP];
    const rspHi = gpr[2 * Gpr.RSP + 1];
    try {
      core.push(size, gpr[RBP], gpr[RBP + 1]);
      const frameLo = gpr[2 * Gpr.RSP];
      const frameHi = gpr[2 * Gpr.RSP + 1];
      for (let i = 1; i < level; i++) {
        const lo = (gpr[RBP] - size * i) | 0;
        const hi = (gpr[RBP + 1] - (lo >>> 0 > gpr[RBP] >>> 0 ? 1 : 0)) | 0;
        const at = core.dataAddress(Seg.SS, core.stackSize === 16 ? lo & 0xffff : lo, hi, size, false);
        const valueLo =
          size === 8 ? memory.load64(at, memory.hi) : size === 4 ? memory.load32(at, memory.hi) : memory.load16(at, memory.hi);
        core.push(size, valueLo, memory.dataHi);
      }
      if (level > 0) core.push(size, frameLo, frameHi);
      memory.probeWrite(core.stackAddress(-bytes, 1, true), memory.hi, 1);
      core.addToStackPointer(-bytes);
      if (size === 2) gpr16[2 * RBP] = frameLo;
      else {
        gpr[RBP] = frameLo;
        gpr[RBP + 1] = size === 8 ? frameHi : 0;
      }
    } catch (trap) {
      gpr[2 * Gpr.RSP] = rspLo;
      gpr[2 * Gpr.RSP + 1] = rspHi;
      throw trap;
    }
  });
}

function leave(core: Core, instruction: Instruction): Compiled {
  const size = encodedSize(instruction);
  const { gpr } = core;
  const { gpr16 } = core.state;
  return next(() => {
    const rspLo = gpr[2 * Gpr.RSP];
    const rspHi = gpr[2 * Gpr.RSP + 1];
    core.setStackPointer(gpr[RBP], gpr[RBP + 1]);
    let lo: number;
    try {
      lo = core.pop(size);
    } catch (trap) {
      gpr[2 * Gpr.RSP] = rspLo;
      gpr[2 * Gpr.RSP + 1] = rspHi;
      throw trap;
    }
    if (size === 2) gpr16[2 * RBP] = lo;
    else {
      gpr[RBP] = lo;
      gpr[RBP + 1] = size === 8 ? core.hi : 0;
    }
  });
}

/** BOUND: #BR for an index outside. */
function bound(core: Core, instruction: Instruction): Compiled {
  const size = sizeOf(instruction, 0);
  const index = reader(core, instruction, 0, size);
  const operand = operandAt(instruction, 1);
  if (operand.kind !== 'memory') throw new OutsideSubset(instruction.code);
  const lower = reader(core, instruction, 1, size);
  const upperOperand = { ...operand, displacementLo: (operand.displacementLo + size) | 0 };
  const upper = reader(core, { ...instruction, operands: [upperOperand] }, 0, size);
  const align = 32 - 8 * size;
  return next(() => {
    const value = (index() << align) >> align;
    const least = (lower() << align) >> align;
    if (value < least || value > (upper() << align) >> align) throw new GuestFault(Vector.BR, null);
  });
}

/** PUSH and POP of everything, ENTER, LEAVE, BOUND. */
export const stack: InstructionGroup = {
  Push: push,
  Pop: pop,
  Pusha: pushAll,
  Pushad: pushAll,
  Popa: popAll,
  Popad: popAll,
  Pushf: pushFlags,
  Pushfd: pushFlags,
  Pushfq: pushFlags,
  Popf: popFlags,
  Popfd: popFlags,
  Popfq: popFlags,
  Enter: enter,
  Leave: leave,
  Bound: bound,
};
