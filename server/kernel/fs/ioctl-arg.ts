import type { Failure, Result } from '../failure.js';

/**
 * The user memory that one system call may reach: that of its process, and bytes which the caller gave inline. All
 * copying of a handler goes through it, so a typed call, a raw call with inline bytes and a raw call with a pointer
 * end in the same code.
 */
export interface UserCopy {
  /** `copy_from_user`; EFAULT if any byte cannot be read. The result is the caller's own. */
  copyIn(address: bigint, length: number): Result<Uint8Array>;
  /** `copy_to_user`; EFAULT if any byte cannot be written. */
  copyOut(address: bigint, bytes: Uint8Array): Failure | null;
}

/** The third argument of ioctl(2): 64 bits that the request takes as a value or as an address, and what an address reaches. */
export interface IoctlArg {
  readonly value: bigint;
  readonly user: UserCopy;
}
