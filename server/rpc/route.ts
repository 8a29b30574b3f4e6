import type { ServiceDefinition, UntypedHandleCall } from '@grpc/grpc-js';
import type { MessageType } from '../../gen/messages.js';
import type { RpcMethod } from '../../gen/services.js';
import type { Role, UnaryMethod } from './call.js';
import type { Dispatch } from './dispatch.js';
import type { IoctlMethod } from './ioctl/method.js';
import { isMessage, type Message } from './ioctl/struct-message.js';
import { serveUnary } from './unary.js';

/** An RPC of the contract together with what serves it. */
export interface Route {
  readonly service: string;
  readonly name: string;
  readonly role: Role;
  /** Codecs and kind, for grpc-js. */
  readonly definition: ServiceDefinition[string];
  readonly serve: (dispatch: Dispatch) => UntypedHandleCall;
}

/** An RPC that is one task of the kernel. */
export const unary = <Req extends object, ReqInit, Res, ResInit extends object>(
  rpc: RpcMethod<Req, ReqInit, Res, ResInit>,
  method: UnaryMethod<Req, ResInit>,
): Route => ({
  service: rpc.service,
  name: rpc.name,
  role: method.role,
  definition: rpc,
  serve: (dispatch) => serveUnary(dispatch, rpc, method),
});

/** Of an ioctl's RPC, the parts that do not depend on which ioctl it is. */
type IoctlRpc = Omit<RpcMethod<object, object, object, object>, `re${'quest' | 'sponse'}${'Serialize' | 'Deserialize'}`>;

/** The RPCs of a service whose every method is an ioctl. */
export const ioctlRoutes = (
  service: Readonly<Record<string, IoctlRpc>>,
  methods: Readonly<Record<string, IoctlMethod>>,
): Route[] =>
  Object.entries(methods).map(([key, method]) => {
    const rpc = service[key];
    if (rpc === undefined) throw new Error(`no RPC ${key}`);
    return unary(withCodec(rpc), method);
  });

const withCodec = (rpc: IoctlRpc): RpcMethod<Message, object, object, object> => ({
  ...rpc,
  requestType: named(rpc.requestType),
  requestSerialize: (message) => rpc.requestType.encode(message).finish(),
  requestDeserialize: (bytes) => fieldsOf(rpc.requestType.decode(bytes)),
  responseSerialize: (message) => rpc.responseType.encode(message).finish(),
  responseDeserialize: (bytes) => rpc.responseType.decode(bytes),
});

const named = (type: MessageType<object, object>): MessageType<Message, object> => ({
  encode: (message) => type.encode(message),
  decode: (bytes) => fieldsOf(type.decode(bytes)),
});

/** A message of whatever kind, by the names of its fields. */
const fieldsOf = (message: object): Message => {
  if (isMessage(message)) return message;
  throw new Error('a message is no object');
};
