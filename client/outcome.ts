import type { Errno } from './errno.js';
import type { KvmError } from './kvm-error.js';

/** A call that the kernel carried out. */
export interface Answer<T> {
  readonly errno: null;
  readonly value: T;
  readonly error: null;
}

/** A call that the kernel refused. */
export interface Refusal<T> {
  readonly errno: Errno;
  /** What the kernel wrote all the same, as KVM_RUN that fails with EFAULT has an exit; null if it wrote nothing. */
  readonly value: T | null;
  readonly error: KvmError;
}

/**
 * What the `try` form of a call gives: the kernel's answer as a value, also where it is an errno. A failure of the
 * transport is no answer, and is thrown.
 */
export type Outcome<T> = Answer<T> | Refusal<T>;
