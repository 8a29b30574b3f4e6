import { performance } from 'node:perf_hooks';
import { describe, expect, it } from 'vitest';
import type { OpResult } from '../conformance/operation.js';
import { requires } from '../helpers/requirements.js';
import { describeCase, generateCase } from './guest-code/case.js';
import { GUEST_EXPLANATIONS } from './guest-code/explained.js';
import { runGuestCode } from './run-guest-code.js';
import { runSequences } from './run-sequences.js';
import { type Answering, compareSteps } from './sequences/compare.js';
import { EXPLANATIONS, INJECTION_PENDING } from './sequences/explained.js';
import { FOCUSES, generateSequence } from './sequences/generate.js';
import { shrinkList } from './shrink.js';

/** A look, not a search: `npm run soak -- differential` is the search. */
const SEQUENCES = 48;
const CASES = 3000;
const LIMIT_MS = 20_000;
const LANES = 3;

describe('generated sequences', () => {
  it('are the same for the same seed and focus', () => {
    for (const focus of FOCUSES) expect(generateSequence(7, focus)).toEqual(generateSequence(7, focus));
    expect(generateSequence(8, 'all')).not.toEqual(generateSequence(7, 'all'));
  });

  it('have at most 60 calls, of what their focus is about', () => {
    for (const focus of FOCUSES) expect(generateSequence(3, focus).length).toBeLessThanOrEqual(60);
    const regions = generateSequence(3, 'memslot').filter(({ op }) => op === 'set_user_memory_region');
    expect(regions.length).toBeGreaterThan(5);
  });

  it('are shrunk to the calls that matter', async () => {
    const ops = Array.from({ length: 50 }, (_, index) => index);
    const small = await shrinkList(ops, async (kept) => kept.includes(13) && kept.includes(37));
    expect(small).toEqual([13, 37]);
  });
});

describe('generated guest code', () => {
  it('is the same for the same seed', () => {
    expect(describeCase(generateCase(11))).toBe(describeCase(generateCase(11)));
  });
});

describe('explanations', () => {
  it('have a name of their own and a reason each', () => {
    const all = [...EXPLANATIONS, INJECTION_PENDING, ...GUEST_EXPLANATIONS];
    expect(new Set(all.map(({ name }) => name)).size).toBe(all.length);
    for (const { reason } of all) expect(reason.length).toBeGreaterThan(30);
  });
});

describe('an irqfd of a line, which the real kernel raises in a work item', () => {
  const irqfd = { op: 'irqfd', gsi: 4 };
  const read = { op: 'get_irqchip', chip_id: 0 };
  const always = (irr: number): Answering => ({ execute: async (op): Promise<OpResult> => (op === irqfd ? {} : { irr }) });
  /** Raised by whoever comes next once the call is over. */
  const late = (): Answering => {
    let irr = 0;
    const raise = (): void => {
      irr = 1;
    };
    return {
      execute: async (op): Promise<OpResult> => {
        if (op === irqfd) setTimeout(raise, 5);
        return op === irqfd ? {} : { irr };
      },
    };
  };

  it('may differ where nobody waits for it, and not where calls do', async () => {
    expect((await compareSteps([irqfd, read], late(), always(1))).difference?.step).toBe(1);
    expect((await compareSteps([irqfd, read], late(), always(1), 50)).difference).toBeNull();
    expect((await compareSteps([irqfd, read], always(0), always(1), 50)).difference?.step).toBe(1);
  });

  it('is thought of only where there is an irqfd', () => {
    expect(INJECTION_PENDING.mayConcern([read])).toBe(false);
    expect(INJECTION_PENDING.mayConcern([irqfd, read])).toBe(true);
  });
});

describe('a run after a failed emulation', () => {
  const run = { op: 'run', vcpu: 'c0' };
  const ends = (...exits: readonly string[]): Answering => {
    const left = [...exits];
    return { execute: async () => ({ exit: left.shift() ?? '' }) };
  };

  it('is explained only there', async () => {
    const twice = await compareSteps([run, run], ends('INTERNAL_ERROR', 'INTERNAL_ERROR'), ends('INTERNAL_ERROR', 'IO'));
    expect(twice).toMatchObject({ difference: null, explained: ['emulation_with_pending_exception'] });
    expect((await compareSteps([run, run], ends('HLT', 'INTERNAL_ERROR'), ends('HLT', 'IO'))).difference?.step).toBe(1);
  });
});

describe('on this machine', () => {
  requires('kvm', 'comparing the simulated kernel and CPU with real ones');
  requires('gcc', 'the program that makes system calls on the real kernel');

  it('sequences of calls end as on the simulated kernel', async () => {
    const deadline = performance.now() + LIMIT_MS;
    const { sequences, differences } = await runSequences({
      seed: 1,
      count: SEQUENCES,
      lanes: LANES,
      deadline,
      differencesMax: 1,
    });
    expect(differences).toEqual([]);
    expect(sequences).toBeGreaterThan(0);
  });

  it('guest code ends as on the simulated CPU', async () => {
    const deadline = performance.now() + LIMIT_MS;
    const { exits, differences } = await runGuestCode({ seed: 1, count: CASES, lanes: LANES, deadline, differencesMax: 1 });
    expect(differences).toEqual([]);
    expect(exits.get('HLT')).toBeGreaterThan(0);
  });
});
