import { shrinkList } from '../shrink.js';
import type { GuestCase } from './case.js';

const RSP = 4;

/** The smallest case that still has the property: fewer instructions, registers and flags that are zero. */
export const shrinkCase = async (guest: GuestCase, has: (guest: GuestCase) => Promise<boolean>): Promise<GuestCase> => {
  const instructions = await shrinkList(guest.instructions, (fewer) => has({ ...guest, instructions: fewer }));
  let kept: GuestCase = { ...guest, instructions };
  for (const [index] of guest.registers.entries()) {
    // The stack stays where memory is.
    if (index === RSP) continue;
    const candidate = { ...kept, registers: kept.registers.with(index, 0n) };
    if (await has(candidate)) kept = candidate;
  }
  for (let bit = 0n; bit < 12n; bit++) {
    const candidate = { ...kept, rflags: (kept.rflags & ~(1n << bit)) | 2n };
    if (candidate.rflags !== kept.rflags && (await has(candidate))) kept = candidate;
  }
  return kept;
};
