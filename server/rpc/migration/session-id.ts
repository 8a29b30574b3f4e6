import { randomBytes } from 'node:crypto';
import { Failure } from '../../kernel/failure.js';

/** Characters of a session's number, of a boot id and of a ledger's. */
export const ID_MAX = 64;
const SESSION = /^[A-Za-z0-9._-]{1,64}$/;

/** A number that no other session has, and that nobody guesses. */
export const newSessionId = (): string => randomBytes(12).toString('hex');

export const checkSessionId = (given: string): Failure | null =>
  SESSION.test(given)
    ? null
    : new Failure('EINVAL', 'SESSION_NUMBER', 'simkvmd', {
        field: 'session',
        given,
        allowed: `1 to ${ID_MAX} letters, digits, dots, dashes and underscores`,
      });
