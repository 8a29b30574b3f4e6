/**
 * The reader and the writer of the generated codec: those of protobufjs, but that 64-bit integers are BigInt and byte
 * strings are plain Uint8Arrays. The codec takes its `$protobuf` from here.
 */
import protobuf from 'protobufjs/minimal.js';

const UINT64_MAX = 2n ** 64n - 1n;
const INT64_MIN = -(2n ** 63n);
const INT64_MAX = 2n ** 63n - 1n;

const words = new DataView(new ArrayBuffer(8));

/** The two halves of a 64-bit value, which protobufjs takes for its LongBits. */
const halves = (value, least, most) => {
  if (typeof value === 'number' && !Number.isSafeInteger(value)) throw new RangeError(`${value} is no safe integer`);
  if (value < least || value > most) throw new RangeError(`${value} is not in ${least} to ${most}`);
  words.setBigUint64(0, BigInt.asUintN(64, BigInt(value)));
  return { high: words.getUint32(0), low: words.getUint32(4) };
};

export class Reader extends protobuf.BufferReader {
  static create(buffer) {
    return new Reader(Buffer.isBuffer(buffer) ? buffer : Buffer.from(buffer.buffer, buffer.byteOffset, buffer.byteLength));
  }

  /** A varint of up to ten bytes. Most values are small: each four bytes (28 bits) are gathered as a number. */
  uint64() {
    let value = 0n;
    for (let shift = 0n; shift < 64n; shift += 28n) {
      let part = 0;
      for (let bits = 0; bits < 28; bits += 7) {
        if (this.pos >= this.len) throw new RangeError('index out of range');
        const byte = this.buf[this.pos++];
        part |= (byte & 0x7f) << bits;
        if (byte < 0x80) return shift === 0n ? BigInt(part) : BigInt.asUintN(64, value | (BigInt(part) << shift));
      }
      value |= BigInt(part) << shift;
    }
    throw new RangeError('invalid varint encoding');
  }

  int64() {
    return BigInt.asIntN(64, this.uint64());
  }

  /** A view of the message, which must not be changed. */
  bytes() {
    const length = this.uint32();
    const { buf, pos } = this;
    if (length > this.len - pos) throw new RangeError('index out of range');
    this.pos += length;
    return new Uint8Array(buf.buffer, buf.byteOffset + pos, length);
  }
}

export class Writer extends protobuf.BufferWriter {
  static create() {
    return new Writer();
  }

  uint64(value) {
    return super.uint64(halves(value, 0n, UINT64_MAX));
  }

  int64(value) {
    return super.int64(halves(value, INT64_MIN, INT64_MAX));
  }
}

/** A number of 32 bits, signed or not: C makes the one of the other, and so does whoever writes `1 << 31`. */
const word = (value) => {
  if ((value | 0) !== value && value >>> 0 !== value) throw new RangeError(`${value} is not in -2147483648 to 4294967295`);
  return value;
};

/** A writer for what a program has made up, which may be anything; protobufjs would cut a number to its lowest 32 bits. */
class RequestWriter extends Writer {
  uint32(value) {
    return super.uint32(word(value));
  }

  int32(value) {
    return super.int32(word(value));
  }
}

/** The names that lead to the first part of `value` by which `fails` says that it cannot be encoded. */
const pathToBad = (value, fails) => {
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return '';
  for (const [name, part] of Object.entries(value)) {
    const within = (inner) => fails(Array.isArray(value) ? [inner] : { [name]: inner });
    if (within(part)) return (Array.isArray(value) ? `[${name}]` : `.${name}`) + pathToBad(part, within);
  }
  return '';
};

export const requestBytes = (type, message) => {
  const encode = (init) => type.encode(init, new RequestWriter()).finish();
  try {
    return encode(message);
  } catch (error) {
    const fails = (part) => {
      try {
        encode(part);
        return false;
      } catch {
        return true;
      }
    };
    const path = pathToBad(message, fails);
    if (path !== '') error.message = `${path.slice(1)}: ${error.message}`;
    throw error;
  }
};

/** `Long` and `newBuffer` make the defaults of fields: zero and no bytes. */
export const util = { ...protobuf.util, Long: { fromBits: () => 0n }, newBuffer: () => new Uint8Array(0) };

/** Where the codec puts its root; a property of its own for each program that loads it. */
export const roots = {};
