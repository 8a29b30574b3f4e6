import type { Errno } from './errno.js';

/** What a failure may add for the person who reads it: the object refused, its state, the field, what is allowed. */
export type FailureDetails = Readonly<Record<string, string>>;

/**
 * A system call's failure as a value. The errno is the real kernel's; `reason` names the check that refused, so that
 * checks which share an errno can be told apart, and `kernelRef` the kernel function whose check this models.
 */
export class Failure {
  constructor(
    readonly errno: Errno,
    /** SCREAMING_SNAKE_CASE, for example `MEMSLOT_OVERLAP`. */
    readonly reason: string,
    readonly kernelRef: string,
    readonly details: FailureDetails = {},
    /** Status code of the secure processor or TDX module, where it has spoken. */
    readonly fwError?: number,
  ) {}

  /** The same failure with more details; an outer layer adds what the inner one could not know. */
  with(details: FailureDetails): Failure {
    return new Failure(this.errno, this.reason, this.kernelRef, { ...this.details, ...details }, this.fwError);
  }
}

/** A value, or why there is none. */
export type Result<T> = T | Failure;

export const failed = (result: unknown): result is Failure => result instanceof Failure;
