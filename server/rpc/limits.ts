import { Failure } from '../kernel/failure.js';

/** RESOURCE_EXHAUSTED, with the limit named, where a request asks for more than one call may carry. */
export const overLimit = (field: string, given: number, maximum: number, unit: string): Failure | null =>
  given <= maximum
    ? null
    : new Failure('E2BIG', 'OVER_LIMIT', 'simkvmd', {
        field,
        given: String(given),
        allowed: `at most ${maximum} ${unit} in one call`,
      });
