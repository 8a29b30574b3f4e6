import { performance } from 'node:perf_hooks';
import { type JsonObject, stringify } from '../conformance/json.js';
import { NativeHost } from './native/backend-native.js';
import { compareSequence, type SequenceDifference, type StartTested } from './sequences/compare.js';
import { FOCUSES, type Focus, generateSequence } from './sequences/generate.js';
import { shrinkList } from './shrink.js';

export interface SequenceRunOptions {
  readonly seed: number;
  /** Sequences, evenly of every focus. */
  readonly count: number;
  /** Sequences under way at once, each with a process of its own on the real kernel. */
  readonly lanes: number;
  /** Stops early; ms of `performance.now`. */
  readonly deadline: number;
  /** Stops after so many differences. */
  readonly differencesMax: number;
  /** Told of each difference as soon as it is small. */
  readonly found?: (difference: string) => void;
  /** Where every sequence whose number is a multiple of 100 runs; the others run in process. */
  readonly startHundredth?: StartTested;
}

export interface SequenceRunResult {
  readonly sequences: number;
  readonly steps: number;
  /** How often each explanation was needed. */
  readonly explained: ReadonlyMap<string, number>;
  /** For people: seed, the shrunken calls, both answers. */
  readonly differences: readonly string[];
}

const OP_SHOWN_MAX = 400;
const HUNDREDTH = 100;

const describe = (seed: number, focus: Focus, ops: readonly JsonObject[], difference: SequenceDifference): string =>
  [
    `seed ${seed}, focus ${focus}:`,
    ...ops.map((op) => `  ${stringify(op).slice(0, OP_SHOWN_MAX)}`),
    `  real:      ${stringify(difference.real)}`,
    `  simulated: ${stringify(difference.simulated)}`,
  ].join('\n');

/** The shortest sequence that still ends in a difference of the same call. */
const shrink = async (
  ops: readonly JsonObject[],
  { step, op }: SequenceDifference,
  native: NativeHost,
): Promise<readonly JsonObject[]> =>
  shrinkList(ops.slice(0, step + 1), async (fewer) => (await compareSequence(fewer, native)).difference?.op.op === op.op);

/** Compares generated sequences until there are enough, or enough of them differ. */
export const runSequences = async (options: SequenceRunOptions): Promise<SequenceRunResult> => {
  const explained = new Map<string, number>();
  const differences: string[] = [];
  let next = 0;
  let sequences = 0;
  let steps = 0;

  const compareOne = async (number: number, native: NativeHost): Promise<void> => {
    const seed = options.seed + Math.floor(number / FOCUSES.length);
    const focus = FOCUSES[number % FOCUSES.length] ?? 'all';
    const ops = generateSequence(seed, focus);
    const start = number % HUNDREDTH === 0 ? options.startHundredth : undefined;
    const comparison = await compareSequence(ops, native, start);
    sequences++;
    steps += comparison.steps;
    for (const name of comparison.explained) explained.set(name, (explained.get(name) ?? 0) + 1);
    if (comparison.difference === null) return;
    const small = await shrink(ops, comparison.difference, native);
    const again = (await compareSequence(small, native)).difference;
    const difference = describe(seed, focus, again === null ? ops : small, again ?? comparison.difference);
    differences.push(difference);
    options.found?.(difference);
  };

  const lane = async (): Promise<void> => {
    const native = new NativeHost();
    const isDone = (): boolean => differences.length >= options.differencesMax || performance.now() > options.deadline;
    while (next < options.count && !isDone()) await compareOne(next++, native);
    native.close();
  };
  await Promise.all(Array.from({ length: options.lanes }, lane));
  return { sequences, steps, explained, differences };
};
