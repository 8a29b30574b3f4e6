import type { Handles } from './handles.js';
import { isObject, type Json, type JsonObject } from './json.js';

const U64 = 64;

/** `strtoull(text, NULL, 0)` with a sign: as far as the text is a number; 0 if it is none. */
const parseInteger = (text: string): bigint => {
  const negative = text.startsWith('-');
  const match = /^(?:0[xX][0-9a-fA-F]+|[0-9]+)/.exec(negative ? text.slice(1) : text);
  const value = match === null ? 0n : BigInt(match[0]);
  return BigInt.asUintN(U64, negative ? -value : value);
};

/** The protocol's numbers: 64 bits unsigned, from a JSON number, a string or a boolean. */
export const toU64 = (value: Json | undefined, absent = 0n): bigint => {
  if (typeof value === 'number') return Number.isInteger(value) ? BigInt.asUintN(U64, BigInt(value)) : absent;
  if (typeof value === 'bigint') return BigInt.asUintN(U64, value);
  if (typeof value === 'boolean') return value ? 1n : 0n;
  return typeof value === 'string' ? parseInteger(value) : absent;
};

/** Hex digits to bytes; anything else in the text is skipped. */
const fromHex = (text: string): Uint8Array => {
  const digits = text.replace(/[^0-9a-fA-F]/g, '');
  return Uint8Array.from(Buffer.from(digits.length % 2 === 0 ? digits : digits.slice(0, -1), 'hex'));
};

export const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

/** The fields that may name the descriptor of an op, in the order in which they are looked for. */
const DESCRIPTOR_FIELDS = ['fd', 'vcpu', 'vm', 'sys', 'dev', 'eventfd'] as const;

/** The fields of one op, read as the protocol says. */
export class OpArgs {
  constructor(
    readonly fields: JsonObject,
    private readonly handles: Handles,
  ) {}

  get name(): string {
    return this.text('op', '?');
  }

  has(key: string): boolean {
    return this.fields[key] !== undefined;
  }

  u64(key: string, absent: bigint | number = 0n): bigint {
    return toU64(this.fields[key], BigInt.asUintN(U64, BigInt(absent)));
  }

  u32(key: string, absent = 0): number {
    return Number(BigInt.asUintN(32, this.u64(key, absent)));
  }

  /** A count, flag or time that fits a JavaScript number. */
  number(key: string, absent = 0): number {
    return Number(this.u64(key, absent));
  }

  truthy(key: string, absent = false): boolean {
    return this.u64(key, absent ? 1 : 0) !== 0n;
  }

  text(key: string, absent = ''): string {
    const value = this.fields[key];
    return typeof value === 'string' ? value : absent;
  }

  bytes(key: string): Uint8Array {
    return fromHex(this.text(key));
  }

  list(key: string): readonly Json[] {
    const value = this.fields[key];
    return Array.isArray(value) ? value : [];
  }

  /** The objects of a list, with the same access to their fields. */
  items(key: string): OpArgs[] {
    return this.list(key).map((item) => new OpArgs(isObject(item) ? item : {}, this.handles));
  }

  /** The members of an object that holds numbers: `set: {"rip": 4096}`. */
  entries(key: string): [string, bigint][] {
    const value = this.fields[key];
    return isObject(value) ? Object.entries(value).map(([name, item]) => [name, toU64(item)]) : [];
  }

  /** A descriptor: a handle's name, or a number as it is. */
  descriptor(key: string, absent = -1): number {
    const value = this.fields[key];
    if (value === undefined) return absent;
    if (typeof value === 'string' && /^[A-Za-z_]/.test(value)) return this.handles.fd(value);
    return Number(BigInt.asIntN(32, toU64(value, BigInt(absent))));
  }

  /** The descriptor that the op acts on. */
  get fd(): number {
    for (const key of DESCRIPTOR_FIELDS) if (this.has(key)) return this.descriptor(key);
    return -1;
  }

  /** An address: a number, or an offset into a mapping. */
  address(key: string, absent = 0n): bigint {
    const value = this.fields[key];
    if (!isObject(value)) return toU64(value, absent);
    const map = this.handles.find(typeof value.map === 'string' ? value.map : '')?.map;
    return map === undefined ? 0n : BigInt.asUintN(U64, map.address + toU64(value.off));
  }

  /** The memory behind a slot: `backing`, or `addr`. */
  get backing(): bigint {
    return this.has('backing') ? this.address('backing') : this.address('addr');
  }

  /** True if the op asks for this field, or asks for none in particular. */
  wants(field: string): boolean {
    return !this.has('fields') || this.list('fields').includes(field);
  }
}
