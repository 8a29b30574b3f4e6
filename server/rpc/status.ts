import { status } from '@grpc/grpc-js';
import type { Errno } from '../kernel/errno.js';
import type { Failure } from '../kernel/failure.js';

/**
 * The one table from an errno to a gRPC status code. UNAVAILABLE is kept for the transport, so that no client library
 * retries an ioctl by itself.
 */
const CODE: Readonly<Record<Errno, status>> = {
  EPERM: status.PERMISSION_DENIED,
  ENOENT: status.NOT_FOUND,
  ESRCH: status.NOT_FOUND,
  EINTR: status.ABORTED,
  EIO: status.FAILED_PRECONDITION,
  ENXIO: status.NOT_FOUND,
  E2BIG: status.OUT_OF_RANGE,
  EBADF: status.INVALID_ARGUMENT,
  ECHILD: status.NOT_FOUND,
  EAGAIN: status.ABORTED,
  ENOMEM: status.RESOURCE_EXHAUSTED,
  EACCES: status.PERMISSION_DENIED,
  EFAULT: status.INVALID_ARGUMENT,
  EBUSY: status.ABORTED,
  EEXIST: status.ALREADY_EXISTS,
  ENODEV: status.UNIMPLEMENTED,
  ENOTDIR: status.INVALID_ARGUMENT,
  EISDIR: status.INVALID_ARGUMENT,
  EINVAL: status.INVALID_ARGUMENT,
  ENFILE: status.RESOURCE_EXHAUSTED,
  EMFILE: status.RESOURCE_EXHAUSTED,
  ENOTTY: status.UNIMPLEMENTED,
  EFBIG: status.OUT_OF_RANGE,
  ENOSPC: status.RESOURCE_EXHAUSTED,
  ESPIPE: status.INVALID_ARGUMENT,
  EROFS: status.PERMISSION_DENIED,
  EPIPE: status.FAILED_PRECONDITION,
  ERANGE: status.OUT_OF_RANGE,
  ENOSYS: status.UNIMPLEMENTED,
  EOVERFLOW: status.OUT_OF_RANGE,
  EOPNOTSUPP: status.UNIMPLEMENTED,
  ETIMEDOUT: status.DEADLINE_EXCEEDED,
  // Not UNAVAILABLE: this daemon has answered, and it is another one that does not.
  EHOSTUNREACH: status.FAILED_PRECONDITION,
  EHWPOISON: status.DATA_LOSS,
};

/** Checks whose refusal means something else than their errno's usual status: a limit, rather than a bad argument. */
const BY_REASON: Readonly<Record<string, status>> = {
  FIELD_MISSING: status.INVALID_ARGUMENT,
  KERNEL_OOPS: status.INTERNAL,
  TOO_MANY_CALLS: status.RESOURCE_EXHAUSTED,
  OVER_LIMIT: status.RESOURCE_EXHAUSTED,
  TOO_MANY_RESULTS: status.RESOURCE_EXHAUSTED,
  TOO_MANY_MIGRATIONS: status.RESOURCE_EXHAUSTED,
  TOO_MANY_STRANGERS: status.RESOURCE_EXHAUSTED,
  METHOD_NOT_ALLOWED: status.PERMISSION_DENIED,
  PROCESS_NOT_FOUND: status.UNAUTHENTICATED,
};

export const statusOf = (failure: Failure): status => BY_REASON[failure.reason] ?? CODE[failure.errno];
