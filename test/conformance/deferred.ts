import { readFileSync } from 'node:fs';
import type { GoldenFile } from './golden-file.js';
import { isObject, type Json } from './json.js';

/** A recording that is put off: the operation that is missing, and why. */
export interface Deferral {
  readonly operation: string;
  readonly reason: string;
}

/**
 * `deferred.json`: the operations that are not there yet, and the recordings that need them. A recording may be put off
 * only for an operation of the list that it uses.
 */
export const readDeferrals = (files: readonly GoldenFile[]): ReadonlyMap<string, Deferral> => {
  const document: Json = JSON.parse(readFileSync(new URL('deferred.json', import.meta.url), 'utf8'));
  if (!isObject(document) || !isObject(document.operations) || !isObject(document.files))
    throw new Error('deferred.json needs "operations" and "files"');
  const deferrals = new Map<string, Deferral>();
  for (const [name, operation] of Object.entries(document.files)) {
    const reason = typeof operation === 'string' ? document.operations[operation] : undefined;
    if (typeof operation !== 'string' || typeof reason !== 'string')
      throw new Error(`${name} is put off for ${String(operation)}, which is not in the list of operations`);
    if (!files.some((file) => file.name === name)) throw new Error(`${name} is put off, but there is no such recording`);
    deferrals.set(name, { operation, reason });
  }
  return deferrals;
};
