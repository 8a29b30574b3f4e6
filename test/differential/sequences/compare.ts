import { setTimeout as delay } from 'node:timers/promises';
import { Executor } from '../../conformance/executor.js';
import { createInProcessHost } from '../../conformance/in-process-host.js';
import { type JsonObject, sameJson } from '../../conformance/json.js';
import type { OpResult } from '../../conformance/operation.js';
import type { SystemCalls } from '../../conformance/system-calls.js';
import type { NativeHost } from '../native/backend-native.js';
import { type Answers, type Call, EXPLANATIONS, INJECTION_PENDING } from './explained.js';

/** The first step at which the two kernels differ without an explanation. */
export interface SequenceDifference extends Answers {
  readonly step: number;
}

export interface Comparison {
  readonly difference: SequenceDifference | null;
  /** Steps that were compared. */
  readonly steps: number;
  /** Names of the explanations that were needed. */
  readonly explained: readonly string[];
}

/** A process of the tested host, and how to end it. The strings are what it has left behind. */
export interface TestedProcess {
  readonly executor: Executor;
  finish(): Promise<string[]>;
}

export type StartTested = () => Promise<TestedProcess>;

const sameAnswer = (a: OpResult, b: OpResult): boolean => sameJson(a, b);

/** What makes the calls of a sequence and answers each. */
export type Answering = Pick<Executor, 'execute'>;

/** Longer than a kernel thread waits for its turn. */
const WORK_ITEM_MS = 50;

/**
 * Makes the same calls on this machine's kernel and on the tested one; and again, slowly, where all that differs may be that a
 * work item of the real kernel had not run yet.
 */
export const compareSequence = async (
  ops: readonly JsonObject[],
  native: NativeHost,
  start: StartTested = createInProcessHost,
): Promise<Comparison> => {
  const comparison = await compareOnce(ops, native, start, 0);
  const { difference } = comparison;
  if (difference === null || !INJECTION_PENDING.mayConcern(ops.slice(0, difference.step))) return comparison;
  const slowly = await compareOnce(ops, native, start, WORK_ITEM_MS);
  return slowly.difference === null ? { ...slowly, explained: [...slowly.explained, INJECTION_PENDING.name] } : slowly;
};

const compareOnce = async (
  ops: readonly JsonObject[],
  native: NativeHost,
  start: StartTested,
  pauseMs: number,
): Promise<Comparison> => {
  const calls = await native.spawn();
  const tested = await start();
  const comparison = await compareSteps(ops, await Executor.create(calls), tested.executor, pauseMs);
  const [left] = await Promise.all([tested.finish(), end(calls)]);
  if (comparison.difference !== null || left.length === 0) return comparison;
  const difference = { step: ops.length, op: { op: 'exit' }, real: {}, simulated: { left }, earlier: [] };
  return { ...comparison, difference };
};

const end = (calls: SystemCalls): Promise<void> => calls.exit();

/**
 * Compares call by call, until one has another answer or state.
 * @param pauseMs how long to wait after a call that a work item follows
 */
export const compareSteps = async (
  ops: readonly JsonObject[],
  real: Answering,
  simulated: Answering,
  pauseMs = 0,
): Promise<Comparison> => {
  const explained: string[] = [];
  const earlier: Call[] = [];
  for (const [step, op] of ops.entries()) {
    const [expected, actual] = await Promise.all([real.execute(op), simulated.execute(op)]);
    if (pauseMs > 0 && INJECTION_PENDING.mayFollow(op)) await delay(pauseMs);
    if (!sameAnswer(expected, actual)) {
      const answers = { op, real: expected, simulated: actual, earlier };
      const explanation = EXPLANATIONS.find((known) => known.explains(answers));
      if (explanation === undefined) return { difference: { step, ...answers }, steps: step, explained };
      explained.push(explanation.name);
      if (!explanation.sameState) return { difference: null, steps: step, explained };
    }
    earlier.push({ op, real: expected });
  }
  return { difference: null, steps: ops.length, explained };
};
