import { createPublicKey, type KeyObject, verify } from 'node:crypto';
import { blob, isZero, reversed, u32 } from './bytes.js';

/** P-384 keys and ECDSA signatures in the fields of AMD's structures: little-endian numbers of 72 bytes. */

/** Bytes of the field that holds a public key: CURVE, QX, QY, zeros. */
export const EC_PUBLIC_KEY_LENGTH = 1028;
const CURVE_P384 = 2;
const FIELD = 72;
const COORDINATE = 48;

/** A big-endian number as a field, or in a longer field. */
const toField = (number: Uint8Array): Uint8Array => {
  const field = new Uint8Array(FIELD);
  field.set(reversed(number));
  return field;
};

/** Null if the number is longer than those of the curve. */
const fromField = (field: Uint8Array): Uint8Array | null =>
  isZero(field.subarray(COORDINATE)) ? reversed(field.subarray(0, COORDINATE)) : null;

/** The field of an uncompressed point: 4, X, Y. */
export const encodeEcPublicKey = (point: Uint8Array): Uint8Array => {
  const field = new Uint8Array(EC_PUBLIC_KEY_LENGTH);
  field[0] = CURVE_P384;
  field.set(toField(point.subarray(1, 1 + COORDINATE)), 4);
  field.set(toField(point.subarray(1 + COORDINATE)), 4 + FIELD);
  return field;
};

/** The uncompressed point of a field, or null if it holds no number of the curve. */
export const decodeEcPoint = (field: Uint8Array): Uint8Array | null => {
  const x = fromField(field.subarray(4, 4 + FIELD));
  const y = fromField(field.subarray(4 + FIELD, 4 + 2 * FIELD));
  if (u32(field, 0) !== CURVE_P384 || x === null || y === null) return null;
  return Buffer.concat([Uint8Array.of(4), x, y]);
};

/** The key of a field, or null if it is no point of the curve. */
export const decodeEcPublicKey = (field: Uint8Array): KeyObject | null => {
  const point = decodeEcPoint(field);
  if (point === null) return null;
  const coordinate = (offset: number): string => Buffer.from(blob(point, offset, COORDINATE)).toString('base64url');
  try {
    return createPublicKey({
      key: { kty: 'EC', crv: 'P-384', x: coordinate(1), y: coordinate(1 + COORDINATE) },
      format: 'jwk',
    });
  } catch {
    return null;
  }
};

/** Whether the field `signature` (R, S) is one of `key` over `message`. */
export const verifyEc = (hash: 'sha256' | 'sha384', key: KeyObject, message: Uint8Array, signature: Uint8Array): boolean => {
  const r = fromField(signature.subarray(0, FIELD));
  const s = fromField(signature.subarray(FIELD, 2 * FIELD));
  if (r === null || s === null) return false;
  return verify(hash, message, { key, dsaEncoding: 'ieee-p1363' }, Buffer.concat([r, s]));
};
