import { CONDITION_CODES, condition } from '../conditions.js';
import type { Core } from '../core.js';
import { farCall, farJump, farReturn, interruptReturn } from '../far-transfer.js';
import { branch, type Compiled, type Instruction, type InstructionGroup } from '../instruction.js';
import { farPointerReader, OutsideSubset, operandAt, reader, sizeOf } from '../operands.js';
import { Gpr } from '../registers.js';
import { encodedSize } from './stack.js';

/** Target of a relative branch; with a 16-bit operand size it has been truncated by the decoder. */
function targetOf(instruction: Instruction): { readonly lo: number; readonly hi: number } {
  const operand = operandAt(instruction, 0);
  if (operand.kind !== 'branch') throw new OutsideSubset(instruction.code);
  return { lo: operand.lo, hi: instruction.bits === 64 ? operand.hi : 0 };
}

/** Goes to a fixed target: only outside 64-bit code it may lie beyond the segment. */
function jumpTo(core: Core, instruction: Instruction, lo: number, hi: number): () => void {
  const { state } = core;
  if (instruction.bits !== 64) return () => core.jump(lo, hi);
  return () => {
    state.ripLo = lo;
    state.ripHi = hi;
  };
}

const conditionalJump =
  (code: string) =>
  (core: Core, instruction: Instruction): Compiled => {
    const test = condition(code);
    const { flags, state } = core;
    const { lo, hi } = targetOf(instruction);
    const { nextLo, nextHi } = instruction;
    if (instruction.bits !== 64) {
      return branch(() => {
        if (test(flags)) core.jump(lo, hi);
        else state.ripLo = nextLo;
      });
    }
    return branch(() => {
      if (test(flags)) {
        state.ripLo = lo;
        state.ripHi = hi;
      } else {
        state.ripLo = nextLo;
        state.ripHi = nextHi;
      }
    });
  };

/** JCXZ, JECXZ, JRCXZ and the LOOPs. */
const countedJump =
  (kind: 'jcxz' | 'loop' | 'loope' | 'loopne') =>
  (core: Core, instruction: Instruction): Compiled => {
    const { gpr, flags, state } = core;
    const { gpr16 } = state;
    const { lo, hi } = targetOf(instruction);
    const { nextLo, nextHi, addressSize } = instruction;
    const at = 2 * Gpr.RCX;
    const jump = jumpTo(core, instruction, lo, hi);
    const isZero = (): boolean => {
      if (addressSize === 16) return gpr16[2 * at] === 0;
      return addressSize === 32 ? gpr[at] === 0 : (gpr[at] | gpr[at + 1]) === 0;
    };
    const count = (by: number): void => {
      if (addressSize === 16) {
        gpr16[2 * at] += by;
      } else if (addressSize === 32) {
        gpr[at] += by;
        gpr[at + 1] = 0;
      } else {
        const before = gpr[at];
        gpr[at] = before + by;
        if (by < 0 && before === 0) gpr[at + 1]--;
        if (by > 0 && gpr[at] === 0) gpr[at + 1]++;
      }
    };
    const taken = (): boolean => {
      if (kind === 'jcxz') return isZero();
      count(-1);
      return !isZero() && (kind === 'loop' || (flags.zero === 0) === (kind === 'loope'));
    };
    return branch(() => {
      if (!taken()) {
        state.ripLo = nextLo;
        state.ripHi = nextHi;
        return;
      }
      try {
        jump();
      } catch (trap) {
        if (kind !== 'jcxz') count(1);
        throw trap;
      }
    });
  };

