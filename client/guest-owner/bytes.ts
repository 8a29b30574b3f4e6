/** Bytes as AMD's formats have them: integers and numbers of elliptic curves and RSA are little-endian. */

export const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

export const u32 = (bytes: Uint8Array, offset: number): number => viewOf(bytes).getUint32(offset, true);

export const u64 = (bytes: Uint8Array, offset: number): bigint => viewOf(bytes).getBigUint64(offset, true);

/** A copy of `length` bytes. */
export const blob = (bytes: Uint8Array, offset: number, length: number): Uint8Array =>
  Uint8Array.from(bytes.subarray(offset, offset + length));

export const u32Bytes = (value: number): Uint8Array => {
  const bytes = new Uint8Array(4);
  viewOf(bytes).setUint32(0, value, true);
  return bytes;
};

export const reversed = (bytes: Uint8Array): Uint8Array => Uint8Array.from(bytes).reverse();

export const isZero = (bytes: Uint8Array): boolean => bytes.every((byte) => byte === 0);

export const equal = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

/** For whoever gives bytes as text, which QEMU and other tools print blobs as: in which form `length` of them are there. */
const textOf = (bytes: Uint8Array, length: number): string => {
  if (bytes.length < length || bytes.length > 3 * length) return '';
  const text = Buffer.from(bytes).toString('latin1').replace(/\s/g, '');
  const form = text.length === 2 * length && /^[\da-f]*$/i.test(text) ? 'hex' : 'base64';
  if (form === 'base64' && !/^[\da-z+/]*={0,2}$/i.test(text)) return '';
  return Buffer.from(text, form).length === length ? `, which are ${length} in ${form}: decode it` : '';
};

/** `3 bytes instead of 16`, and what may be the matter. */
export const lengthMistake = (bytes: Uint8Array, length: number): string =>
  `${bytes.length} byte${bytes.length === 1 ? '' : 's'} instead of ${length}${textOf(bytes, length)}`;

/** @throws RangeError that names what has another length */
export const requireLength = (what: string, bytes: Uint8Array, length: number): void => {
  if (bytes.length !== length) throw new RangeError(`${what} has ${lengthMistake(bytes, length)}`);
};

export const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

/** `bytes` with zeros behind them up to a multiple of `unit`. */
export const padded = (bytes: Uint8Array, unit: number): Uint8Array => {
  const out = new Uint8Array(Math.ceil(bytes.length / unit) * unit);
  out.set(bytes);
  return out;
};

/** A GUID in the mixed order of bytes that UEFI stores it in. */
export const guid = (text: string): Uint8Array => {
  const digits = text.replaceAll('-', '');
  if (!/^[0-9a-f]{32}$/i.test(digits)) throw new RangeError(`'${text}' is no GUID`);
  const bytes = Buffer.from(digits, 'hex');
  for (const [from, to] of [
    [0, 4],
    [4, 6],
    [6, 8],
  ] as const)
    bytes.subarray(from, to).reverse();
  return Uint8Array.from(bytes);
};
