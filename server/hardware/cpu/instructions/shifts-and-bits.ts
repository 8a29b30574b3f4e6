import type { ShiftName } from '../alu.js';
import { bitAt } from '../alu64.js';
import type { Core } from '../core.js';
import { Rflags } from '../flags.js';
import { type Compiled, type Instruction, type InstructionGroup, next } from '../instruction.js';
import {
  effectiveAddress,
  gprAt,
  gprWriter,
  memoryReader,
  OutsideSubset,
  operandAt,
  place,
  placeAt,
  reader,
  sizeOf,
} from '../operands.js';

/**
 * OF after a rotation by more than one is undefined. Current processors compute it as for one, but leave it alone when
 * the count of ROL and ROR is an immediate.
 */
function keepOverflow(core: Core, name: ShiftName, instruction: Instruction, compiled: Compiled): Compiled {
  const count = operandAt(instruction, 1);
  const mask = sizeOf(instruction, 0) === 8 ? 63 : 31;
  if ((name !== 'Rol' && name !== 'Ror') || count.kind !== 'immediate' || (count.lo & mask) === 1) return compiled;
  const { flags } = core;
  return next(() => {
    const { of } = flags;
    compiled.run();
    flags.setCarryAndOverflow(flags.cf, of);
  });
}

const shift =
  (name: ShiftName) =>
  (core: Core, instruction: Instruction): Compiled =>
    keepOverflow(core, name, instruction, shiftBy(name, core, instruction));

/** ROL to SAR. A masked count of zero changes nothing, flags included. */
function shiftBy(name: ShiftName, core: Core, instruction: Instruction): Compiled {
  const size = sizeOf(instruction, 0);
  const target = place(core, instruction, 0);
  const count = reader(core, instruction, 1, 1);
  if (size === 8) {
    const operation = core.alu64.shift[name];
    return next(() => {
      const by = count() & 63;
      const lo = target.read();
      if (by === 0) return;
      const result = operation(lo, core.hi, by);
      target.write(result, core.alu64.hi);
    });
  }
  if (size !== 1 && size !== 2 && size !== 4) throw new OutsideSubset(instruction.code);
  const operation = core.alu[size].shift[name];
  return next(() => {
    const by = count() & 31;
    const value = target.read();
    if (by === 0) target.write(value, 0);
    else target.write(operation(value, by), 0);
  });
}

/**
 * SHLD and SHRD. With 16 bits and a count above 16 the result is undefined; here the operands repeat. OF by more than one
 * is undefined too, and that of the first step.
 */
const doubleShift =
  (left: boolean) =>
  (core: Core, instruction: Instruction): Compiled => {
    const size = sizeOf(instruction, 0);
    const bits = 8 * size;
    const top = bits - 1;
    const target = place(core, instruction, 0);
    const source = reader(core, instruction, 1, size);
    const count = reader(core, instruction, 2, 1);
    const { alu64, flags } = core;
    if (size === 8) {
      return next(() => {
        const by = count() & 63;
        const fillLo = source();
        const fillHi = core.hi;
        const lo = target.read();
        const { hi } = core;
        if (by === 0) return;
        const cf = bitAt(lo, hi, left ? 64 - by : by - 1);
        const mainLo = left ? alu64.shiftLeft(lo, hi, by) : alu64.shiftRight(lo, hi, by);
        const mainHi = alu64.hi;
        const restLo = left ? alu64.shiftRight(fillLo, fillHi, 64 - by) : alu64.shiftLeft(fillLo, fillHi, 64 - by);
        const resultLo = mainLo | restLo;
        const resultHi = mainHi | alu64.hi;
        flags.zero = resultLo | resultHi;
        flags.sign = resultHi;
        flags.parity = resultLo;
        flags.adjust = 0;
        flags.setCarryAndOverflow(cf, (left ? (hi >>> 31) ^ (hi >>> 30) : (hi >>> 31) ^ fillLo) & 1);
        target.write(resultLo, resultHi);
      });
    }
    return next(() => {
      const by = count() & 31;
      const fill = source();
      const value = target.read();
      if (by === 0) {
        target.write(value, 0);
        return;
      }
      let result: number;
      let cf: number;
      if (bits === 16) {
        const lo = left ? (value << 16) | fill : (fill << 16) | value;
        const again = left ? value : fill;
        if (left) {
          result = (lo << by) | (again >>> (32 - by));
          cf = (lo >>> (32 - by)) & 1;
          result >>>= 16;
        } else {
          result = (lo >>> by) | (again << (32 - by));
          cf = (lo >>> (by - 1)) & 1;
        }
      } else {
        result = left ? (value << by) | (fill >>> (32 - by)) : (value >>> by) | (fill << (32 - by));
        cf = (left ? value >>> (32 - by) : value >>> (by - 1)) & 1;
      }
      const align = 32 - bits;
      flags.setResult(result << align, result);
      flags.adjust = 0;
      flags.setCarryAndOverflow(cf, ((value >>> top) ^ (left ? value >>> (top - 1) : fill)) & 1);
      target.write(result, 0);
    });
  };

