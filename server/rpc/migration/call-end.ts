import { constants, type IncomingHttpHeaders } from 'node:http2';
import { type ServiceError, status } from '@grpc/grpc-js';
import { ErrorInfo, Status } from '../../../gen/messages.js';
import { ERRNO, type Errno } from '../../kernel/errno.js';
import { Failure } from '../../kernel/failure.js';

/** How a call of another daemon has ended, when it was not this side that ended it. Whoever it is may have made it up. */
export interface CallEnd {
  readonly code: status;
  readonly details: string;
  /** `grpc-status-details-bin`: a google.rpc.Status; null: none. */
  readonly statusDetails: Uint8Array | null;
}

export const callEnd = (code: status, details: string): CallEnd => ({ code, details, statusDetails: null });

/** What a stream that ends without a status means (gRPC over HTTP/2, "HTTP2 Transport Mapping"); all others are INTERNAL. */
const STATUS_OF_RESET: ReadonlyMap<number, status> = new Map([
  [constants.NGHTTP2_NO_ERROR, status.UNKNOWN],
  [constants.NGHTTP2_REFUSED_STREAM, status.UNAVAILABLE],
  [constants.NGHTTP2_CANCEL, status.CANCELLED],
  [constants.NGHTTP2_ENHANCE_YOUR_CALM, status.RESOURCE_EXHAUSTED],
  [constants.NGHTTP2_INADEQUATE_SECURITY, status.PERMISSION_DENIED],
]);

/** The peer has ended the stream with a code of HTTP/2, and without a status of gRPC. */
export const endOfReset = (code: number): CallEnd =>
  callEnd(STATUS_OF_RESET.get(code) ?? status.INTERNAL, `the stream has ended without a status, with HTTP/2 code ${code}`);

/** `grpc-message`, which comes percent-encoded. */
const textOf = (header: string | string[] | undefined): string => {
  const text = String(header ?? '');
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
};

/** What the peer says at the end; null: nothing. */
export const endOfTrailers = (trailers: IncomingHttpHeaders): CallEnd | null => {
  const code = Number(trailers['grpc-status'] ?? Number.NaN);
  if (!(code in status)) return null;
  const encoded = trailers['grpc-status-details-bin'];
  const statusDetails = typeof encoded === 'string' ? Buffer.from(encoded, 'base64') : null;
  return { code, details: textOf(trailers['grpc-message']), statusDetails };
};

/** The same of a call that a library has made. */
export const endOfError = (error: ServiceError | null): CallEnd => {
  const [details] = error?.metadata.get('grpc-status-details-bin') ?? [];
  return {
    code: error?.code ?? status.UNKNOWN,
    details: error?.details ?? '',
    statusDetails: details === undefined || typeof details === 'string' ? null : details,
  };
};

const isErrno = (name: string | undefined): name is Errno => name !== undefined && Object.hasOwn(ERRNO, name);

const UNREACHABLE: ReadonlySet<status> = new Set([status.UNAVAILABLE, status.DEADLINE_EXCEEDED, status.CANCELLED]);

/** The ErrorInfo of a refusal; null: none that can be read. */
const errorInfoOf = ({ statusDetails }: CallEnd): ErrorInfo | null => {
  if (statusDetails === null) return null;
  try {
    const info = Status.decode(statusDetails).details.find(({ type_url }) => type_url.endsWith('google.rpc.ErrorInfo'));
    return info === undefined ? null : ErrorInfo.decode(info.value);
  } catch {
    return null;
  }
};

/** What the other daemon's refusal says; EHOSTUNREACH where there is no such daemon. */
export const failureOf = (address: string, end: CallEnd): Failure => {
  const info = errorInfoOf(end);
  if (info !== null) {
    const { reason, metadata } = info;
    const { errno, errno_number: _number, ioctl: _ioctl, kernel_ref: ref = 'simkvmd', fw_error: fwError, ...rest } = metadata;
    // Whichever daemon has refused, where the one that was called has called another.
    if (isErrno(errno))
      return new Failure(errno, reason, ref, { daemon: address, ...rest }, fwError === undefined ? undefined : Number(fwError));
  }
  const { code, details } = end;
  if (UNREACHABLE.has(code))
    return new Failure('EHOSTUNREACH', 'DAEMON_UNREACHABLE', 'simkvmd', { daemon: address, message: details });
  return new Failure('EIO', 'DAEMON_FAILED', 'simkvmd', {
    daemon: address,
    status: status[code] ?? String(code),
    message: details,
  });
};
