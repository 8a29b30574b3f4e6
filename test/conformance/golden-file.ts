import { readdirSync, readFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isObject, type Json, type JsonObject } from './json.js';

const ROOT = fileURLToPath(new URL('.', import.meta.url));

/** One step of a recording: the op as it was sent, and what the real kernel answered. */
export interface GoldenStep {
  readonly op: JsonObject;
  readonly expect: { readonly ret: Json; readonly errno: Json; readonly out: JsonObject };
  /** False: peculiar to the module, host or configuration of the recording, or it differed between runs. */
  readonly compared: boolean;
}

export interface GoldenFile {
  /** `memslot/overlap`, or `fuzz/memslot/seed-1`. */
  readonly name: string;
  readonly area: string;
  readonly steps: readonly GoldenStep[];
}

/** Keys of a step that are not part of the op. */
const META: ReadonlySet<string> = new Set(['quirk', 'note', 'drop', 'asm', 'unstable', 'expect', 'cap_name']);

const strip = (step: JsonObject): JsonObject =>
  Object.fromEntries(
    Object.entries(step)
      .filter(([key]) => !META.has(key))
      .map(([key, value]): [string, Json] => [
        key,
        key === 'ops' && Array.isArray(value) ? value.filter(isObject).map(strip) : value,
      ]),
  );

const parseStep = (step: JsonObject): GoldenStep => {
  const expect = isObject(step.expect) ? step.expect : {};
  return {
    op: strip(step),
    expect: { ret: expect.ret ?? null, errno: expect.errno ?? null, out: isObject(expect.out) ? expect.out : {} },
    compared: step.quirk !== true && step.unstable !== true,
  };
};

const readGolden = (path: string, name: string): GoldenFile => {
  const document: Json = JSON.parse(readFileSync(path, 'utf8'));
  const steps = isObject(document) && Array.isArray(document.steps) ? document.steps.filter(isObject) : [];
  return { name, area: name.split('/')[0] ?? name, steps: steps.map(parseStep) };
};

const filesBelow = (folder: string): string[] =>
  readdirSync(folder, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.json'))
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();

/** Every recording: the scenarios of `golden`, and the random sequences of `fuzz-golden` under the area `fuzz`. */
export const goldenFiles = (): GoldenFile[] =>
  [
    { folder: join(ROOT, 'golden'), prefix: '' },
    { folder: join(ROOT, 'fuzz-golden'), prefix: 'fuzz/' },
  ].flatMap(({ folder, prefix }) =>
    filesBelow(folder).map((path) => readGolden(path, prefix + relative(folder, path).replace(/\.json$/, ''))),
  );
