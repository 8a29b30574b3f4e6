import { setTimeout as delay } from 'node:timers/promises';
import { Executor } from '../../conformance/executor.js';
import { createInProcessHost } from '../../conformance/in-process-host.js';
import { type JsonObject, sameJson } from '../../conformance/json.js';
import type { OpResult } from '../../conformance/operation.js';
import type { SystemCalls } from '../../conformance/system-calls.js';
import type { NativeHost } from '../native/backend-native.js';
import { type Answers, EXPLANATIONS, INJECTION_PENDING } from './explained.js';

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

/** Whether the real kernel answers as the simulated one once its work items have run. */
const settles = async (op: JsonObject, actual: OpResult, real: Answering): Promise<boolean> => {
  await delay(WORK_ITEM_MS);
  return sameAnswer(await real.execute(op), actual);
};

/** Makes the same calls on this machine's kernel and on the tested one. */
export const compareSequence = async (
  ops: readonly JsonObject[],
  native: NativeHost,
  start: StartTested = createInProcessHost,
): Promise<Comparison> => {
  const calls = await native.spawn();
  const tested = await start();
  const comparison = await compareSteps(ops, await Executor.create(calls), tested.executor);
  const [left] = await Promise.all([tested.finish(), end(calls)]);
  if (comparison.difference !== null || left.length === 0) return comparison;
  const difference = { step: ops.length, op: { op: 'exit' }, real: {}, simulated: { left } };
  return { ...comparison, difference };
};

const end = (calls: SystemCalls): Promise<void> => calls.exit();

/** Compares call by call, until one has another answer or state. */
export const compareSteps = async (ops: readonly JsonObject[], real: Answering, simulated: Answering): Promise<Comparison> => {
  const explained: string[] = [];
  for (const [step, op] of ops.entries()) {
    const [expected, actual] = await Promise.all([real.execute(op), simulated.execute(op)]);
    if (sameAnswer(expected, actual)) continue;
    const before = ops.slice(0, step);
    if (INJECTION_PENDING.mayConcern(op, before) && (await settles(op, actual, real))) {
      explained.push(INJECTION_PENDING.name);
      continue;
    }
    const answers = { op, real: expected, simulated: actual };
    const explanation = EXPLANATIONS.find((known) => known.explains(answers));
    if (explanation === undefined) return { difference: { step, ...answers }, steps: step, explained };
    explained.push(explanation.name);
    if (!explanation.sameState) return { difference: null, steps: step, explained };
  }
  return { difference: null, steps: ops.length, explained };
};
