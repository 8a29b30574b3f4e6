/**
 * Little-endian structures of fixed size, described field by field with the offsets that the specifications print. A field
 * reads and writes a `Uint8Array` that holds the structure.
 */
export interface Field<Value> {
  readonly offset: number;
  readonly size: number;
  get(bytes: Uint8Array): Value;
  set(bytes: Uint8Array, value: Value): void;
}

export interface Struct {
  readonly size: number;
  /** Whether all bytes that belong to no field are zero. */
  reservedIsZero(bytes: Uint8Array): boolean;
}

export const u8 = (offset: number): Field<number> => ({
  offset,
  size: 1,
  get: (bytes) => bytes[offset],
  set: (bytes, value) => {
    bytes[offset] = value;
  },
});

export const u16 = (offset: number): Field<number> => ({
  offset,
  size: 2,
  get: (bytes) => bytes[offset] | (bytes[offset + 1] << 8),
  set: (bytes, value) => {
    bytes[offset] = value;
    bytes[offset + 1] = value >>> 8;
  },
});

/** Every command reads a few of these, so it does without a DataView. */
const getU32 = (bytes: Uint8Array, offset: number): number =>
  (bytes[offset] | (bytes[offset + 1] << 8) | (bytes[offset + 2] << 16) | (bytes[offset + 3] << 24)) >>> 0;

function setU32(bytes: Uint8Array, offset: number, value: number): void {
  bytes[offset] = value;
  bytes[offset + 1] = value >>> 8;
  bytes[offset + 2] = value >>> 16;
  bytes[offset + 3] = value >>> 24;
}

export const u32 = (offset: number): Field<number> => ({
  offset,
  size: 4,
  get: (bytes) => getU32(bytes, offset),
  set: (bytes, value) => setU32(bytes, offset, value),
});

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

export const u64 = (offset: number): Field<bigint> => ({
  offset,
  size: 8,
  get: (bytes) => viewOf(bytes).getBigUint64(offset, true),
  set: (bytes, value) => viewOf(bytes).setBigUint64(offset, value, true),
});

/**
 * A physical address as a number. Values of 2^53 and more lose precision, which does no harm: no physical address has
 * more than 52 bits, so they are invalid whatever their low bits are.
 */
export const paddr = (offset: number): Field<number> => ({
  offset,
  size: 8,
  get: (bytes) => getU32(bytes, offset + 4) * 2 ** 32 + getU32(bytes, offset),
  set: (bytes, value) => {
    setU32(bytes, offset, value % 2 ** 32);
    setU32(bytes, offset + 4, Math.floor(value / 2 ** 32));
  },
});

/** A string of bytes. `get` gives a copy (unlike `slice` of a Buffer, which is a view); `set` fills what the value does not cover with zeros. */
export const blob = (offset: number, size: number): Field<Uint8Array> => ({
  offset,
  size,
  get: (bytes) => new Uint8Array(bytes.subarray(offset, offset + size)),
  set: (bytes, value) => {
    bytes.fill(0, offset, offset + size);
    bytes.set(value, offset);
  },
});

/** Offsets that no field covers. */
const uncovered = (size: number, fields: readonly Pick<Field<unknown>, 'offset' | 'size'>[]): number[] => {
  const covered = new Uint8Array(size);
  for (const field of fields) covered.fill(1, field.offset, field.offset + field.size);
  return [...covered.keys()].filter((offset) => covered[offset] === 0);
};

/** Describes a structure of `size` bytes by its fields, which become properties of the result. */
export function struct<Shape extends Record<string, Pick<Field<unknown>, 'offset' | 'size'>>>(
  size: number,
  shape: Shape,
): Struct & Shape {
  // Found when first asked for: the daemon declares a hundred structures at its start.
  let reserved: readonly number[] | null = null;
  const reservedIsZero = (bytes: Uint8Array): boolean => {
    reserved ??= uncovered(size, Object.values(shape));
    for (const offset of reserved) if (bytes[offset] !== 0) return false;
    return true;
  };
  return { ...shape, size, reservedIsZero };
}
