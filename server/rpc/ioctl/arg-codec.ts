import { failed, type Result } from '../../kernel/failure.js';
import type { InlineCopy } from '../../kernel/fs/inline-copy.js';
import type { Fields, Struct } from '../../kernel/uapi/struct.js';
import { decodeStruct, encodeStruct, isMessage, type Message } from './struct-message.js';

/** How the message of an ioctl's structure becomes the ioctl's argument, and back. */
export interface ArgCodec {
  /** The argument where the request leaves the message out; otherwise that is an empty message. */
  readonly absent?: bigint;
  /** Lays the structure, and what its pointers lead to, into `inline`. Returns the ioctl's third argument. */
  encode(message: Message, inline: InlineCopy, path: string): Result<bigint>;
  /** The message of what the kernel has left there. */
  decode(argument: bigint, inline: InlineCopy): Message;
}

/** A pointer of the structure that may come inline: `<member>_bytes` in the message is what it leads to. */
export interface Pointer {
  readonly member: string;
  /** Member that holds the length in bytes, set from the inline bytes where the message leaves it out. */
  readonly length?: string;
}

/** An array behind the structure. */
export interface Tail {
  /** Field of the message. */
  readonly field: string;
  /** Member of the structure that counts the entries. */
  readonly count: string;
  readonly entry: EntryCodec;
}

export interface EntryCodec {
  readonly size: number;
  encode(item: unknown, path: string): Result<Uint8Array>;
  decode(data: Uint8Array, base: number): unknown;
}

export interface StructArgOptions {
  readonly pointers?: readonly Pointer[];
  readonly tail?: Tail;
  /** Members that are -1 where the message leaves them out: descriptors. */
  readonly descriptors?: readonly string[];
  /** What the kernel writes has another shape than what it reads. */
  readonly answer?: Struct<Fields>;
}

const NO_BYTES = new Uint8Array(0);
const bytesOf = (value: unknown): Uint8Array => (value instanceof Uint8Array ? value : NO_BYTES);
const given = (value: unknown): value is NonNullable<unknown> => value !== null && value !== undefined;

/** An entry that is a structure with a message of the same member names. */
export const structEntry = (struct: Struct<Fields>): EntryCodec => ({
  size: struct.size,
  encode: (item, path) => encodeStruct(struct, isMessage(item) ? item : {}, path),
  decode: (data, base) => decodeStruct(struct, data, base),
});

/** An entry that is one 32-bit number. */
export const u32Entry: EntryCodec = {
  size: 4,
  encode: (item) => {
    const data = new Uint8Array(4);
    new DataView(data.buffer).setUint32(0, Number(item), true);
    return data;
  },
  decode: (data, base) => new DataView(data.buffer, data.byteOffset).getUint32(base, true),
};

/** The codec of an ioctl whose argument points to a structure. */
export const structArg = (struct: Struct<Fields>, options: StructArgOptions = {}): ArgCodec => {
  const { pointers = [], tail, descriptors = [], answer = struct } = options;

  /** The message with what it may leave out. */
  const completed = (message: Message, inline: InlineCopy): Record<string, unknown> => {
    const complete: Record<string, unknown> = { ...message };
    for (const member of descriptors) complete[member] = given(message[member]) ? message[member] : -1;
    for (const { member, length } of pointers) {
      const data = bytesOf(message[`${member}_bytes`]);
      if (length !== undefined && !given(message[length])) complete[length] = data.length;
      if (!given(message[member])) complete[member] = pointTo(inline, data, length === undefined ? 1 : Number(complete[length]));
    }
    return complete;
  };

  const saysAll = pointers.length === 0 && descriptors.length === 0;
  const encode: ArgCodec['encode'] = (message, inline, path) => {
    if (tail !== undefined) return encodeTail(struct, completed(message, inline), tail, inline, path);
    const head = encodeStruct(struct, saysAll ? message : completed(message, inline), path);
    return failed(head) ? head : inline.placeGrowing(head);
  };

  const decode: ArgCodec['decode'] = (argument, inline) => {
    const data = inline.contents(argument);
    const message: Record<string, unknown> = decodeStruct(answer, data);
    const sent = struct.decode(data);
    for (const { member } of pointers) {
      const address = sent[member];
      if (typeof address === 'bigint' && inline.writtenAt(address)) message[`${member}_bytes`] = inline.contents(address);
    }
    if (tail !== undefined) message[tail.field] = decodeTail(struct, tail, data);
    return message;
  };

  return { encode, decode };
};

/** Null for an empty blob that nobody has asked for: to the kernel the two are different things. */
const pointTo = (inline: InlineCopy, data: Uint8Array, length: number): bigint =>
  data.length === 0 && length === 0 ? 0n : inline.placeGrowing(data.slice());

const encodeTail = (
  struct: Struct<Fields>,
  message: Record<string, unknown>,
  tail: Tail,
  inline: InlineCopy,
  path: string,
): Result<bigint> => {
  const listed = message[tail.field];
  const items = Array.isArray(listed) ? listed : [];
  if (!given(message[tail.count])) message[tail.count] = items.length;
  const head = encodeStruct(struct, message, path);
  if (failed(head)) return head;
  const data = new Uint8Array(struct.size + items.length * tail.entry.size);
  data.set(head);
  for (const [index, item] of items.entries()) {
    const entry = tail.entry.encode(item, `${path}.${tail.field}[${index}]`);
    if (failed(entry)) return entry;
    data.set(entry, struct.size + index * tail.entry.size);
  }
  return inline.placeGrowing(data);
};

const decodeTail = (struct: Struct<Fields>, tail: Tail, data: Uint8Array): unknown[] => {
  const counted = struct.decode(data)[tail.count];
  const present = Math.floor((data.length - struct.size) / tail.entry.size);
  const count = Math.min(typeof counted === 'number' ? counted : 0, present);
  return Array.from({ length: count }, (_, index) => tail.entry.decode(data, struct.size + index * tail.entry.size));
};
