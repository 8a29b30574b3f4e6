import type { BinaryName, ShiftName, UnaryName } from './alu.js';
import type { Flags } from './flags.js';

/** Results of 64 bits: the low half is returned, the high half left in `Alu64.hi`. */
export type Binary64 = (aLo: number, aHi: number, bLo: number, bHi: number) => number;
export type Unary64 = (lo: number, hi: number) => number;
/** The count is 1 to 63. */
export type Shift64 = (lo: number, hi: number, count: number) => number;

const carries = (a: number, b: number, sum: number): number => (a & b) | ((a | b) & ~sum);
const borrows = (a: number, b: number, difference: number): number => (~a & b) | ((~a | b) & difference);

/** Arithmetic on 64 bits in two halves, with flags. */
export class Alu64 {
  /** High half of the last result. */
  hi = 0;
  readonly binary: Readonly<Record<BinaryName, Binary64>>;
  readonly unary: Readonly<Record<UnaryName, Unary64>>;
  readonly shift: Readonly<Record<ShiftName, Shift64>>;

  constructor(private readonly flags: Flags) {
    const add: Binary64 = (aLo, aHi, bLo, bHi) => this.sum(aLo, aHi, bLo, bHi, 0);
    const subtract: Binary64 = (aLo, aHi, bLo, bHi) => this.difference(aLo, aHi, bLo, bHi, 0);
    this.binary = {
      Add: add,
      Sub: subtract,
      Adc: (aLo, aHi, bLo, bHi) => this.sum(aLo, aHi, bLo, bHi, flags.cf),
      Sbb: (aLo, aHi, bLo, bHi) => this.difference(aLo, aHi, bLo, bHi, flags.cf),
      And: (aLo, aHi, bLo, bHi) => this.logic(aLo & bLo, aHi & bHi),
      Or: (aLo, aHi, bLo, bHi) => this.logic(aLo | bLo, aHi | bHi),
      Xor: (aLo, aHi, bLo, bHi) => this.logic(aLo ^ bLo, aHi ^ bHi),
    };
    const keepCarry =
      (operation: Binary64): Unary64 =>
      (lo, hi) => {
        const { cf } = flags;
        const result = operation(lo, hi, 1, 0);
        flags.setCarry(cf);
        return result;
      };
    this.unary = {
      Inc: keepCarry(add),
      Dec: keepCarry(subtract),
      Neg: (lo, hi) => this.difference(0, 0, lo, hi, 0),
    };
    this.shift = {
      Shl: (lo, hi, count) => {
        const cf = bitAt(lo, hi, 64 - count);
        const result = this.shiftLeft(lo, hi, count);
        return this.shifted(result, cf, (hi >>> 31) ^ ((hi >>> 30) & 1));
      },
      Shr: (lo, hi, count) => {
        const cf = bitAt(lo, hi, count - 1);
        return this.shifted(this.shiftRight(lo, hi, count), cf, hi >>> 31);
      },
      Sar: (lo, hi, count) => {
        const cf = bitAt(lo, hi, count - 1);
        const result = count >= 32 ? hi >> (count - 32) : (lo >>> count) | (hi << (32 - count));
        this.hi = hi >> Math.min(count, 31);
        return this.shifted(result, cf, 0);
      },
      Rol: (lo, hi, count) => {
        const result = this.rotateLeft(lo, hi, count);
        flags.setCarryAndOverflow(result & 1, (hi >>> 31) ^ ((hi >>> 30) & 1));
        return result;
      },
      Ror: (lo, hi, count) => {
        const result = this.rotateLeft(lo, hi, 64 - count);
        flags.setCarryAndOverflow(this.hi >>> 31, (hi >>> 31) ^ (lo & 1));
        return result;
      },
      Rcl: (lo, hi, count) => {
        let { cf } = flags;
        for (let i = count; i > 0; i--) {
          const out = hi >>> 31;
          hi = (hi << 1) | (lo >>> 31);
          lo = (lo << 1) | cf;
          cf = out;
        }
        flags.setCarryAndOverflow(cf, cf ^ (hi >>> 31));
        this.hi = hi;
        return lo;
      },
      Rcr: (lo, hi, count) => {
        let { cf } = flags;
        for (let i = count; i > 0; i--) {
          const out = lo & 1;
          lo = (lo >>> 1) | (hi << 31);
          hi = (hi >>> 1) | (cf << 31);
          cf = out;
        }
        flags.setCarryAndOverflow(cf, (hi >>> 31) ^ ((hi >>> 30) & 1));
        this.hi = hi;
        return lo;
      },
    };
  }

  private sum(aLo: number, aHi: number, bLo: number, bHi: number, carryIn: number): number {
    const lo = (aLo + bLo + carryIn) | 0;
    const carryLo = carries(aLo, bLo, lo);
    const hi = (aHi + bHi + (carryLo >>> 31)) | 0;
    return this.arithmetic(lo, hi, carries(aHi, bHi, hi), carryLo);
  }

  private difference(aLo: number, aHi: number, bLo: number, bHi: number, borrowIn: number): number {
    const lo = (aLo - bLo - borrowIn) | 0;
    const borrowLo = borrows(aLo, bLo, lo);
    const hi = (aHi - bHi - (borrowLo >>> 31)) | 0;
    return this.arithmetic(lo, hi, borrows(aHi, bHi, hi), borrowLo);
  }

  private arithmetic(lo: number, hi: number, carry: number, adjust: number): number {
    const { flags } = this;
    flags.carry = carry;
    flags.adjust = adjust;
    flags.zero = lo | hi;
    flags.sign = hi;
    flags.parity = lo;
    this.hi = hi;
    return lo;
  }

  private logic(lo: number, hi: number): number {
    return this.arithmetic(lo, hi, 0, 0);
  }

  private shifted(lo: number, cf: number, of: number): number {
    const { flags } = this;
    flags.zero = lo | this.hi;
    flags.sign = this.hi;
    flags.parity = lo;
    flags.adjust = 0;
    flags.setCarryAndOverflow(cf, of);
    return lo;
  }

  /** Without flags; `count` is 0 to 64. */
  shiftLeft(lo: number, hi: number, count: number): number {
    if (count === 0) {
      this.hi = hi;
      return lo;
    }
    if (count >= 32) {
      this.hi = count === 64 ? 0 : lo << (count - 32);
      return 0;
    }
    this.hi = (hi << count) | (lo >>> (32 - count));
    return lo << count;
  }

  /** Without flags; `count` is 0 to 64. */
  shiftRight(lo: number, hi: number, count: number): number {
    if (count === 0) {
      this.hi = hi;
      return lo;
    }
    if (count >= 32) {
      this.hi = 0;
      return count === 64 ? 0 : hi >>> (count - 32);
    }
    this.hi = hi >>> count;
    return (lo >>> count) | (hi << (32 - count));
  }

  private rotateLeft(lo: number, hi: number, count: number): number {
    const leftLo = this.shiftLeft(lo, hi, count);
    const leftHi = this.hi;
    const rightLo = this.shiftRight(lo, hi, 64 - count);
    this.hi |= leftHi;
    return leftLo | rightLo;
  }
}

/** Bit `index` (0 to 63) of a value in two halves. */
export const bitAt = (lo: number, hi: number, index: number): number => (index < 32 ? lo >>> index : hi >>> (index - 32)) & 1;
