/** The few types of DER (X.690) of which the certificates of `x509.ts` consist. Every function gives one encoded value. */

const UNIVERSAL = { INTEGER: 0x02, BIT_STRING: 0x03, OCTET_STRING: 0x04, NULL: 0x05, OID: 0x06, UTF8: 0x0c, IA5: 0x16 } as const;
const BOOLEAN = 0x01;
const UTC_TIME = 0x17;
const SEQUENCE = 0x30;
const SET = 0x31;
const CONTEXT = 0xa0;

function encode(tag: number, ...contents: Uint8Array[]): Uint8Array {
  const body = Buffer.concat(contents);
  return Buffer.concat([Uint8Array.of(tag), encodeLength(body.length), body]);
}

function encodeLength(length: number): Uint8Array {
  if (length < 0x80) return Uint8Array.of(length);
  if (length < 0x100) return Uint8Array.of(0x81, length);
  return Uint8Array.of(0x82, length >> 8, length & 0xff);
}

export const sequence = (...parts: Uint8Array[]): Uint8Array => encode(SEQUENCE, ...parts);
export const set = (...parts: Uint8Array[]): Uint8Array => encode(SET, ...parts);
export const explicit = (tag: number, ...parts: Uint8Array[]): Uint8Array => encode(CONTEXT | tag, ...parts);
export const octetString = (bytes: Uint8Array): Uint8Array => encode(UNIVERSAL.OCTET_STRING, bytes);
export const bitString = (bytes: Uint8Array): Uint8Array => encode(UNIVERSAL.BIT_STRING, Uint8Array.of(0), bytes);
export const utf8String = (text: string): Uint8Array => encode(UNIVERSAL.UTF8, Buffer.from(text, 'utf8'));
export const ia5String = (text: string): Uint8Array => encode(UNIVERSAL.IA5, Buffer.from(text, 'ascii'));
export const isTrue = (): Uint8Array => encode(BOOLEAN, Uint8Array.of(0xff));
export const nothing = (): Uint8Array => encode(UNIVERSAL.NULL);

/** A non-negative integer below 2^31, or one given by its big-endian bytes. */
export function integer(value: number | Uint8Array): Uint8Array {
  const bytes = typeof value === 'number' ? Buffer.from(value.toString(16).padStart(8, '0'), 'hex') : value;
  const first = bytes.findIndex((byte) => byte !== 0);
  const digits = first < 0 ? Uint8Array.of(0) : bytes.subarray(first);
  return encode(UNIVERSAL.INTEGER, (digits[0] ?? 0) >= 0x80 ? Uint8Array.of(0) : new Uint8Array(0), digits);
}

/** `1.2.840.113549.1.1.10` */
export function oid(dotted: string): Uint8Array {
  const [first = 0, second = 0, ...rest] = dotted.split('.').map(Number);
  const arcs = rest.flatMap((arc) => {
    const septets: number[] = [arc & 0x7f];
    for (let value = arc >>> 7; value > 0; value >>>= 7) septets.unshift((value & 0x7f) | 0x80);
    return septets;
  });
  return encode(UNIVERSAL.OID, Uint8Array.of(first * 40 + second, ...arcs));
}

/** `240101000000Z`: two digits for the year, which is before 2050. */
export const utcTime = (text: string): Uint8Array => encode(UTC_TIME, Buffer.from(text, 'ascii'));
