import { Failure, type Result } from '../kernel/failure.js';
import { overLimit } from './limits.js';

const PAGE_SIZE_MAX = 1000;
const PAGE_SIZE_DEFAULT = 100;

/** What a request for a part of a list says. */
export interface PageRequest {
  readonly page_size: number;
  /** Empty: from the start. */
  readonly page_token: string;
}

export interface Page<T> {
  readonly items: readonly T[];
  /** Empty on the last page. */
  readonly next_page_token: string;
}

/**
 * One page of a list that is in ascending order of `key`. The token is the last key that was shown, so that what comes
 * or goes between two pages shifts nothing. EINVAL: a token that is none; RESOURCE_EXHAUSTED: a page that is too large.
 */
export const paginate = <T>(
  list: readonly T[],
  { page_size, page_token }: PageRequest,
  key: (item: T) => number,
): Result<Page<T>> => {
  const refusal = overLimit('page_size', page_size, PAGE_SIZE_MAX, 'items');
  if (refusal !== null) return refusal;
  if (!/^\d{0,15}$/.test(page_token))
    return new Failure('EINVAL', 'PAGE_TOKEN', 'simkvmd', {
      field: 'page_token',
      given: page_token,
      allowed: 'next_page_token of the answer before',
    });
  const size = page_size === 0 ? PAGE_SIZE_DEFAULT : page_size;
  const rest = page_token === '' ? list : list.filter((item) => key(item) > Number(page_token));
  const items = rest.slice(0, size);
  const last = items.at(-1);
  return { items, next_page_token: rest.length > size && last !== undefined ? String(key(last)) : '' };
};
