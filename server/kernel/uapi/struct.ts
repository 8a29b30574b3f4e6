/**
 * Layouts of the structures that cross the system-call boundary. A field says where it lies and how it is read; a
 * structure is its name, its size and its fields, and gives both the TypeScript type and the codec.
 */

/** The parts of a field that is not a single value. */
export type InnerFields =
  | { readonly kind: 'struct'; readonly struct: Struct<Fields> }
  | { readonly kind: 'array'; readonly elements: readonly Field<unknown>[] };

/** One field: offset in bytes, and how it is read and written. All integers are little-endian. */
export interface Field<T> {
  readonly offset: number;
  readonly size: number;
  readonly kind: 'uint' | 'int' | 'bytes' | 'struct' | 'array';
  /** What a field of kind 'struct' or 'array' consists of. */
  readonly inner?: InnerFields;
  get(view: DataView, base: number): T;
  set(view: DataView, base: number, value: T): void;
}

const integer = (
  offset: number,
  size: number,
  kind: 'uint' | 'int',
  get: (view: DataView, at: number) => number,
  set: (view: DataView, at: number, value: number) => void,
): Field<number> => ({
  offset,
  size,
  kind,
  get: (view, base) => get(view, base + offset),
  set: (view, base, value) => set(view, base + offset, value),
});

export const u8 = (offset: number): Field<number> =>
  integer(
    offset,
    1,
    'uint',
    (view, at) => view.getUint8(at),
    (view, at, value) => view.setUint8(at, value),
  );
export const u16 = (offset: number): Field<number> =>
  integer(
    offset,
    2,
    'uint',
    (view, at) => view.getUint16(at, true),
    (view, at, value) => view.setUint16(at, value, true),
  );
export const u32 = (offset: number): Field<number> =>
  integer(
    offset,
    4,
    'uint',
    (view, at) => view.getUint32(at, true),
    (view, at, value) => view.setUint32(at, value, true),
  );
export const s16 = (offset: number): Field<number> =>
  integer(
    offset,
    2,
    'int',
    (view, at) => view.getInt16(at, true),
    (view, at, value) => view.setInt16(at, value, true),
  );
export const s32 = (offset: number): Field<number> =>
  integer(
    offset,
    4,
    'int',
    (view, at) => view.getInt32(at, true),
    (view, at, value) => view.setInt32(at, value, true),
  );

export const u64 = (offset: number): Field<bigint> => ({
  offset,
  size: 8,
  kind: 'uint',
  get: (view, base) => view.getBigUint64(base + offset, true),
  set: (view, base, value) => view.setBigUint64(base + offset, value, true),
});

export const s64 = (offset: number): Field<bigint> => ({
  offset,
  size: 8,
  kind: 'int',
  get: (view, base) => view.getBigInt64(base + offset, true),
  set: (view, base, value) => view.setBigInt64(base + offset, value, true),
});

/** `length` bytes as they are; shorter input leaves the rest zero. */
export const bytes = (offset: number, length: number): Field<Uint8Array> => ({
  offset,
  size: length,
  kind: 'bytes',
  get: (view, base) => new Uint8Array(view.buffer, view.byteOffset + base + offset, length).slice(),
  set: (view, base, value) => new Uint8Array(view.buffer, view.byteOffset + base + offset, length).set(value.subarray(0, length)),
});

/** `count` fields of one kind, one after the other: `array(u64, 8, 4)` is `__u64 args[4]` at offset 8. */
export const array = <T>(element: (offset: number) => Field<T>, offset: number, count: number): Field<T[]> => {
  const size = element(0).size;
  const elements = Array.from({ length: count }, (_, index) => element(offset + index * size));
  return {
    offset,
    size: size * count,
    kind: 'array',
    inner: { kind: 'array', elements },
    get: (view, base) => elements.map((field) => field.get(view, base)),
    set: (view, base, value) =>
      elements.forEach((field, index) => {
        const item = value[index];
        if (item !== undefined) field.set(view, base, item);
      }),
  };
};

