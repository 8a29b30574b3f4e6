import { Metadata, type ServiceError } from '@grpc/grpc-js';
import { ErrorInfo, Status } from '../../gen/messages.js';
import { ERRNO } from '../kernel/errno.js';
import type { Failure } from '../kernel/failure.js';
import { statusOf } from './status.js';

/** The domain of every reason. */
const DOMAIN = 'kvm.simkvm';
/** Where gRPC looks for a google.rpc.Status. */
const DETAILS_KEY = 'grpc-status-details-bin';

/** Bytes of a response that go into a failure's trailer, which HTTP/2 bounds; a longer one is left out. */
const ATTACHMENT_MAX = 4096;
/** Characters of one detail: what was given may be long. */
const DETAIL_MAX = 256;

const shortened = (text: string): string =>
  text.length <= DETAIL_MAX ? text : `${text.slice(0, DETAIL_MAX)}… (${text.length} characters)`;

const shortDetails = (failure: Failure): Record<string, string> =>
  Object.fromEntries(Object.entries(failure.details).map(([name, value]) => [name, shortened(value)]));

/** A response that goes with a failure: what the kernel wrote all the same. */
export interface Attachment {
  /** As google.protobuf.Any has it: `type.googleapis.com/simkvm.v1.RunResponse`. */
  readonly typeUrl: string;
  readonly bytes: Buffer;
}

/** What `ErrorInfo.metadata` says of a failure of `call`, an ioctl's or a method's name. */
export const errorMetadata = (failure: Failure, call: string): Record<string, string> => ({
  ...shortDetails(failure),
  errno: failure.errno,
  errno_number: String(ERRNO[failure.errno]),
  ioctl: call,
  kernel_ref: failure.kernelRef,
  ...(failure.fwError === undefined ? {} : { fw_error: `0x${failure.fwError.toString(16)}` }),
});

/** One line for a person: what was called, what it answers, which check refused and what would be allowed. */
const describeFailure = (failure: Failure, call: string): string => {
  const { field, given, allowed, ...others } = shortDetails(failure);
  const argument = field === undefined ? '' : `; ${field}${given === undefined ? '' : ` was ${given}`}`;
  const rule = allowed === undefined ? '' : `; allowed: ${allowed}`;
  const state = Object.entries(others).map(([name, value]) => `; ${name}: ${value}`);
  return `${call}: ${failure.errno} (${failure.reason})${argument}${rule}${state.join('')}`;
};

/** The gRPC status of a failure, with one ErrorInfo and, where there is one, the response. */
export const toStatus = (failure: Failure, call: string, attachment: Attachment | null): Partial<ServiceError> => {
  const code = statusOf(failure);
  const message = describeFailure(failure, call);
  const info = ErrorInfo.encode({
    reason: failure.reason,
    domain: DOMAIN,
    metadata: errorMetadata(failure, call),
  }).finish();
  const details = [{ type_url: 'type.googleapis.com/google.rpc.ErrorInfo', value: info }];
  if (attachment !== null && attachment.bytes.length <= ATTACHMENT_MAX)
    details.push({ type_url: attachment.typeUrl, value: attachment.bytes });
  const metadata = new Metadata();
  metadata.set(DETAILS_KEY, Buffer.from(Status.encode({ code, message, details }).finish()));
  return { code, details: message, metadata };
};
