import fc from 'fast-check';
import { expect, it } from 'vitest';
import { offsetInPage, PAGE_SIZE } from '../../../server/hardware/units.js';

it('an address lies at the remainder of its page, also with the C-bit, and where a command has more bits than addresses', () => {
  fc.assert(
    fc.property(fc.oneof(fc.nat(), fc.maxSafeNat(), fc.bigInt(0n, 2n ** 64n - 1n).map(Number)), (address) => {
      expect(offsetInPage(address)).toBe(address % PAGE_SIZE);
    }),
    { examples: [[0], [PAGE_SIZE - 1], [PAGE_SIZE], [2 ** 31 + 5], [2 ** 51 + 2 ** 32 + 4095]] },
  );
});
