/** Bits of RFLAGS. */
export const Rflags = {
  CF: 1 << 0,
  /** Reads as one. */
  FIXED: 1 << 1,
  PF: 1 << 2,
  AF: 1 << 4,
  ZF: 1 << 6,
  SF: 1 << 7,
  TF: 1 << 8,
  IF: 1 << 9,
  DF: 1 << 10,
  OF: 1 << 11,
  IOPL: 3 << 12,
  NT: 1 << 14,
  RF: 1 << 16,
  VM: 1 << 17,
  AC: 1 << 18,
  VIF: 1 << 19,
  VIP: 1 << 20,
  ID: 1 << 21,
} as const;

export const ARITHMETIC_FLAGS = Rflags.CF | Rflags.PF | Rflags.AF | Rflags.ZF | Rflags.SF | Rflags.OF;

/** Every bit that software can set. */
export const RFLAGS_WRITABLE = 0x3f7fd5 & ~Rflags.FIXED;

/** PARITY[b]: 1 where the byte has an even number of ones. */
const PARITY = Uint8Array.from({ length: 256 }, (_, byte) => {
  let ones = 0;
  for (let bits = byte; bits !== 0; bits &= bits - 1) ones++;
  return 1 - (ones & 1);
});

/**
 * RFLAGS. An instruction leaves the words from which the arithmetic flags follow, and whoever asks works them out:
 * most flags are never asked for. All words are int32.
 */
export class Flags {
  /** ZF is `zero === 0`. */
  zero = 1;
  /** SF is bit 31. */
  sign = 0;
  /** PF is the parity of the low byte. */
  parity = 1;
  /** Carries out of each bit, aligned to the left: CF is bit 31, OF is bit 31 xor bit 30. */
  carry = 0;
  /** Carries out of each bit, aligned to the right: AF is bit 3. */
  adjust = 0;
  /** The other bits: TF, IF, DF, IOPL, NT, RF, VM, AC, VIF, VIP, ID. */
  control = 0;

  get cf(): number {
    return this.carry >>> 31;
  }
  get of(): number {
    return (this.carry ^ (this.carry << 1)) >>> 31;
  }
  get zf(): number {
    return this.zero === 0 ? 1 : 0;
  }
  get sf(): number {
    return this.sign >>> 31;
  }
  get pf(): number {
    return PARITY[this.parity & 0xff];
  }
  get af(): number {
    return (this.adjust >>> 3) & 1;
  }

  setCarry(cf: number): void {
    this.carry = (cf << 31) | ((cf ^ this.of) << 30);
  }

  setCarryAndOverflow(cf: number, of: number): void {
    this.carry = (cf << 31) | ((cf ^ of) << 30);
  }

  setZero(zf: number): void {
    this.zero = zf ^ 1;
  }

  /** The flags of a logical operation on `value`, aligned to the left as its size wants. */
  setResult(aligned: number, low: number): void {
    this.zero = aligned;
    this.sign = aligned;
    this.parity = low;
  }

  get value(): number {
    return (
      this.control | Rflags.FIXED | this.cf | (this.pf << 2) | (this.af << 4) | (this.zf << 6) | (this.sf << 7) | (this.of << 11)
    );
  }

  set value(bits: number) {
    this.control = bits & RFLAGS_WRITABLE & ~ARITHMETIC_FLAGS;
    this.setArithmetic(bits);
  }

  /** Takes CF, PF, AF, ZF, SF and OF from an RFLAGS image. */
  setArithmetic(bits: number): void {
    this.setCarryAndOverflow(bits & 1, (bits >>> 11) & 1);
    this.parity = (bits & Rflags.PF) === 0 ? 1 : 0;
    this.adjust = (bits >>> 1) & 8;
    this.zero = (bits & Rflags.ZF) === 0 ? 1 : 0;
    this.sign = bits << 24;
  }

  copyFrom(other: Flags): void {
    this.zero = other.zero;
    this.sign = other.sign;
    this.parity = other.parity;
    this.carry = other.carry;
    this.adjust = other.adjust;
    this.control = other.control;
  }
}
