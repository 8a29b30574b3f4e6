import type { Executor } from './executor.js';
import type { GoldenFile, GoldenStep } from './golden-file.js';
import { type Json, type JsonObject, sameJson, stringify } from './json.js';
import type { OpResult } from './operation.js';

/** The first step of a recording that the tested host answers differently. */
export interface Difference {
  readonly step: number;
  readonly op: JsonObject;
  readonly expected: OpResult;
  readonly actual: OpResult;
}

/** Every key that was recorded must be there and be equal; more keys in the answer are no difference. */
const differingKeys = (expected: OpResult, actual: OpResult): string[] =>
  Object.keys(expected).filter((key) => !sameJson(expected[key], clean(actual[key])));

/** Answers of nested ops were recorded without their number and name. */
const clean = (value: Json | undefined): Json | undefined =>
  Array.isArray(value)
    ? value.map((item) =>
        isResult(item) ? Object.fromEntries(Object.entries(item).filter(([key]) => key !== 'i' && key !== 'op')) : item,
      )
    : value;

const isResult = (value: Json): value is JsonObject =>
  typeof value === 'object' && value !== null && 'i' in value && 'op' in value;

const compare = ({ expect, op, compared }: GoldenStep, answer: OpResult, step: number): Difference | null => {
  if (!compared) return null;
  const expected: OpResult = { ret: expect.ret, errno: expect.errno, ...expect.out };
  const keys = differingKeys(expected, answer);
  if (keys.length === 0) return null;
  const only = (from: OpResult): OpResult =>
    Object.fromEntries(keys.map((key): [string, Json] => [key, clean(from[key]) ?? null]));
  return { step, op, expected: only(expected), actual: only(answer) };
};

/** Replays a recording up to its first difference; null: there is none. */
export const replay = async (executor: Executor, file: GoldenFile): Promise<Difference | null> => {
  for (const [index, step] of file.steps.entries()) {
    const difference = compare(step, await executor.execute(step.op), index);
    if (difference !== null) return difference;
  }
  return null;
};

const OP_SHOWN_MAX = 400;

/** For people: the step, and only the fields that differ. */
export const describeDifference = (file: GoldenFile, { step, op, expected, actual }: Difference): string =>
  [
    `${file.name}, step ${step} of ${file.steps.length}: ${stringify(op).slice(0, OP_SHOWN_MAX)}`,
    ...Object.keys(expected).map(
      (key) => `  ${key}: recorded ${stringify(expected[key] ?? null)}, here ${stringify(actual[key] ?? null)}`,
    ),
  ].join('\n');
