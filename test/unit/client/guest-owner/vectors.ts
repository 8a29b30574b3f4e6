import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { VECTORS } from '../../../helpers/requirements.js';

/** A public test vector, by its path below `sev/`. */
export const vector = (name: string): Uint8Array => new Uint8Array(readFileSync(join(VECTORS, 'sev', name)));

const at = (value: unknown, key: string | number): unknown => {
  if (typeof value === 'object' && value !== null) return Reflect.get(value, key);
  throw new Error(`nothing has ${key}`);
};

/** A value of `expected.json`, by its path. */
export const expectedValue = (...path: readonly (string | number)[]): unknown =>
  path.reduce<unknown>(at, JSON.parse(readFileSync(join(VECTORS, 'sev/expected.json'), 'utf8')));

export const expectedText = (...path: readonly (string | number)[]): string => String(expectedValue(...path));

export const unhex = (text: string): Uint8Array => new Uint8Array(Buffer.from(text.replace(/^0x/, ''), 'hex'));
export const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

/** A copy with one bit flipped. */
export const flipped = (bytes: Uint8Array, bit: number): Uint8Array => {
  const copy = Uint8Array.from(bytes);
  copy[bit >> 3] = (copy[bit >> 3] ?? 0) ^ (1 << (bit & 7));
  return copy;
};
