import type { Core } from '../core.js';
import { type Compiled, type Instruction, next } from '../instruction.js';
import { gprAt, gprWriter, reader, sizeOf } from '../operands.js';
import { Gpr, Vector } from '../registers.js';
import { GuestFault } from '../traps.js';
import { divide128, multiply64, multiply64Signed, multiplyHigh, multiplyHighSigned } from '../wide.js';

const RDX = 2 * Gpr.RDX;

/** CF and OF say that the upper half matters. The others are undefined: SF and PF as current processors leave them. */
function setFlags(core: Core, overflow: boolean, sign: number, low: number): void {
  const { flags } = core;
  const bit = overflow ? 1 : 0;
  flags.setCarryAndOverflow(bit, bit);
  flags.zero = 1;
  flags.sign = sign;
  flags.parity = low;
  flags.adjust = 0;
}

/** MUL and IMUL with one operand: AX, DX:AX, EDX:EAX, RDX:RAX. */
export const multiplication =
  (signed: boolean) =>
  (core: Core, instruction: Instruction): Compiled => {
    const size = sizeOf(instruction, 0);
    const read = reader(core, instruction, 0, size);
    const { gpr } = core;
    const { gpr8, gpr16 } = core.state;
    if (size === 8) {
      const product = new Int32Array(4);
      const multiply = signed ? multiply64Signed : multiply64;
      return next(() => {
        const lo = read();
        multiply(gpr[0], gpr[1], lo, core.hi, product);
        gpr[0] = product[0];
        gpr[1] = product[1];
        gpr[RDX] = product[2];
        gpr[RDX + 1] = product[3];
        const extension = signed ? product[1] >> 31 : 0;
        setFlags(core, product[2] !== extension || product[3] !== extension, product[1], product[0]);
      });
    }
    if (size === 4) {
      const high = signed ? multiplyHighSigned : multiplyHigh;
      return next(() => {
        const value = read();
        const upper = high(gpr[0], value);
        const lower = Math.imul(gpr[0], value);
        gpr[0] = lower;
        gpr[1] = 0;
        gpr[RDX] = upper;
        gpr[RDX + 1] = 0;
        setFlags(core, upper !== (signed ? lower >> 31 : 0), lower, lower);
      });
    }
    if (size === 2) {
      return next(() => {
        const value = read();
        const product = signed ? ((gpr16[0] << 16) >> 16) * ((value << 16) >> 16) : Math.imul(gpr16[0], value);
        gpr16[0] = product;
        gpr16[4 * Gpr.RDX] = product >>> 16;
        setFlags(core, signed ? product !== (product << 16) >> 16 : product >>> 16 !== 0, product << 16, product);
      });
    }
    return next(() => {
      const value = read();
      const product = signed ? ((gpr8[0] << 24) >> 24) * ((value << 24) >> 24) : gpr8[0] * value;
      gpr16[0] = product;
      setFlags(core, signed ? product !== (product << 24) >> 24 : product > 0xff, product << 24, product);
    });
  };

/** IMUL in its three forms. */
export function signedMultiplication(core: Core, instruction: Instruction): Compiled {
  if (instruction.operands.length === 1) return multiplication(true)(core, instruction);
  const size = sizeOf(instruction, 0);
  const three = instruction.operands.length === 3;
  const readLeft = reader(core, instruction, three ? 1 : 0, size);
  const readRight = reader(core, instruction, three ? 2 : 1, size);
  const write = gprWriter(core, gprAt(instruction, 0));
  if (size === 8) {
    const product = new Int32Array(4);
    return next(() => {
      const lo = readLeft();
      const { hi } = core;
      const rightLo = readRight();
      multiply64Signed(lo, hi, rightLo, core.hi, product);
      write(product[0], product[1]);
      const extension = product[1] >> 31;
      setFlags(core, product[2] !== extension || product[3] !== extension, product[1], product[0]);
    });
  }
  if (size === 4) {
    return next(() => {
      const left = readLeft();
      const right = readRight();
      const lower = Math.imul(left, right);
      write(lower, 0);
      setFlags(core, multiplyHighSigned(left, right) !== lower >> 31, lower, lower);
    });
  }
  return next(() => {
    const left = readLeft();
    const product = ((left << 16) >> 16) * ((readRight() << 16) >> 16);
    write(product, 0);
    setFlags(core, product !== (product << 16) >> 16, product << 16, product);
  });
}

/** DIV and IDIV. The flags are undefined and stay. */
export const division =
  (signed: boolean) =>
  (core: Core, instruction: Instruction): Compiled => {
    const size = sizeOf(instruction, 0);
    const read = reader(core, instruction, 0, size);
    const { gpr } = core;
    if (size === 8) {
      const dividend = new Int32Array(4);
      const result = new Int32Array(4);
      return next(() => {
        const lo = read();
        dividend[0] = gpr[0];
        dividend[1] = gpr[1];
        dividend[2] = gpr[RDX];
        dividend[3] = gpr[RDX + 1];
        if (!divide128(dividend, lo, core.hi, signed, result)) throw new GuestFault(Vector.DE, null);
        gpr[0] = result[0];
        gpr[1] = result[1];
        gpr[RDX] = result[2];
        gpr[RDX + 1] = result[3];
      });
    }
    if (size === 4) return next(division32(core, read, signed));
    return next(divisionNarrow(core, read, signed, size));
  };

function division32(core: Core, read: () => number, signed: boolean): () => void {
  const { gpr } = core;
  const dividend = new Int32Array(4);
  const result = new Int32Array(4);
  return () => {
    const divisor = read();
    dividend[0] = gpr[0];
    dividend[1] = gpr[RDX];
    const extension = signed ? gpr[RDX] >> 31 : 0;
    dividend[2] = extension;
    dividend[3] = extension;
    const fits =
      divide128(dividend, divisor, signed ? divisor >> 31 : 0, signed, result) && result[1] === (signed ? result[0] >> 31 : 0);
    if (!fits) throw new GuestFault(Vector.DE, null);
    gpr[0] = result[0];
    gpr[1] = 0;
    gpr[RDX] = result[2];
    gpr[RDX + 1] = 0;
  };
}

/** AX / 8 bits and DX:AX / 16 bits: everything fits into a number. */
function divisionNarrow(core: Core, read: () => number, signed: boolean, size: number): () => void {
  const { gpr8, gpr16 } = core.state;
  const align = 32 - 8 * size;
  return () => {
    const raw = read();
    const divisor = signed ? (raw << align) >> align : raw;
    if (divisor === 0) throw new GuestFault(Vector.DE, null);
    const bits = size === 1 ? gpr16[0] : (gpr16[4 * Gpr.RDX] << 16) | gpr16[0];
    const dividend = !signed ? bits >>> 0 : size === 1 ? (bits << 16) >> 16 : bits;
    const quotient = Math.trunc(dividend / divisor);
    const range = size === 1 ? 0x100 : 0x10000;
    const fits = signed ? quotient >= -range / 2 && quotient < range / 2 : quotient < range;
    if (!fits) throw new GuestFault(Vector.DE, null);
    const remainder = dividend - quotient * divisor;
    if (size === 1) {
      gpr8[0] = quotient;
      gpr8[1] = remainder;
    } else {
      gpr16[0] = quotient;
      gpr16[4 * Gpr.RDX] = remainder;
    }
  };
}
