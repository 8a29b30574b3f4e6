import type protobuf from 'protobufjs';
import { type Contract, fullName, jsDoc, localName } from './contract.js';

/** `gen/services.ts`: every service as a record of its methods, for servers and clients alike. */
export const servicesModule = ({ services }: Contract): string =>
  [HEAD, ...services.map(serviceCode), listing(services)].join('\n');

const HEAD = `import * as m from './messages.js';
import type { MessageType } from './messages.js';
import { requestBytes } from './wire.js';

/**
 * One RPC. It is a grpc-js \`MethodDefinition\` too. \`Req\` and \`Res\` are what decoding gives, \`ReqInit\` and \`ResInit\`
 * what can be sent.
 */
export interface RpcMethod<Req, ReqInit, Res, ResInit> {
  /** \`simkvm.v1.KvmVm\` */
  readonly service: string;
  /** \`Ioeventfd\` */
  readonly name: string;
  /** \`/simkvm.v1.KvmVm/Ioeventfd\` */
  readonly path: string;
  readonly requestStream: boolean;
  readonly responseStream: boolean;
  readonly requestType: MessageType<Req, ReqInit>;
  readonly responseType: MessageType<Res, ResInit>;
  /** Type URL of the response inside a google.protobuf.Any, as the details of a failure carry it. */
  readonly responseTypeUrl: string;
  readonly requestSerialize: (message: ReqInit) => Buffer;
  readonly requestDeserialize: (bytes: Buffer) => Req;
  readonly responseSerialize: (message: ResInit) => Buffer;
  readonly responseDeserialize: (bytes: Buffer) => Res;
}

const rpc = <Req, ReqInit, Res, ResInit>(
  service: string,
  name: string,
  stream: 'unary' | 'client' | 'server' | 'bidi',
  requestType: MessageType<Req, ReqInit>,
  responseType: MessageType<Res, ResInit>,
  response: string,
): RpcMethod<Req, ReqInit, Res, ResInit> => ({
  service,
  name,
  path: \`/\${service}/\${name}\`,
  requestStream: stream === 'client' || stream === 'bidi',
  responseStream: stream === 'server' || stream === 'bidi',
  requestType,
  responseType,
  responseTypeUrl: \`type.googleapis.com/\${response}\`,
  requestSerialize: (message) => requestBytes(requestType, message),
  requestDeserialize: (bytes) => requestType.decode(bytes),
  responseSerialize: (message) => responseType.encode(message).finish(),
  responseDeserialize: (bytes) => responseType.decode(bytes),
});
`;

const typesOf = ({ resolvedRequestType, resolvedResponseType }: protobuf.Method): protobuf.Type[] =>
  resolvedRequestType === null || resolvedResponseType === null ? [] : [resolvedRequestType, resolvedResponseType];

const serviceCode = (service: protobuf.Service): string =>
  `${jsDoc(service.comment)}export const ${service.name} = {\n${service.methodsArray.map((method) => methodCode(service, method)).join('')}} as const;\n`;

const streamOf = ({ requestStream, responseStream }: protobuf.Method): 'unary' | 'client' | 'server' | 'bidi' => {
  if (requestStream === true) return responseStream === true ? 'bidi' : 'client';
  return responseStream === true ? 'server' : 'unary';
};

const methodCode = (service: protobuf.Service, method: protobuf.Method): string => {
  const [request, response] = typesOf(method);
  if (request === undefined || response === undefined) throw new Error(`${fullName(method)} is not resolved`);
  const stream = streamOf(method);
  const call = `rpc('${fullName(service)}', '${method.name}', '${stream}', m.${localName(request)}, m.${localName(response)}, '${fullName(response)}')`;
  return `${jsDoc(method.comment, '  ')}  ${camelCase(method.name)}: ${call},\n`;
};

/** \`GetMsrs\` is \`getMsrs\`. */
const camelCase = (name: string): string => name.charAt(0).toLowerCase() + name.slice(1);

const listing = (services: readonly protobuf.Service[]): string =>
  `/** All services by name. */\nexport const SERVICES = { ${services.map((service) => service.name).join(', ')} } as const;\n`;
