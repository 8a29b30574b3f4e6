import type { BinaryName, UnaryName } from '../alu.js';
import type { Core } from '../core.js';
import { type Compiled, type Instruction, type InstructionGroup, next } from '../instruction.js';
import { linearAddress, memoryAt, OutsideSubset, operandAt, place, reader, sizeOf } from '../operands.js';
import { Gpr, Vector } from '../registers.js';
import { GuestFault } from '../traps.js';
import { division, multiplication, signedMultiplication } from './multiply-divide.js';

const isNarrow = (size: number): size is 1 | 2 | 4 => size === 1 || size === 2 || size === 4;

/** ADD, OR, ADC, SBB, AND, SUB, XOR: destination and source. */
const binary =
  (name: BinaryName) =>
  (core: Core, instruction: Instruction): Compiled =>
    sizeOf(instruction, 0) === 8 ? binary64(core, instruction, name) : binaryNarrow(core, instruction, name);

function binaryNarrow(core: Core, instruction: Instruction, name: BinaryName): Compiled {
  const size = sizeOf(instruction, 0);
  if (!isNarrow(size)) throw new OutsideSubset(instruction.code);
  const operation = core.alu[size].binary[name];
  const { gpr } = core;
  const destination = operandAt(instruction, 0);
  const source = operandAt(instruction, 1);
  if (destination.kind === 'gpr' && size === 4) {
    const at = 2 * destination.index;
    if (source.kind === 'gpr') {
      const from = 2 * source.index;
      return next(() => {
        gpr[at] = operation(gpr[at], gpr[from]);
        gpr[at + 1] = 0;
      });
    }
    if (source.kind === 'immediate') {
      const value = source.lo;
      return next(() => {
        gpr[at] = operation(gpr[at], value);
        gpr[at + 1] = 0;
      });
    }
  }
  const read = reader(core, instruction, 1, size);
  const target = place(core, instruction, 0);
  return next(() => {
    const value = read();
    target.write(operation(target.read(), value), 0);
  });
}

function binary64(core: Core, instruction: Instruction, name: BinaryName): Compiled {
  const { gpr, alu64 } = core;
  const operation = alu64.binary[name];
  const destination = operandAt(instruction, 0);
  const source = operandAt(instruction, 1);
  if (destination.kind === 'gpr') {
    const at = 2 * destination.index;
    if (source.kind === 'gpr') {
      const from = 2 * source.index;
      return next(() => {
        gpr[at] = operation(gpr[at], gpr[at + 1], gpr[from], gpr[from + 1]);
        gpr[at + 1] = alu64.hi;
      });
    }
    if (source.kind === 'immediate') {
      const { lo, hi } = source;
      return next(() => {
        gpr[at] = operation(gpr[at], gpr[at + 1], lo, hi);
        gpr[at + 1] = alu64.hi;
      });
    }
  }
  const read = reader(core, instruction, 1, 8);
  const target = place(core, instruction, 0);
  return next(() => {
    const valueLo = read();
    const valueHi = core.hi;
    const lo = target.read();
    const result = operation(lo, core.hi, valueLo, valueHi);
    target.write(result, alu64.hi);
  });
}

/** CMP and TEST: as SUB and AND, without a result. */
const comparison =
  (name: BinaryName) =>
  (core: Core, instruction: Instruction): Compiled => {
    const size = sizeOf(instruction, 0);
    const readLeft = reader(core, instruction, 0, size);
    const readRight = reader(core, instruction, 1, size);
    if (!isNarrow(size)) {
      const operation = core.alu64.binary[name];
      return next(() => {
        const lo = readLeft();
        const { hi } = core;
        operation(lo, hi, readRight(), core.hi);
      });
    }
    const operation = core.alu[size].binary[name];
    const left = operandAt(instruction, 0);
    const right = operandAt(instruction, 1);
    if (left.kind === 'gpr' && right.kind === 'immediate' && size === 4) {
      const { gpr } = core;
      const at = 2 * left.index;
      const value = right.lo;
      return next(() => {
        operation(gpr[at], value);
      });
    }
    return next(() => {
      const value = readLeft();
      operation(value, readRight());
    });
  };

/** INC, DEC, NEG. */
const unary =
  (name: UnaryName) =>
  (core: Core, instruction: Instruction): Compiled => {
    const size = sizeOf(instruction, 0);
    const target = place(core, instruction, 0);
    if (!isNarrow(size)) {
      const operation = core.alu64.unary[name];
      return next(() => {
        const lo = target.read();
        const result = operation(lo, core.hi);
        target.write(result, core.alu64.hi);
      });
    }
    const operation = core.alu[size].unary[name];
    const operand = operandAt(instruction, 0);
    if (operand.kind === 'gpr' && size === 4) {
      const { gpr } = core;
      const at = 2 * operand.index;
      return next(() => {
        gpr[at] = operation(gpr[at]);
        gpr[at + 1] = 0;
      });
    }
    return next(() => target.write(operation(target.read()), 0));
  };

