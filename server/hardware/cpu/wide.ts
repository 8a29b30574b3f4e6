/** Multiplication and division wider than a JavaScript number, on int32 words. */

const TWO_32 = 0x1_0000_0000;
/** Products and quotients below this are exact as numbers. */
const EXACT = Number.MAX_SAFE_INTEGER;

/** High 32 bits of the unsigned product of two 32-bit values. */
export function multiplyHigh(a: number, b: number): number {
  const aLow = a & 0xffff;
  const aHigh = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  const cross = aLow * bHigh + (middle & 0xffff);
  return (aHigh * bHigh + Math.floor(middle / 0x10000) + Math.floor(cross / 0x10000)) | 0;
}

/** High 32 bits of the signed product. */
export function multiplyHighSigned(a: number, b: number): number {
  return (multiplyHigh(a, b) - (a < 0 ? b : 0) - (b < 0 ? a : 0)) | 0;
}

/** Unsigned 64 x 64 to 128 bits: four words, least significant first, into `out`. */
export function multiply64(aLo: number, aHi: number, bLo: number, bHi: number, out: Int32Array): void {
  const low = Math.imul(aLo, bLo);
  const first = Math.imul(aHi, bLo) >>> 0;
  const second = Math.imul(aLo, bHi) >>> 0;
  const word1 = (multiplyHigh(aLo, bLo) >>> 0) + first + second;
  const word2 =
    Math.floor(word1 / TWO_32) + (multiplyHigh(aHi, bLo) >>> 0) + (multiplyHigh(aLo, bHi) >>> 0) + (Math.imul(aHi, bHi) >>> 0);
  out[0] = low;
  out[1] = word1;
  out[2] = word2;
  out[3] = multiplyHigh(aHi, bHi) + Math.floor(word2 / TWO_32);
}

/** Signed 64 x 64 to 128 bits. */
export function multiply64Signed(aLo: number, aHi: number, bLo: number, bHi: number, out: Int32Array): void {
  multiply64(aLo, aHi, bLo, bHi, out);
  if (aHi < 0) subtractHigh(out, bLo, bHi);
  if (bHi < 0) subtractHigh(out, aLo, aHi);
}

function subtractHigh(out: Int32Array, lo: number, hi: number): void {
  const borrow = out[2] >>> 0 < lo >>> 0 ? 1 : 0;
  out[2] -= lo;
  out[3] -= hi + borrow;
}

const unsigned = (lo: number, hi: number): bigint => (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);

/**
 * Divides the 128 bits of `dividend` (four words) by a 64-bit divisor: quotient to out[0..1], remainder to out[2..3].
 *
 * @returns false where the quotient does not fit (or the divisor is zero): #DE
 */
export function divide128(dividend: Int32Array, lo: number, hi: number, signed: boolean, out: Int32Array): boolean {
  if ((lo | hi) === 0) return false;
  if ((dividend[2] | dividend[3]) === 0 && dividend[1] >= 0 && hi >= 0) {
    const numerator = dividend[1] * TWO_32 + (dividend[0] >>> 0);
    const divisor = hi * TWO_32 + (lo >>> 0);
    if (numerator <= EXACT && divisor <= EXACT) {
      const remainder = numerator % divisor;
      const quotient = (numerator - remainder) / divisor;
      out[0] = quotient;
      out[1] = Math.floor(quotient / TWO_32);
      out[2] = remainder;
      out[3] = Math.floor(remainder / TWO_32);
      return true;
    }
  }
  return divideBig(dividend, lo, hi, signed, out);
}

function divideBig(dividend: Int32Array, lo: number, hi: number, signed: boolean, out: Int32Array): boolean {
  const wide = (unsigned(dividend[2], dividend[3]) << 64n) | unsigned(dividend[0], dividend[1]);
  const numerator = signed ? BigInt.asIntN(128, wide) : wide;
  const divisor = signed ? BigInt.asIntN(64, unsigned(lo, hi)) : unsigned(lo, hi);
  const quotient = numerator / divisor;
  const remainder = numerator % divisor;
  if ((signed ? BigInt.asIntN(64, quotient) : BigInt.asUintN(64, quotient)) !== quotient) return false;
  out[0] = Number(BigInt.asIntN(32, quotient));
  out[1] = Number(BigInt.asIntN(32, quotient >> 32n));
  out[2] = Number(BigInt.asIntN(32, remainder));
  out[3] = Number(BigInt.asIntN(32, remainder >> 32n));
  return true;
}
