import { describe, expect, it } from 'vitest';
import type { SlotDescription } from '../../../server/migration/guest.js';
import { memoryRanges } from '../../../server/migration/memory-layout.js';

const slot = (userspaceAddress: number, bytes: number): SlotDescription => ({
  ...{ id: 0, gpa: 0, flags: 0, pinned: false },
  ...{ userspaceAddress, bytes },
});

describe('the memory behind slots', () => {
  it('is one range where they overlap, as far as any of them goes', () => {
    const slots = [slot(0x9000, 0x1000), slot(0x4000, 0x4000), slot(0x2000, 0x3000), slot(0x5000, 0x1000)];
    expect(memoryRanges(slots)).toEqual([
      { start: 0x2000, bytes: 0x6000 },
      { start: 0x9000, bytes: 0x1000 },
    ]);
  });

  it('is two where they only touch: nothing says that they belong together', () => {
    expect(memoryRanges([slot(0x2000, 0x1000), slot(0x3000, 0x1000)])).toEqual([
      { start: 0x2000, bytes: 0x1000 },
      { start: 0x3000, bytes: 0x1000 },
    ]);
  });
});