type BitUpdate = (word: number, bit: number) => number;

/**
 * BT, BTS, BTR, BTC. A bit offset in a register reaches beyond a memory operand: the bit string begins there and goes
 * both ways. Only CF changes (the others are undefined).
 */
const bitTest =
  (update: BitUpdate | null) =>
  (core: Core, instruction: Instruction): Compiled => {
    const target = operandAt(instruction, 0);
    const offset = operandAt(instruction, 1);
    if (target.kind === 'memory' && offset.kind === 'gpr') return bitString(core, instruction, update);
    const size = sizeOf(instruction, 0);
    const mask = 8 * size - 1;
    const readOffset = reader(core, instruction, 1, size);
    const { flags } = core;
    if (update === null) {
      const read = reader(core, instruction, 0, size);
      return next(() => {
        const bit = readOffset() & mask;
        const lo = read();
        flags.setCarry(bitAt(lo, core.hi, bit));
      });
    }
    const operand = place(core, instruction, 0);
    return next(() => {
      const bit = readOffset() & mask;
      const lo = operand.read();
      const { hi } = core;
      flags.setCarry(bitAt(lo, hi, bit));
      if (bit < 32) operand.write(update(lo, 1 << bit), hi);
      else operand.write(lo, update(hi, 1 << (bit - 32)));
    });
  };

function bitString(core: Core, instruction: Instruction, update: BitUpdate | null): Compiled {
  const operand = operandAt(instruction, 0);
  if (operand.kind !== 'memory') throw new OutsideSubset(instruction.code);
  const size = operand.size;
  const bits = 8 * size;
  const readOffset = reader(core, instruction, 1, size);
  const effective = effectiveAddress(core, operand);
  const { memory, flags } = core;
  const narrow = operand.addressSize === 16 ? 0xffff : -1;
  let bit = 0;
  const address = (): number => {
    let offset = readOffset();
    if (size === 2) offset = (offset << 16) >> 16;
    const offsetHi = size === 8 ? core.hi : offset >> 31;
    bit = offset & (bits - 1);
    const log2 = Math.log2(bits);
    // Signed number of operands before or after, in bytes.
    const unitsLo = (offset >> log2) & (size === 8 ? (1 << (32 - log2)) - 1 : -1);
    const lowUnits = size === 8 ? unitsLo | (offsetHi << (32 - log2)) : unitsLo;
    const highUnits = offsetHi >> log2;
    const deltaLo = lowUnits * size;
    const deltaHi = size === 8 ? (highUnits << 3) | (lowUnits >>> 29) : lowUnits < 0 ? -1 : 0;
    const base = effective();
    const lo = (base + deltaLo) | 0;
    const hi = operand.addressSize === 64 ? (memory.hi + deltaHi + (lo >>> 0 < base >>> 0 ? 1 : 0)) | 0 : 0;
    return core.dataAddress(operand.segment, lo & narrow, hi, size, update !== null);
  };
  if (update === null) {
    const read = memoryReader(core, address, size);
    return next(() => {
      const lo = read();
      flags.setCarry(bitAt(lo, core.hi, bit));
    });
  }
  const target = placeAt(core, address, size);
  return next(() => {
    const lo = target.read();
    const { hi } = core;
    flags.setCarry(bitAt(lo, hi, bit));
    if (bit < 32) target.write(update(lo, 1 << bit), hi);
    else target.write(lo, update(hi, 1 << (bit - 32)));
  });
}

