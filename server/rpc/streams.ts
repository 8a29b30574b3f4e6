import type { handleClientStreamingCall, handleServerStreamingCall, ServerWritableStream } from '@grpc/grpc-js';
import type { RpcMethod } from '../../gen/services.js';
import { Failure, failed, type Result } from '../kernel/failure.js';
import type { Caller, Role } from './call.js';
import type { Dispatch } from './dispatch.js';
import { toStatus } from './error-details.js';
import { headersOf } from './headers.js';
import type { Route } from './route.js';

/** What a server stream has to work with. */
export interface StreamContext<ResInit> {
  readonly dispatch: Dispatch;
  readonly caller: Caller;
  /** Sends a message and resolves when there is room for the next: `write() === false` is honoured. */
  send(message: ResInit): Promise<void>;
  /** Aborted when the client goes away. */
  readonly signal: AbortSignal;
}

interface StreamOptions {
  readonly role: Role;
  /** For errors: the ioctl or system call. */
  readonly syscall: string;
}

/** An RPC that answers with a stream. The body's failure becomes the status; its end, the end of the stream. */
export const serverStream = <Req extends object, ReqInit, Res, ResInit>(
  rpc: RpcMethod<Req, ReqInit, Res, ResInit>,
  { role, syscall }: StreamOptions,
  body: (request: Req, context: StreamContext<ResInit>) => Promise<Failure | null>,
): Route => ({
  service: rpc.service,
  name: rpc.name,
  role,
  definition: rpc,
  serve:
    (dispatch): handleServerStreamingCall<Req, ResInit> =>
    (call) => {
      const fail = (failure: Failure): void => void call.emit('error', toStatus(failure, syscall, null));
      const caller = dispatch.enter(rpc.path, role, headersOf(call), call.request);
      if (failed(caller)) return fail(caller);
      const abort = new AbortController();
      call.on('cancelled', () => abort.abort());
      const send = (message: ResInit): Promise<void> => sendTo(call, message, abort.signal);
      body(call.request, { dispatch, caller, send, signal: abort.signal }).then(
        (failure) => {
          if (failure !== null) fail(failure);
          else call.end();
        },
        (error: unknown) => call.emit('error', error),
      );
    },
});

const sendTo = <ResInit>(call: ServerWritableStream<unknown, ResInit>, message: ResInit, signal: AbortSignal): Promise<void> => {
  if (signal.aborted || call.write(message)) return Promise.resolve();
  return new Promise((resolve) => {
    const proceed = (): void => {
      call.off('drain', proceed);
      signal.removeEventListener('abort', proceed);
      resolve();
    };
    call.on('drain', proceed);
    signal.addEventListener('abort', proceed);
  });
};

/** An RPC that takes a stream. `body` reads it; its value is the response. */
export const clientStream = <Req extends object, ReqInit, Res, ResInit>(
  rpc: RpcMethod<Req, ReqInit, Res, ResInit>,
  { role, syscall }: StreamOptions,
  body: (requests: AsyncIterable<Req>, dispatch: Dispatch, caller: Caller) => Promise<Result<ResInit>>,
): Route => ({
  service: rpc.service,
  name: rpc.name,
  role,
  definition: rpc,
  serve:
    (dispatch): handleClientStreamingCall<Req, ResInit> =>
    (call, callback) => {
      const caller = dispatch.enter(rpc.path, role, headersOf(call), {});
      if (failed(caller)) return callback(toStatus(caller, syscall, null));
      body(call, dispatch, caller).then(
        (result) => {
          if (result instanceof Failure) callback(toStatus(result, syscall, null));
          else callback(null, result);
        },
        (error: unknown) => callback(error instanceof Error ? error : new Error(String(error))),
      );
    },
});
