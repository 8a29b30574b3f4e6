import { Metadata, status } from '@grpc/grpc-js';
import { ErrorInfo, Status } from '../gen/messages.js';
import { type Errno, isErrno } from './errno.js';
import type { ClientMethod, Reply } from './transport.js';

/** Where gRPC puts a google.rpc.Status. */
const DETAILS_KEY = 'grpc-status-details-bin';
const ERROR_INFO_URL = 'type.googleapis.com/google.rpc.ErrorInfo';

/** Why a VM accepts nothing, or little, any more. */
export type DeathCause =
  | { readonly kind: 'moved'; readonly toVmId: number; readonly byPid: number }
  | { readonly kind: 'sent'; readonly session: string }
  | { readonly kind: 'discarded' }
  | { readonly kind: 'bugged'; readonly check: string };

interface KvmErrorInit {
  readonly code: status;
  readonly message: string;
  readonly reason: string;
  readonly details: Readonly<Record<string, string>>;
  readonly response: unknown;
  readonly cause?: unknown;
}

/**
 * A call that failed. Either the kernel refused it, and `errno` says how and `reason` which check it was; or no answer of
 * the kernel has arrived, `errno` is null, and `code` and `reason` say what came between.
 *
 * @example
 * ```ts
 * try {
 *   await vm.ioeventfd({ addr: 0xfe00_1000, len: 4, fd: doorbell.fd, flags: KvmIoeventfdFlag.KVM_IOEVENTFD_FLAG_DEASSIGN });
 * } catch (error) {
 *   const { errno, deathCause } = KvmError.from(error);
 *   if (errno !== 'EIO' || deathCause?.kind !== 'moved') throw error;
 * }
 * ```
 */
export class KvmError extends Error {
  override readonly name = 'KvmError';
  /** The kernel's answer; null if there is none. */
  readonly errno: Errno | null;
  /** The gRPC status code. */
  readonly code: status;
  /** The check that refused, `VM_DEAD_MOVED`; for a failure of the transport the name of its status, `UNAVAILABLE`. */
  readonly reason: string;
  /** All that the host says of the failure, by name: `object`, `state`, `field`, `given`, `allowed` and more. */
  readonly details: Readonly<Record<string, string>>;
  /** The response message, where the kernel wrote one all the same; the `try` form has it typed. */
  readonly response: unknown;

  constructor({ code, message, reason, details, response, cause }: KvmErrorInit) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
    this.reason = reason;
    this.details = details;
    this.response = response;
    this.errno = isErrno(details.errno) ? details.errno : null;
  }

  /** The ioctl or system call: `KVM_IOEVENTFD`; of a failure of the transport, the RPC. */
  get ioctl(): string {
    return this.details.ioctl ?? '';
  }

  /** The kernel function whose check refused: `kvm_vm_ioctl`. */
  get kernelRef(): string | null {
    return this.details.kernel_ref ?? null;
  }

  /** The object that refused: `vm 3`. */
  get object(): string | null {
    return this.details.object ?? null;
  }

  /** Its state: `moved`. */
  get state(): string | null {
    return this.details.state ?? null;
  }

  /** The post-move policy that refused. */
  get policy(): string | null {
    return this.details.policy ?? null;
  }

  /** Of a dead or moved VM: what made it so. */
  get deathCause(): DeathCause | null {
    const text = this.details.death_cause ?? '';
    const moved = /^moved to VM (\d+) by pid (\d+)$/.exec(text);
    if (moved !== null) return { kind: 'moved', toVmId: Number(moved[1]), byPid: Number(moved[2]) };
    const sent = /^sent to another host in migration (.*)$/.exec(text);
    if (sent !== null) return { kind: 'sent', session: sent[1] ?? '' };
    if (text === 'discarded by a migration that did not arrive') return { kind: 'discarded' };
    const bugged = /^bugged by (.*)$/.exec(text);
    return bugged === null ? null : { kind: 'bugged', check: bugged[1] ?? '' };
  }

  /** The secure processor's status (SevRetCode), if the firmware has spoken; 0xffffffff: it was not asked. */
  get fwError(): number | null {
    const { fw_error } = this.details;
    return fw_error === undefined ? null : Number(fw_error);
  }

  /** A KvmError of whatever was thrown; a KvmError is itself. */
  static from(error: unknown): KvmError {
    if (error instanceof KvmError) return error;
    if (isServiceError(error)) return statusReply(error, ANY_METHOD).error;
    const message = error instanceof Error ? error.message : String(error);
    return new KvmError({ code: status.UNKNOWN, message, reason: 'UNKNOWN', details: {}, response: null, cause: error });
  }
}

/** What grpc-js rejects with. */
interface StatusLike {
  readonly code: status;
  readonly details: string;
  readonly metadata: Metadata;
}

const isServiceError = (error: unknown): error is StatusLike =>
  error instanceof Error &&
  'code' in error &&
  typeof error.code === 'number' &&
  'details' in error &&
  typeof error.details === 'string' &&
  'metadata' in error &&
  error.metadata instanceof Metadata;

/** A failure of the transport, or of the SDK itself, which no kernel has seen. */
export const transportError = (code: status, ioctl: string, message: string, cause?: unknown): KvmError =>
  new KvmError({ code, message, reason: status[code], details: { ioctl }, response: null, cause });

/** Stands for the method where it is not known. */
const ANY_METHOD = { path: '', responseTypeUrl: '', responseDeserialize: () => null };

/** What a client needs of a method to read its failures. */
type Answering<Res> = Pick<ClientMethod<never, Res>, 'path' | 'responseTypeUrl' | 'responseDeserialize'>;

/** The reply that a status other than OK is: its error, and the answer that came with it. */
export const statusReply = <Res>(
  { code, details: text, metadata }: StatusLike,
  { path, responseTypeUrl, responseDeserialize }: Answering<Res>,
): { error: KvmError; response: Res | null } => {
  const [bytes] = metadata.get(DETAILS_KEY);
  if (!(bytes instanceof Uint8Array)) return { error: transportError(code, path, `${path}: ${text}`), response: null };
  const { message, details: attached } = Status.decode(bytes);
  const info = attached.find(({ type_url }) => type_url === ERROR_INFO_URL);
  const answer = attached.find(({ type_url }) => type_url === responseTypeUrl);
  const response = answer === undefined ? null : responseDeserialize(Buffer.from(answer.value));
  const { reason, metadata: details } =
    info === undefined ? { reason: status[code], metadata: {} } : ErrorInfo.decode(info.value);
  return { error: new KvmError({ code, message, reason, details, response }), response };
};

/** The reply that a failed call of `method` is, whatever was thrown. */
export const failedReply = <Res>(error: unknown, method: Answering<Res>): Reply<Res> =>
  isServiceError(error) ? statusReply(error, method) : { error: KvmError.from(error), response: null };