export type Fields = Readonly<Record<string, Field<unknown>>>;

/** The TypeScript type of a structure's value. */
export type ValueOf<F extends Fields> = { -readonly [K in keyof F]: F[K] extends Field<infer T> ? T : never };

export interface Struct<F extends Fields> {
  /** As in the kernel's header: `kvm_ioeventfd`. */
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  readonly fields: F;
  /** Reads a value at `base` of `data`. */
  decode(data: Uint8Array, base?: number): ValueOf<F>;
  /** Writes the fields that are given into `data` and leaves the others as they are. */
  write(data: Uint8Array, value: Partial<ValueOf<F>>, base?: number): void;
  /** The structure's bytes, with zero for every field that is not given. */
  encode(value: Partial<ValueOf<F>>): Uint8Array;
  /** The same in a buffer that the next call of it overwrites: for who copies the bytes at once. */
  encodeOnce(value: Partial<ValueOf<F>>): Uint8Array;
}

/** The value type of a structure: `StructValue<typeof kvm_ioeventfd>`. */
export type StructValue<S> = S extends Struct<infer F> ? ValueOf<F> : never;

const viewOf = (data: Uint8Array): DataView => new DataView(data.buffer, data.byteOffset, data.byteLength);

const newScratch = (size: number): { readonly bytes: Uint8Array; readonly view: DataView } => {
  const bytes = new Uint8Array(size);
  return { bytes, view: viewOf(bytes) };
};

/** Declares a structure of the kernel's user API. Bytes that no field covers are padding: ignored and written as zero. */
export const struct = <F extends Fields>(name: string, size: number, fields: F): Struct<F> => {
  const entries: readonly (readonly [keyof F & string, Field<unknown>])[] = Object.entries(fields);
  for (const [field, { offset, size: length }] of entries)
    if (offset + length > size) throw new Error(`${name}.${field} lies beyond the structure's ${size} bytes`);
  let scratch: { readonly bytes: Uint8Array; readonly view: DataView } | null = null;
  /** A copy of the bytes: a view of a short array of their own would have them moved out of the heap first, which costs more. */
  const viewOfCopy = (data: Uint8Array): DataView => {
    scratch ??= newScratch(size);
    scratch.bytes.set(data);
    return scratch.view;
  };
  const writeTo = (view: DataView, value: Partial<ValueOf<F>>, base: number): void => {
    for (const [field, codec] of entries) {
      const item = value[field];
      if (item !== undefined) codec.set(view, base, item);
    }
  };
  return {
    name,
    size,
    fields,
    decode: (data, base = 0) => {
      const view = base === 0 && data.length === size ? viewOfCopy(data) : viewOf(data);
      const value: Partial<Record<keyof F, unknown>> = {};
      for (const [field, codec] of entries) value[field] = codec.get(view, base);
      return decoded<F>(value);
    },
    write: (data, value, base = 0) => writeTo(viewOf(data), value, base),
    encode: (value) => {
      const buffer = new ArrayBuffer(size);
      writeTo(new DataView(buffer), value, 0);
      return new Uint8Array(buffer);
    },
    encodeOnce: (value) => {
      scratch ??= newScratch(size);
      scratch.bytes.fill(0);
      writeTo(scratch.view, value, 0);
      return scratch.bytes;
    },
  };
};

/** Every field has just been set by its own codec; this is where the compiler is told. */
const decoded = <F extends Fields>(value: Partial<Record<keyof F, unknown>>): ValueOf<F> => value as ValueOf<F>;

/** A structure inside another one. */
export const nested = <F extends Fields>(inner: Struct<F>, offset: number): Field<ValueOf<F>> => ({
  offset,
  size: inner.size,
  kind: 'struct',
  inner: { kind: 'struct', struct: inner },
  get: (view, base) => inner.decode(new Uint8Array(view.buffer, view.byteOffset, view.byteLength), base + offset),
  set: (view, base, value) => inner.write(new Uint8Array(view.buffer, view.byteOffset, view.byteLength), value, base + offset),
});
