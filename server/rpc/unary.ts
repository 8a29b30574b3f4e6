import type { handleUnaryCall, ServerUnaryCall } from '@grpc/grpc-js';
import type { RpcMethod } from '../../gen/services.js';
import type { Failure } from '../kernel/failure.js';
import type { CallRecord, Reply, UnaryMethod } from './call.js';
import type { Dispatch } from './dispatch.js';
import { toStatus } from './error-details.js';
import { headersOf, traceOf } from './headers.js';

/** The failure says which descriptor it was about. */
const withFd = (failure: Failure, request: object): Failure =>
  failure.details.fd === undefined && 'fd' in request && typeof request.fd === 'number'
    ? failure.with({ fd: String(request.fd) })
    : failure;

const recordOf = (path: string, call: ServerUnaryCall<unknown, unknown>, failure: Failure | null): CallRecord => ({
  path,
  peer: call.getPeer(),
  trace: traceOf(call.metadata),
  errno: failure?.errno ?? null,
  reason: failure?.reason ?? null,
});

/** Serves an RPC as one call into the kernel, and turns its failure into a status. */
export const serveUnary =
  <Req extends object, ReqInit, Res, ResInit extends object>(
    dispatch: Dispatch,
    rpc: RpcMethod<Req, ReqInit, Res, ResInit>,
    method: UnaryMethod<Req, ResInit>,
  ): handleUnaryCall<Req, ResInit> =>
  (call, callback) => {
    const { log } = dispatch.host;
    let answered = false;
    const deliver = ({ failure, response }: Reply<ResInit>): void => {
      answered = true;
      if (log !== null) log(recordOf(rpc.path, call, failure));
      if (failure === null) {
        callback(null, response);
        return;
      }
      const attachment =
        response === null ? null : { typeUrl: rpc.responseTypeUrl, bytes: rpc.responseType.encode(response).finish() };
      callback(toStatus(withFd(failure, call.request), method.syscall, attachment));
    };
    const cancel = dispatch.call({
      path: rpc.path,
      method,
      headers: headersOf(call),
      request: call.request,
      deliver,
    });
    if (!answered) call.on('cancelled', () => cancel.cancel());
  };