function not(core: Core, instruction: Instruction): Compiled {
  const target = place(core, instruction, 0);
  return next(() => {
    const lo = target.read();
    target.write(~lo, ~core.hi);
  });
}

/** XADD: the source register gets the old destination. */
function exchangeAdd(core: Core, instruction: Instruction): Compiled {
  const size = sizeOf(instruction, 0);
  const target = place(core, instruction, 0);
  const source = place(core, instruction, 1);
  if (!isNarrow(size)) {
    const { alu64 } = core;
    return next(() => {
      const lo = target.read();
      const { hi } = core;
      const addLo = source.read();
      const result = alu64.binary.Add(lo, hi, addLo, core.hi);
      target.write(result, alu64.hi);
      // XADD reg, reg with equal operands leaves the sum.
      const sumHi = alu64.hi;
      source.write(lo, hi);
      if (operandAt(instruction, 0).kind === 'gpr') target.write(result, sumHi);
    });
  }
  const { Add } = core.alu[size].binary;
  return next(() => {
    const old = target.read();
    const sum = Add(old, source.read());
    target.write(sum, 0);
    source.write(old, 0);
    if (operandAt(instruction, 0).kind === 'gpr') target.write(sum, 0);
  });
}

/** CMPXCHG: a destination in memory is written in either case. */
function compareExchange(core: Core, instruction: Instruction): Compiled {
  const size = sizeOf(instruction, 0);
  const target = place(core, instruction, 0);
  const source = reader(core, instruction, 1, size);
  const inMemory = operandAt(instruction, 0).kind === 'memory';
  const { gpr, flags } = core;
  if (!isNarrow(size)) {
    const { alu64 } = core;
    return next(() => {
      const lo = target.read();
      const { hi } = core;
      alu64.binary.Sub(gpr[0], gpr[1], lo, hi);
      if (flags.zero === 0) {
        const value = source();
        target.write(value, core.hi);
      } else {
        if (inMemory) target.write(lo, hi);
        gpr[0] = lo;
        gpr[1] = hi;
      }
    });
  }
  const { Sub } = core.alu[size].binary;
  const { gpr8, gpr16 } = core.state;
  return next(() => {
    const value = target.read();
    Sub(gpr[0], value);
    if (flags.zero === 0) {
      target.write(source(), 0);
      return;
    }
    if (inMemory) target.write(value, 0);
    if (size === 1) gpr8[0] = value;
    else if (size === 2) gpr16[0] = value;
    else {
      gpr[0] = value;
      gpr[1] = 0;
    }
  });
}

/** CMPXCHG8B and CMPXCHG16B. Only ZF changes. */
const compareExchangePair =
  (half: 4 | 8) =>
  (core: Core, instruction: Instruction): Compiled => {
    const operand = memoryAt(instruction, 0);
    const address = linearAddress(core, operand, 2 * half, true, instruction.bits);
    const { gpr, memory, flags } = core;
    const bytes = new Uint8Array(16);
    const words = new Int32Array(bytes.buffer);
    const [a, c, d, b] = [2 * Gpr.RAX, 2 * Gpr.RCX, 2 * Gpr.RDX, 2 * Gpr.RBX];
    return next(() => {
      const lo = address();
      const { hi } = memory;
      if (half === 8 && (lo & 15) !== 0) throw new GuestFault(Vector.GP, 0);
      memory.copyIn(lo, hi, 2 * half, bytes, 0, true);
      const equal =
        half === 4
          ? words[0] === gpr[a] && words[1] === gpr[d]
          : words[0] === gpr[a] && words[1] === gpr[a + 1] && words[2] === gpr[d] && words[3] === gpr[d + 1];
      if (equal) {
        if (half === 4) words.set([gpr[b], gpr[c]]);
        else words.set([gpr[b], gpr[b + 1], gpr[c], gpr[c + 1]]);
      }
      const found = words.slice();
      memory.copyOut(lo, hi, 2 * half, bytes, 0);
      if (!equal) {
        gpr[a] = found[0];
        gpr[a + 1] = half === 4 ? 0 : found[1];
        gpr[d] = half === 4 ? found[1] : found[2];
        gpr[d + 1] = half === 4 ? 0 : found[3];
      }
      flags.setZero(equal ? 1 : 0);
    });
  };

/** ADD to XOR, comparisons, multiplication and division, and the read-modify-write instructions of synchronization. */
export const arithmetic: InstructionGroup = {
  Add: binary('Add'),
  Or: binary('Or'),
  Adc: binary('Adc'),
  Sbb: binary('Sbb'),
  And: binary('And'),
  Sub: binary('Sub'),
  Xor: binary('Xor'),
  Cmp: comparison('Sub'),
  Test: comparison('And'),
  Inc: unary('Inc'),
  Dec: unary('Dec'),
  Neg: unary('Neg'),
  Not: not,
  Mul: multiplication(false),
  Imul: signedMultiplication,
  Div: division(false),
  Idiv: division(true),
  Xadd: exchangeAdd,
  Cmpxchg: compareExchange,
  Cmpxchg8b: compareExchangePair(4),
  Cmpxchg16b: compareExchangePair(8),
};
