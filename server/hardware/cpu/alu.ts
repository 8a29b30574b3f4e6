import type { Flags } from './flags.js';

/** Two operands of at most 32 bits (upper bits of narrow ones do not matter) to a result, of which the low bits count. */
export type Binary = (a: number, b: number) => number;
export type Unary = (a: number) => number;

/** Shift that aligns an operand of a size to bit 31. */
const alignment = (size: number): number => 32 - 8 * size;

export type BinaryName = 'Add' | 'Or' | 'Adc' | 'Sbb' | 'And' | 'Sub' | 'Xor';
export type UnaryName = 'Inc' | 'Dec' | 'Neg';
export type ShiftName = 'Rol' | 'Ror' | 'Rcl' | 'Rcr' | 'Shl' | 'Shr' | 'Sar';

/** Bits of each position in which a sum carries, and in which a difference borrows. */
const carries = (a: number, b: number, sum: number): number => (a & b) | ((a | b) & ~sum);
const borrows = (a: number, b: number, difference: number): number => (~a & b) | ((~a | b) & difference);

/** Arithmetic on operands of 8, 16 and 32 bits, with flags. `size` is in bytes. */
export class NarrowAlu {
  readonly binary: Readonly<Record<BinaryName, Binary>>;
  readonly unary: Readonly<Record<UnaryName, Unary>>;
  /** The count is at least 1 and at most 31; it is masked and zero is skipped by the caller. */
  readonly shift: Readonly<Record<ShiftName, Binary>>;

  constructor(flags: Flags, size: number) {
    const align = alignment(size);
    const bits = 8 * size;
    const mask = bits === 32 ? -1 : (1 << bits) - 1;

    const arithmetic = (result: number, carry: number): number => {
      const aligned = result << align;
      flags.carry = carry << align;
      flags.adjust = carry;
      flags.zero = aligned;
      flags.sign = aligned;
      flags.parity = result;
      return result;
    };
    const logic = (result: number): number => {
      const aligned = result << align;
      flags.carry = 0;
      flags.adjust = 0;
      flags.zero = aligned;
      flags.sign = aligned;
      flags.parity = result;
      return result;
    };
    const add: Binary = (a, b) => {
      const result = (a + b) | 0;
      return arithmetic(result, carries(a, b, result));
    };
    const subtract: Binary = (a, b) => {
      const result = (a - b) | 0;
      return arithmetic(result, borrows(a, b, result));
    };
    this.binary = {
      Add: add,
      Sub: subtract,
      Adc: (a, b) => {
        const result = (a + b + flags.cf) | 0;
        return arithmetic(result, carries(a, b, result));
      },
      Sbb: (a, b) => {
        const result = (a - b - flags.cf) | 0;
        return arithmetic(result, borrows(a, b, result));
      },
      And: (a, b) => logic(a & b),
      Or: (a, b) => logic(a | b),
      Xor: (a, b) => logic(a ^ b),
    };

    const keepCarry =
      (operation: Binary): Unary =>
      (a) => {
        const { cf } = flags;
        const result = operation(a, 1);
        flags.setCarry(cf);
        return result;
      };
    this.unary = {
      Inc: keepCarry(add),
      Dec: keepCarry(subtract),
      Neg: (a) => subtract(0, a),
    };

    /** Flags of a shift: AF is undefined and cleared. */
    const shifted = (result: number, cf: number, of: number): number => {
      flags.setResult(result << align, result);
      flags.setCarryAndOverflow(cf, of);
      flags.adjust = 0;
      return result;
    };
    const top = bits - 1;
    this.shift = {
      Shl: (a, count) => {
        const result = count > top ? 0 : a << count;
        const cf = count > bits ? 0 : (a >>> (bits - count)) & 1;
        return shifted(result, cf, ((a >>> top) ^ (a >>> (top - 1))) & 1);
      },
      Shr: (a, count) => {
        const value = a & mask;
        const cf = (value >>> (count - 1)) & 1;
        return shifted(value >>> count, cf, (value >>> top) & 1);
      },
      Sar: (a, count) => {
        const value = (a << align) >> align;
        return shifted(value >> count, (value >> (count - 1)) & 1, 0);
      },
      Rol: (a, count) => {
        const by = count % bits;
        const value = a & mask;
        const result = by === 0 ? value : (value << by) | (value >>> (bits - by));
        flags.setCarryAndOverflow(result & 1, ((value >>> top) ^ (value >>> (top - 1))) & 1);
        return result;
      },
      Ror: (a, count) => {
        const by = count % bits;
        const value = a & mask;
        const result = by === 0 ? value : (value >>> by) | (value << (bits - by));
        const cf = (result >>> top) & 1;
        flags.setCarryAndOverflow(cf, (value ^ (value >>> top)) & 1);
        return result;
      },
      Rcl: (a, count) => {
        let value = a & mask;
        let { cf } = flags;
        for (let i = count % (bits + 1); i > 0; i--) {
          const out = (value >>> top) & 1;
          value = ((value << 1) | cf) & mask;
          cf = out;
        }
        flags.setCarryAndOverflow(cf, cf ^ ((value >>> top) & 1));
        return value;
      },
      Rcr: (a, count) => {
        let value = a & mask;
        let { cf } = flags;
        for (let i = count % (bits + 1); i > 0; i--) {
          const out = value & 1;
          value = (value >>> 1) | (cf << top);
          cf = out;
        }
        flags.setCarryAndOverflow(cf, ((value >>> top) ^ (value >>> (top - 1))) & 1);
        return value;
      },
    };
  }
}
