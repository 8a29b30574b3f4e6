import { status } from '@grpc/grpc-js';
import type { AttachHello, AttachRequestInit, AttachResponse } from '../gen/messages.js';
import { ProcessService } from '../gen/services.js';
import { KvmError, transportError } from './kvm-error.js';
import type { Transport } from './transport.js';

/** What happens to a process from outside. */
export type ProcessEvent =
  /** A descriptor came from another process: `file` is its kind, as in ListFds. */
  | { readonly kind: 'fd-received'; readonly fd: number; readonly fromPid: number; readonly file: string }
  /** A signal reached the process. */
  | { readonly kind: 'signalled'; readonly signo: number; readonly tid: number; readonly fromPid: number };

/** How a process came to its end. */
export type ProcessEnd =
  /** It exited: its status, or 128 and the number of the signal. */
  | { readonly kind: 'exited'; readonly status: number }
  /** The connection that its life hung on is gone, and so is the process. */
  | { readonly kind: 'lost'; readonly error: KvmError };

const eventOf = ({ fd_received, signalled }: AttachResponse): ProcessEvent | null => {
  if (fd_received !== null)
    return { kind: 'fd-received', fd: fd_received.fd, fromPid: fd_received.from_pid, file: fd_received.kind };
  if (signalled !== null) return { kind: 'signalled', signo: signalled.signo, tid: signalled.tid, fromPid: signalled.from_pid };
  return null;
};

/** The stream that keeps a process alive, and tells what happens to it. */
export class Lease {
  private readonly listeners = new Set<(event: ProcessEvent) => void>();
  /** Resolves when the process has ended. */
  readonly ended: Promise<ProcessEnd>;

  private constructor(
    readonly hello: AttachHello,
    messages: AsyncIterator<AttachResponse>,
    private readonly abort: AbortController,
  ) {
    this.ended = this.follow(messages);
  }

  /** Opens the lease of a new process, or with `token` takes over that of one there is. */
  static async open(transport: Transport, request: AttachRequestInit, timeoutMs: number): Promise<Lease> {
    const abort = new AbortController();
    const headers = { process: null, thread: null, requestId: null, acknowledge: null };
    const limits = { timeoutMs: null, signal: abort.signal, alone: true };
    const stream = transport.serverStream(ProcessService.attach, request, headers, limits);
    const messages = stream[Symbol.asyncIterator]();
    const timer = setTimeout(() => abort.abort(), timeoutMs);
    try {
      const { value: first } = await messages.next();
      const hello: AttachHello | null | undefined = first?.hello;
      if (hello) return new Lease(hello, messages, abort);
      throw transportError(status.INTERNAL, 'attach', 'the host began the stream of Attach without a hello');
    } finally {
      clearTimeout(timer);
    }
  }

  /** @returns what stops listening */
  listen(listener: (event: ProcessEvent) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Ends the stream, and with it the process. */
  release(): void {
    this.abort.abort();
  }

  private async follow(messages: AsyncIterator<AttachResponse>): Promise<ProcessEnd> {
    try {
      for (let next = await messages.next(); next.done !== true; next = await messages.next()) {
        const { exited } = next.value;
        if (exited !== null) {
          this.release();
          return { kind: 'exited', status: exited.status };
        }
        const event = eventOf(next.value);
        if (event !== null) for (const listener of this.listeners) listener(event);
      }
      return { kind: 'lost', error: transportError(status.UNAVAILABLE, 'attach', 'the host has ended the stream of Attach') };
    } catch (error) {
      return { kind: 'lost', error: KvmError.from(error) };
    }
  }
}
