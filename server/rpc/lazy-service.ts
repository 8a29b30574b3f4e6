import type {
  MethodDefinition,
  ServerDuplexStream,
  ServerUnaryCall,
  ServerWritableStream,
  ServiceDefinition,
  sendUnaryData,
  UntypedHandleCall,
  UntypedServiceImplementation,
} from '@grpc/grpc-js';

/** A service as a library has it. */
export interface LoadedService {
  readonly definition: ServiceDefinition;
  readonly implementation: UntypedServiceImplementation;
}

/** A service whose library is loaded with its first call: the daemon starts without it. */
export interface LazyService {
  /** `grpc.health.v1.Health` */
  readonly name: string;
  readonly methods: Readonly<Record<string, 'unary' | 'server' | 'bidi'>>;
  /** Called once. */
  readonly load: () => Promise<LoadedService>;
}

const asIs = (bytes: Buffer): Buffer => bytes;

/** Codecs that pass bytes through, since the real ones are not there yet. */
const definitionOf = ({ name, methods }: LazyService): ServiceDefinition =>
  Object.fromEntries(
    Object.entries(methods).map(([method, kind]): [string, MethodDefinition<Buffer, Buffer>] => [
      method,
      {
        path: `/${name}/${method}`,
        requestStream: kind === 'bidi',
        responseStream: kind !== 'unary',
        requestSerialize: asIs,
        requestDeserialize: asIs,
        responseSerialize: asIs,
        responseDeserialize: asIs,
      },
    ]),
  );

interface RealMethod {
  readonly definition: ServiceDefinition[string];
  readonly handle: UntypedHandleCall;
}

const realMethod = ({ definition, implementation }: LoadedService, path: string): RealMethod => {
  for (const [key, method] of Object.entries(definition)) {
    const handle = implementation[key] ?? implementation[method.originalName ?? key];
    if (method.path === path && handle !== undefined) return { definition: method, handle };
  }
  throw new Error(`no handler for ${path}`);
};

/** The stub of a method: hands the call on with messages where the wire has bytes. */
const unaryStub =
  (real: () => Promise<RealMethod>) =>
  async (call: ServerUnaryCall<Buffer, Buffer>, callback: sendUnaryData<Buffer>): Promise<void> => {
    const { definition, handle } = await real();
    const typed = Object.create(call, { request: { value: definition.requestDeserialize(call.request) } });
    const answer: sendUnaryData<unknown> = (error, value, trailer, flags) =>
      callback(error, error || value === undefined ? null : definition.responseSerialize(value), trailer, flags);
    Reflect.apply(handle, undefined, [typed, answer]);
  };

/** The stream as the library's handler expects it: with messages where the wire has bytes. */
const typedStream = (
  call: ServerWritableStream<Buffer, Buffer> | ServerDuplexStream<Buffer, Buffer>,
  { definition }: RealMethod,
) =>
  Object.create(call, {
    ...('request' in call ? { request: { value: definition.requestDeserialize(call.request) } } : {}),
    write: { value: (message: unknown) => call.write(definition.responseSerialize(message)) },
    end: { value: () => call.end() },
    on: {
      value: (event: string, listener: (value: unknown) => void) =>
        call.on(event, event === 'data' ? (bytes: Buffer) => listener(definition.requestDeserialize(bytes)) : listener),
    },
  });

const streamStub =
  (real: () => Promise<RealMethod>) =>
  async (call: ServerWritableStream<Buffer, Buffer> | ServerDuplexStream<Buffer, Buffer>): Promise<void> => {
    const known = await real();
    Reflect.apply(known.handle, undefined, [typedStream(call, known)]);
  };

const handlersOf = (service: LazyService): UntypedServiceImplementation => {
  let loaded: Promise<LoadedService> | null = null;
  const entries = Object.entries(service.methods).map(([method, kind]): [string, UntypedHandleCall] => {
    const real = async (): Promise<RealMethod> => {
      loaded ??= service.load();
      return realMethod(await loaded, `/${service.name}/${method}`);
    };
    return [method, kind === 'unary' ? unaryStub(real) : streamStub(real)];
  });
  return Object.fromEntries(entries);
};

/** Registers a service without loading it. */
export const addLazyService = (
  server: { addService(definition: ServiceDefinition, implementation: UntypedServiceImplementation): void },
  service: LazyService,
): void => server.addService(definitionOf(service), handlersOf(service));
