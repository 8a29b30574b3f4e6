import type { Fields, Struct } from '../../../server/kernel/uapi/struct.js';
import type { Random } from '../../differential/random.js';
import type { RequestField } from '../../helpers/message-fields.js';

const PAGE = 4096n;
const INTEGERS = [
  0n,
  0n,
  0n,
  1n,
  1n,
  2n,
  3n,
  4n,
  5n,
  8n,
  16n,
  64n,
  255n,
  0x1000n,
  0x2000n,
  0x10000n,
  0xfee00000n,
  0xfffff000n,
] as const;
const EXTREMES = [2n ** 31n, 2n ** 32n - 1n, 2n ** 52n, 2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 1n] as const;
const TEXTS = ['', '/dev/kvm', '/dev/sev', '/dev/null', 'x'] as const;
const BYTES_MAX = 300;

/** What a process has that a call may name. */
export interface Surroundings {
  readonly openFds: readonly number[];
  /** The descriptor that a call is most likely made on. */
  readonly likelyFd: number;
  readonly memory: { readonly address: bigint; readonly length: bigint };
  readonly pids: readonly number[];
}

const address = (random: Random, { memory }: Surroundings): bigint =>
  random.chance(0.9) ? memory.address + BigInt(random.below(Number(memory.length / PAGE))) * PAGE : random.pick(EXTREMES);

const integer = (random: Random): bigint => (random.chance(0.92) ? random.pick(INTEGERS) : random.pick(EXTREMES));

/** A value for a field of that name, as likely as not one that makes sense. */
const byName = (random: Random, name: string, around: Surroundings): bigint => {
  if (name === 'fd' && random.chance(0.8)) return BigInt(around.likelyFd);
  if (/(^|_)fd$|guest_memfd$|eventfd/.test(name)) return BigInt(random.pick([...around.openFds, 0, 99]));
  if (/pid$/.test(name)) return BigInt(random.pick(around.pids));
  if (/userspace|uaddr|_addr$|^addr|address|pointer|data$|vaddr/.test(name)) return address(random, around);
  if (/size|length|len$/.test(name)) return BigInt(random.below(17)) * PAGE;
  return integer(random);
};

const WIDTHS: Readonly<Record<string, number>> = { int32: 32, uint32: 32, sint32: 32, fixed32: 32 };

/** A value for a field of a request. */
export const fieldValue = (random: Random, field: RequestField, around: Surroundings): unknown => {
  const name = field.path.at(-1)?.name ?? '';
  switch (field.type) {
    case 'string':
      return random.pick(TEXTS);
    case 'bytes':
      return Uint8Array.from({ length: random.below(BYTES_MAX) }, () => random.below(256));
    case 'bool':
      return random.chance(0.5);
    case 'enum':
      return random.below(12);
    default: {
      const value = byName(random, name, around);
      const width = WIDTHS[field.type];
      if (width === undefined) return field.type === 'int64' ? BigInt.asIntN(64, value) : value;
      return Number(field.type === 'uint32' ? BigInt.asUintN(width, value) : BigInt.asIntN(width, value));
    }
  }
};

/** Bytes of a structure, each field with a value of its own. */
export const structBytes = (random: Random, type: Struct<Fields>, around: Surroundings): Uint8Array => {
  const bytes = new Uint8Array(type.size);
  const view = new DataView(bytes.buffer);
  for (const [name, field] of Object.entries(type.fields)) {
    if (field.kind !== 'uint' && field.kind !== 'int') continue;
    const value = byName(random, name, around);
    for (let at = 0; at < field.size; at++) view.setUint8(field.offset + at, Number((value >> BigInt(8 * at)) & 0xffn));
  }
  return bytes;
};
