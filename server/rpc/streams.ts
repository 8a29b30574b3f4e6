import type { PeerCertificate } from 'node:tls';
import {
  type handleBidiStreamingCall,
  type handleClientStreamingCall,
  type handleServerStreamingCall,
  Metadata,
  type ServerWritableStream,
} from '@grpc/grpc-js';
import type { RpcMethod } from '../../gen/services.js';
import { Failure, failed, type Result } from '../kernel/failure.js';
import type { Caller, Role } from './call.js';
import type { Dispatch } from './dispatch.js';
import { toStatus } from './error-details.js';
import { headersOf } from './headers.js';
import { http2StreamOf } from './http2-stream.js';
import { MessageWriter } from './message-writer.js';
import type { Pieces } from './pieces.js';
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

/** The caller's end of a stream in both directions. */
export interface BidiCall {
  /**
   * Sends an encoded message, from where it lies.
   * @param sent called once nobody looks at the message's memory any more
   * @returns false: there is no room for more before `drained`
   */
  write(message: Pieces, sent?: () => void): boolean;
  /** Ends the stream; with a failure, by its status. */
  end(failure: Failure | null): void;
  /** As grpc-js names it: `127.0.0.1:4711`. */
  readonly peer: string;
  /** What the caller has shown of itself, with mutual TLS. */
  readonly certificate: PeerCertificate | undefined;
}

/** What a stream in both directions calls. */
export interface BidiListener<Req> {
  received(message: Req): void;
  drained(): void;
  /** The caller has ended the stream, or is gone. */
  ended(): void;
}

/**
 * An RPC that streams in both directions, for callers that act as no process: `open` finds out who they are.
 */
export const bidiStream = <Req extends object, ReqInit, Res, ResInit>(
  rpc: RpcMethod<Req, ReqInit, Res, ResInit>,
  { syscall }: Pick<StreamOptions, 'syscall'>,
  open: (call: BidiCall, dispatch: Dispatch) => BidiListener<Req>,
): Route => ({
  service: rpc.service,
  name: rpc.name,
  role: 'anyone',
  definition: rpc,
  serve:
    (dispatch): handleBidiStreamingCall<Req, ResInit> =>
    (call) => {
      let over = false;
      const end = (failure: Failure | null): void => {
        if (over) return;
        over = true;
        if (failure === null) call.end();
        else call.emit('error', toStatus(failure, syscall, null));
      };
      // Nothing may bring the daemon down, and a defect ends this stream alone.
      const guarded = (body: () => void): void => {
        try {
          body();
        } catch (error) {
          const message = error instanceof Error ? error.message : String(error);
          dispatch.host.kernel.findings.report('kernel', 'KERNEL_OOPS', `${rpc.path}: ${message}`);
          end(new Failure('EIO', 'KERNEL_OOPS', 'simkvmd', { message }));
        }
      };
      const stream = http2StreamOf(call);
      const writer = new MessageWriter(stream, () => guarded(() => listener.drained()));
      const write = (message: Pieces, sent?: () => void): boolean => {
        if (over || stream.destroyed) return false;
        call.sendMetadata(new Metadata());
        return writer.write(message, sent);
      };
      const { sslPeerCertificate: certificate } = call.getAuthContext();
      const listener = open({ write, end, peer: call.getPeer(), certificate }, dispatch);
      const ended = (): void => {
        guarded(() => listener.ended());
        end(null);
      };
      call.on('data', (message: Req) => {
        if (!over) guarded(() => listener.received(message));
      });
      call.on('end', ended);
      call.on('cancelled', ended);
    },
});
