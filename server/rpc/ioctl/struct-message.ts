import { Failure, type Result } from '../../kernel/failure.js';
import type { Field, Fields, Struct } from '../../kernel/uapi/struct.js';

/** A message as the static codec makes it, its fields by name. */
export type Message = { readonly [field: string]: unknown };

export const isMessage = (value: unknown): value is Message => typeof value === 'object' && value !== null;

const outOfRange = (field: string, given: string, allowed: string): Failure =>
  new Failure('EINVAL', 'FIELD_OUT_OF_RANGE', 'simkvmd', { field, given, allowed });

/** Where structures are encoded before they get bytes of their own, which are cheaper without a view of them. */
let scratch = new Uint8Array(0);

const cleared = (size: number): Uint8Array => {
  if (scratch.length < size) scratch = new Uint8Array(size);
  return scratch.fill(0, 0, size);
};

/** Bytes of a structure from the message of the same member names. Refuses a value wider than its member. */
export const encodeStruct = (struct: Struct<Fields>, message: Message, path: string): Result<Uint8Array> => {
  const data = cleared(struct.size);
  return encodeFields(struct, new DataView(data.buffer), 0, message, path) ?? data.slice(0, struct.size);
};

const encodeFields = (struct: Struct<Fields>, view: DataView, base: number, message: Message, path: string): Failure | null => {
  for (const [name, field] of Object.entries<Field<unknown>>(struct.fields)) {
    const refusal = encodeField(field, view, base, message[name], `${path}.${name}`);
    if (refusal !== null) return refusal;
  }
  return null;
};

const encodeField = (field: Field<unknown>, view: DataView, base: number, value: unknown, path: string): Failure | null => {
  if (value === null || value === undefined) return null;
  switch (field.kind) {
    case 'uint':
    case 'int':
      return encodeInteger(field, view, base, value, path);
    case 'bytes':
      if (!(value instanceof Uint8Array)) return outOfRange(path, typeof value, 'bytes');
      if (value.length > field.size) return outOfRange(path, `${value.length} bytes`, `at most ${field.size} bytes`);
      field.set(view, base, value);
      return null;
    default:
      return encodeNested(field, view, base, value, path);
  }
};

const encodeInteger = (field: Field<unknown>, view: DataView, base: number, value: unknown, path: string): Failure | null => {
  if (field.size === 8) {
    if (!(typeof value === 'number' || typeof value === 'bigint')) return outOfRange(path, typeof value, 'an integer of 64 bits');
    field.set(view, base, field.kind === 'int' ? BigInt.asIntN(64, BigInt(value)) : BigInt.asUintN(64, BigInt(value)));
    return null;
  }
  const limit = 2 ** (field.size * 8);
  // A descriptor is int32 in a message and may be __u32 in a structure: -1 is 0xffffffff there.
  const low = field.kind === 'int' || field.size === 4 ? -limit / 2 : 0;
  const high = field.kind === 'int' ? limit / 2 - 1 : limit - 1;
  if (typeof value !== 'number' || value < low || value > high) return outOfRange(path, String(value), `${low} to ${high}`);
  field.set(view, base, value);
  return null;
};

const encodeNested = (field: Field<unknown>, view: DataView, base: number, value: unknown, path: string): Failure | null => {
  const inner = field.inner;
  if (inner === undefined) return null;
  if (inner.kind === 'struct') {
    if (!isMessage(value)) return outOfRange(path, typeof value, 'a message');
    return encodeFields(inner.struct, view, base + field.offset, value, path);
  }
  if (!Array.isArray(value)) return outOfRange(path, typeof value, 'a list');
  if (value.length > inner.elements.length)
    return outOfRange(path, `${value.length} entries`, `at most ${inner.elements.length} entries`);
  for (const [index, item] of value.entries()) {
    const refusal = encodeField(inner.elements[index] ?? field, view, base, item, `${path}[${index}]`);
    if (refusal !== null) return refusal;
  }
  return null;
};

/** The message of a structure's bytes. */
export const decodeStruct = (struct: Struct<Fields>, bytes: Uint8Array, base = 0): Record<string, unknown> =>
  toMessage(struct.decode(bytes, base));

const toMessage = (value: object): Record<string, unknown> => {
  const message: Record<string, unknown> = {};
  for (const [name, item] of Object.entries(value)) message[name] = toField(item);
  return message;
};

const toField = (item: unknown): unknown => {
  if (typeof item !== 'object' || item === null || item instanceof Uint8Array) return item;
  return Array.isArray(item) ? item.map(toField) : toMessage(item);
};
