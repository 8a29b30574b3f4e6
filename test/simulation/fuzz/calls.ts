import fc from 'fast-check';
import type { FuzzCall } from './world.js';

const CALLS_MAX = 120;

/** A list of calls; shrinking leaves calls out, and keeps what the others are. */
export const fuzzCalls = (processes: number): fc.Arbitrary<readonly FuzzCall[]> =>
  fc.array(
    fc.record<FuzzCall>({
      process: fc.nat(processes - 1),
      tier: fc.constantFrom('typed', 'raw'),
      seed: fc.noShrink(fc.nat(2 ** 31 - 1)),
    }),
    { minLength: 1, maxLength: CALLS_MAX, size: 'max' },
  );
