import { describe, expect, it } from 'vitest';
import { bytes, fields, json, table } from '../../../../client/cli/output.js';

describe('a table', () => {
  it('has columns as wide as their widest cell, numbers to the right, no trailing blanks', () => {
    const rows = [
      ['a', 5],
      ['longer', 1200n],
    ] as const;
    expect(table(['NAME', 'BYTES'], rows)).toBe('NAME    BYTES\na           5\nlonger   1200');
  });

  it('of no rows is its head', () => {
    expect(table(['NAME'], [])).toBe('NAME');
  });
});

it('fields are names and values in two columns', () => {
  expect(
    fields([
      ['a', 1],
      ['long', true],
    ]),
  ).toBe('a     1\nlong  true');
});

it.each([
  [0, '0 B'],
  [1023, '1023 B'],
  [1024, '1.0 KiB'],
  [8n * 2n ** 30n, '8.0 GiB'],
  [3 * 2 ** 50, '3072.0 TiB'],
])('%s bytes are %s', (count, text) => {
  expect(bytes(count)).toBe(text);
});

it('JSON has 64-bit integers as strings, bytes as base64, and nothing for what is absent', () => {
  expect(JSON.parse(json({ big: 2n ** 64n - 1n, blob: Uint8Array.of(1, 2), none: null }))).toEqual({
    big: '18446744073709551615',
    blob: 'AQI=',
  });
});