function jump(core: Core, instruction: Instruction): Compiled {
  const operand = operandAt(instruction, 0);
  if (operand.kind === 'far') {
    const target = { selector: operand.selector, lo: operand.offset, hi: 0 };
    return branch(() => farJump(core, target));
  }
  if (operand.kind === 'branch') {
    const { lo, hi } = targetOf(instruction);
    return branch(jumpTo(core, instruction, lo, hi));
  }
  if (isFarPointer(instruction)) {
    const read = farPointerReader(core, instruction, 0, farOffsetSize(instruction));
    return branch(() => farJump(core, read()));
  }
  const size = sizeOf(instruction, 0);
  const read = reader(core, instruction, 0, size);
  return branch(() => {
    const lo = read();
    core.jump(lo, size === 8 ? core.hi : 0);
  });
}

function call(core: Core, instruction: Instruction): Compiled {
  const operand = operandAt(instruction, 0);
  const { nextLo, nextHi } = instruction;
  if (operand.kind === 'far') {
    const size = instruction.code.endsWith('1632') ? 4 : 2;
    const target = { selector: operand.selector, lo: operand.offset, hi: 0 };
    return branch(() => farCall(core, target, size, nextLo, 0));
  }
  if (isFarPointer(instruction)) {
    const size = farOffsetSize(instruction);
    const read = farPointerReader(core, instruction, 0, size);
    return branch(() => farCall(core, read(), size, nextLo, nextHi));
  }
  if (operand.kind === 'branch') {
    const { lo, hi } = targetOf(instruction);
    const size = instruction.code.startsWith('Call_rel16') ? 2 : instruction.bits === 64 ? 8 : 4;
    if (size === 8) {
      const { state } = core;
      return branch(() => {
        core.push64(nextLo, nextHi);
        state.ripLo = lo;
        state.ripHi = hi;
      });
    }
    return branch(() => callNear(core, lo, hi, size, nextLo, nextHi));
  }
  const size = sizeOf(instruction, 0);
  const read = reader(core, instruction, 0, size);
  return branch(() => {
    const lo = read();
    callNear(core, lo, size === 8 ? core.hi : 0, size, nextLo, nextHi);
  });
}

function callNear(core: Core, lo: number, hi: number, size: number, returnLo: number, returnHi: number): void {
  core.jump(lo, hi);
  core.push(size, returnLo, returnHi);
}

const isFarPointer = (instruction: Instruction): boolean => /_m16(16|32|64)$/.test(instruction.code);

const farOffsetSize = (instruction: Instruction): 2 | 4 | 8 =>
  instruction.code.endsWith('m1664') ? 8 : instruction.code.endsWith('m1632') ? 4 : 2;

/** Bytes that RET n releases. */
function released(instruction: Instruction): number {
  const operand = instruction.operands[0];
  return operand?.kind === 'immediate' ? operand.lo & 0xffff : 0;
}

function returnNear(core: Core, instruction: Instruction): Compiled {
  const size = encodedSize(instruction);
  const release = size + released(instruction);
  return branch(() => {
    const lo = core.peek(size, 0);
    core.jump(size === 2 ? lo & 0xffff : lo, core.hi);
    core.addToStackPointer(release);
  });
}

function returnFar(core: Core, instruction: Instruction): Compiled {
  const size = encodedSize(instruction);
  const release = released(instruction);
  return branch(() => farReturn(core, size, release));
}

function returnFromInterrupt(core: Core, instruction: Instruction): Compiled {
  const size = encodedSize(instruction);
  return branch(() => interruptReturn(core, size));
}

/** Jumps, calls and returns, near and far. */
export const branches: InstructionGroup = {
  ...Object.fromEntries(CONDITION_CODES.map((code) => [`J${code}`, conditionalJump(code)])),
  Jcxz: countedJump('jcxz'),
  Jecxz: countedJump('jcxz'),
  Jrcxz: countedJump('jcxz'),
  Loop: countedJump('loop'),
  Loope: countedJump('loope'),
  Loopne: countedJump('loopne'),
  Jmp: jump,
  Call: call,
  Ret: returnNear,
  Retf: returnFar,
  Iret: returnFromInterrupt,
  Iretd: returnFromInterrupt,
  Iretq: returnFromInterrupt,
};
