import { status } from '@grpc/grpc-js';
import { ProcessService } from '../gen/services.js';
import type { Caller, CallOptions } from './call.js';
import { KvmError } from './kvm-error.js';
import { type CallingObject, type FdObject, ret, syscall, valueOrThrow } from './syscall.js';

/** A descriptor of a process: its number, until it is closed. All views of a handle share one. */
export class Descriptor {
  open = true;

  constructor(readonly number: number) {}
}

const closed = (number: number): KvmError =>
  new KvmError({
    code: status.INVALID_ARGUMENT,
    message: `fd ${number} has been closed through this handle, and may be another file by now`,
    reason: 'HANDLE_CLOSED',
    details: { errno: 'EBADF', errno_number: '9', field: 'fd', given: String(number), kernel_ref: 'fdget' },
    response: null,
  });

const close = syscall(ProcessService.close, (_self: Handle, fd: number) => ({ fd }), ret);
const dup = syscall(ProcessService.dup, ({ fd }: Handle, flags: number) => ({ fd, flags }), ret);

/** Something that holds a descriptor. `await using` closes it. */
export class Handle implements FdObject, AsyncDisposable {
  constructor(
    readonly caller: Caller,
    readonly descriptor: Descriptor,
  ) {}

  /**
   * The number of the descriptor in its process.
   * @throws KvmError EBADF after `close`: the number may belong to another file by then
   */
  get fd(): number {
    if (!this.descriptor.open) throw closed(this.descriptor.number);
    return this.descriptor.number;
  }

  /**
   * The same object, whose calls are made with other options.
   *
   * @example
   * ```ts
   * await vcpu.with({ thread: 7, signal: AbortSignal.timeout(1_000) }).run();
   * ```
   */
  with(options: CallOptions): this {
    return this.through(this.caller.with(options));
  }

  /** The same object, whose calls go through another caller. */
  through(caller: Caller): this {
    return Object.create(this, { caller: { value: caller } });
  }

  /**
   * dup(2): another descriptor of the same open file.
   * @param flags O_CLOEXEC or 0
   */
  async dup(flags = 0): Promise<this> {
    const descriptor = new Descriptor(valueOrThrow(await dup(this, flags)));
    return Object.create(this, { descriptor: { value: descriptor } });
  }

  /** close(2). A second time does nothing. */
  async close(): Promise<void> {
    if (!this.descriptor.open) return;
    this.descriptor.open = false;
    valueOrThrow(await close(this, this.descriptor.number));
  }

  /** Closes it, if its process still is there: a process that has ended has closed everything. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.close();
    } catch (error) {
      if (KvmError.from(error).reason !== 'PROCESS_NOT_FOUND') throw error;
    }
  }
}

/** The value of a call that returns a descriptor: an object of class `Kind` that holds it. */
export const handleOf =
  <Kind extends Handle>(Kind: new (caller: Caller, descriptor: Descriptor) => Kind) =>
  (response: { readonly ret: bigint }, { caller }: CallingObject): Kind =>
    new Kind(caller, new Descriptor(ret(response)));
