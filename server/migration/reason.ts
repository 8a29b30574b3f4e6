import type { Failure } from '../kernel/failure.js';

/** Why a migration ended as it did. */
export interface Reason {
  /** For programs, SCREAMING_SNAKE_CASE. */
  readonly reason: string;
  /** More of it, for people; may be empty. */
  readonly detail: string;
}

/** Most characters of a detail: it travels. */
export const DETAIL_MAX = 1000;

/** A failure as the reason for which a migration is given up. */
export const reasonOf = ({ reason, details, fwError }: Failure): Reason => {
  const parts = Object.entries(details).map(([name, value]) => `${name}: ${value}`);
  if (fwError !== undefined) parts.push(`firmware: 0x${fwError.toString(16)}`);
  return { reason, detail: parts.join('; ').slice(0, DETAIL_MAX) };
};

export const because = (reason: string, detail = ''): Reason => ({ reason, detail });