const trailingZeros = (value: number): number => 31 - Math.clz32(value & -value);

/**
 * BSF and BSR: zero sets ZF and leaves the destination alone (defined by AMD). The undefined flags: PF of the result, no other.
 */
const bitScan =
  (forward: boolean) =>
  (core: Core, instruction: Instruction): Compiled => {
    const size = sizeOf(instruction, 0);
    const read = reader(core, instruction, 1, size);
    const write = gprWriter(core, gprAt(instruction, 0));
    const { flags } = core;
    return next(() => {
      const lo = read();
      const hi = size === 8 ? core.hi : 0;
      flags.setArithmetic(Rflags.ZF);
      flags.parity = 0;
      if ((lo | hi) === 0) return;
      const forwards = lo !== 0 ? trailingZeros(lo) : 32 + trailingZeros(hi);
      const index = forward ? forwards : hi !== 0 ? 63 - Math.clz32(hi) : 31 - Math.clz32(lo);
      flags.setZero(0);
      flags.parity = index;
      write(index, 0);
    });
  };

/** TZCNT and LZCNT: CF for a zero source, ZF for a zero result; the undefined flags are cleared. */
const zeroCount =
  (trailing: boolean) =>
  (core: Core, instruction: Instruction): Compiled => {
    const size = sizeOf(instruction, 0);
    const bits = 8 * size;
    const read = reader(core, instruction, 1, size);
    const write = gprWriter(core, gprAt(instruction, 0));
    const { flags } = core;
    return next(() => {
      const lo = read();
      const hi = size === 8 ? core.hi : 0;
      let count: number;
      if ((lo | hi) === 0) count = bits;
      else if (trailing) count = lo !== 0 ? trailingZeros(lo) : 32 + trailingZeros(hi);
      else count = size === 8 ? (hi !== 0 ? Math.clz32(hi) : 32 + Math.clz32(lo)) : Math.clz32(lo) - (32 - bits);
      flags.setArithmetic((count === bits ? Rflags.CF : 0) | (count === 0 ? Rflags.ZF : 0));
      write(count, 0);
    });
  };

const ones = (value: number): number => {
  let count = 0;
  for (let rest = value; rest !== 0; rest &= rest - 1) count++;
  return count;
};

/** POPCNT: ZF for a zero source, all other flags cleared. */
function populationCount(core: Core, instruction: Instruction): Compiled {
  const size = sizeOf(instruction, 0);
  const read = reader(core, instruction, 1, size);
  const write = gprWriter(core, gprAt(instruction, 0));
  return next(() => {
    const lo = read();
    const count = ones(lo) + (size === 8 ? ones(core.hi) : 0);
    core.flags.setArithmetic(count === 0 ? Rflags.ZF : 0);
    write(count, 0);
  });
}

/** Shifts, rotations, bit tests, bit scans and counts. */
export const shiftsAndBits: InstructionGroup = {
  Rol: shift('Rol'),
  Ror: shift('Ror'),
  Rcl: shift('Rcl'),
  Rcr: shift('Rcr'),
  Shl: shift('Shl'),
  Sal: shift('Shl'),
  Shr: shift('Shr'),
  Sar: shift('Sar'),
  Shld: doubleShift(true),
  Shrd: doubleShift(false),
  Bt: bitTest(null),
  Bts: bitTest((word, bit) => word | bit),
  Btr: bitTest((word, bit) => word & ~bit),
  Btc: bitTest((word, bit) => word ^ bit),
  Bsf: bitScan(true),
  Bsr: bitScan(false),
  Tzcnt: zeroCount(true),
  Lzcnt: zeroCount(false),
  Popcnt: populationCount,
};
