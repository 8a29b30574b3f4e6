import { describe, expect, it } from 'vitest';
import { Dram, type Frame } from '../../../server/hardware/dram.js';
import { PAGE_SIZE } from '../../../server/hardware/units.js';

const frameOf = (dram: Dram): Frame => {
  const frame = dram.allocate();
  if (frame === null) throw new Error('no memory');
  return frame;
};

describe('bytes that a frame adopts', () => {
  it('are its cells, where nobody has looked at it yet', () => {
    const frame = frameOf(new Dram(0x100, 4));
    const bytes = new Uint8Array(PAGE_SIZE).fill(7);
    frame.adopt(bytes);
    expect(frame.view(null)).toBe(bytes);
  });

  it('are copied into cells that somebody may hold', () => {
    const frame = frameOf(new Dram(0x100, 4));
    const held = frame.view(null);
    frame.adopt(new Uint8Array(PAGE_SIZE).fill(7));
    expect(frame.view(null)).toBe(held);
    expect(held.every((byte) => byte === 7)).toBe(true);
  });
});
