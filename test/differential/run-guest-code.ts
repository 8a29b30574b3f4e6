import { performance } from 'node:perf_hooks';
import { createInProcessHost } from '../conformance/in-process-host.js';
import { describeCase, type GuestCase, generateCase } from './guest-code/case.js';
import { GuestComparison, type Verdict } from './guest-code/compare.js';
import { shrinkCase } from './guest-code/shrink.js';
import { NativeHost } from './native/backend-native.js';

export interface GuestRunOptions {
  readonly seed: number;
  readonly count: number;
  /** Cases under way at once, each lane with a vCPU of its own on both sides. */
  readonly lanes: number;
  /** Stops early; ms of `performance.now`. */
  readonly deadline: number;
  /** Stops after so many differences. */
  readonly differencesMax: number;
  /** Told of each difference as soon as it is small. */
  readonly found?: (difference: string) => void;
}

export interface GuestRunResult {
  readonly cases: number;
  /** How often each exit, and each explanation, was met. */
  readonly exits: ReadonlyMap<string, number>;
  readonly explained: ReadonlyMap<string, number>;
  /** For people: seed, the shrunken case, what differs. */
  readonly differences: readonly string[];
}

/** Cases that one machine runs before it is thrown away: its VM is used by all of them. */
const CASES_PER_MACHINE = 2000;

const count = (counts: Map<string, number>, name: string): void => {
  counts.set(name, (counts.get(name) ?? 0) + 1);
};

const isDifferent = (verdict: Verdict): boolean => verdict.kind === 'different';

/** A VM on each side, and how to end both. */
const start = async (native: NativeHost): Promise<{ comparison: GuestComparison; finish(): Promise<void> }> => {
  const real = await native.spawn();
  const simulated = await createInProcessHost();
  const comparison = await GuestComparison.create(real, simulated.executor.calls);
  const finish = async (): Promise<void> => {
    const [left] = await Promise.all([simulated.finish(), real.exit()]);
    if (left.length > 0) throw new Error(`left behind by generated code: ${left.join(', ')}`);
  };
  return { comparison, finish };
};

/**
 * A case is made smaller on machines of its own, a new one after each case that has left the last one stuck.
 * @param first the verdict that the search came upon; if it does not come again, something is left of the cases before
 */
const describe = async (seed: number, native: NativeHost, first: Verdict): Promise<string> => {
  let machine = await start(native);
  const compare = async (guest: GuestCase): Promise<Verdict> => {
    if (machine.comparison.stuck) {
      await machine.finish();
      machine = await start(native);
    }
    return await machine.comparison.compare(guest);
  };
  const small = await shrinkCase(generateCase(seed), async (guest) => isDifferent(await compare(guest)));
  const verdict = await compare(small);
  await machine.finish();
  const shown = verdict.kind === 'different' ? verdict : first;
  const lines = shown.kind === 'different' ? shown.differences : [];
  const fields = lines.map(({ field, real, simulated }) => `  ${field}: real ${real}, simulated ${simulated}`);
  const again = verdict.kind === 'different' ? '' : ' (not again by itself)';
  return [`seed ${seed}${again}:`, describeCase(small), ...fields].join('\n');
};

/** Compares generated cases until there are enough, or enough of them differ. */
export const runGuestCode = async (options: GuestRunOptions): Promise<GuestRunResult> => {
  const exits = new Map<string, number>();
  const explained = new Map<string, number>();
  const differences: string[] = [];
  let next = 0;
  let cases = 0;
  const isDone = (): boolean =>
    next >= options.count || differences.length >= options.differencesMax || performance.now() > options.deadline;

  const compareOne = async (seed: number, comparison: GuestComparison, native: NativeHost): Promise<void> => {
    const verdict = await comparison.compare(generateCase(seed));
    cases++;
    if (verdict.kind === 'same') count(exits, verdict.exit.split(' ')[0] ?? '');
    else if (verdict.kind === 'explained') count(explained, verdict.name);
    else {
      const difference = await describe(seed, native, verdict);
      differences.push(difference);
      options.found?.(difference);
    }
  };

  const lane = async (): Promise<void> => {
    const native = new NativeHost();
    while (!isDone()) {
      const { comparison, finish } = await start(native);
      for (let left = CASES_PER_MACHINE; left > 0 && !isDone() && !comparison.stuck; left--)
        await compareOne(options.seed + next++, comparison, native);
      await finish();
    }
    native.close();
  };
  await Promise.all(Array.from({ length: options.lanes }, lane));
  return { cases, exits, explained, differences };
};
