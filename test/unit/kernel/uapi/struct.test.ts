import { describe, expect, it } from 'vitest';
import { array, bytes, nested, s32, struct, u8, u16, u32, u64 } from '../../../../server/kernel/uapi/struct.js';

const inner = struct('inner', 8, { low: u16(0), high: u32(4) });
const outer = struct('outer', 64, {
  flag: u8(0),
  fd: s32(4),
  wide: u64(8),
  blob: bytes(16, 4),
  args: array(u64, 24, 2),
  part: nested(inner, 40),
  parts: array((offset) => nested(inner, offset), 48, 2),
});

describe('a structure of the user API', () => {
  it('reads and writes every kind of field at its offset, little-endian', () => {
    const value = {
      flag: 1,
      fd: -1,
      wide: 0x0102_0304_0506_0708n,
      blob: Uint8Array.of(1, 2, 3, 4),
      args: [5n, 2n ** 64n - 1n],
      part: { low: 6, high: 7 },
      parts: [
        { low: 8, high: 9 },
        { low: 10, high: 11 },
      ],
    };
    const data = outer.encode(value);
    expect(data[8]).toBe(8);
    expect(data[15]).toBe(1);
    expect(outer.decode(data)).toEqual(value);
  });

  it('write leaves what is not given as it is', () => {
    const data = outer.encode({ fd: 3, wide: 9n });
    outer.write(data, { fd: 4 });
    expect(outer.decode(data)).toMatchObject({ fd: 4, wide: 9n });
  });

  it('refuses a field beyond its size', () => {
    expect(() => struct('bad', 4, { wide: u64(0) })).toThrow(/beyond/);
  });
});
