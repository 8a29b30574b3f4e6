import {
  getChannelzHandlers,
  getChannelzServiceDefinition,
  type ServiceDefinition,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';
import type { PackageDefinition } from '@grpc/proto-loader';
import protobuf from 'protobufjs/minimal.js';
import type { LazyService, LoadedService } from './lazy-service.js';

const { Reader } = protobuf;

interface Registrar {
  addService(definition: ServiceDefinition, implementation: UntypedServiceImplementation): void;
}

/** What a library would add to a server. */
const captured = (add: (server: Registrar) => void): LoadedService[] => {
  const services: LoadedService[] = [];
  add({ addService: (definition, implementation) => services.push({ definition, implementation }) });
  return services;
};

const HEALTH = 'grpc.health.v1.Health';
const CHANNELZ = 'grpc.channelz.v1.Channelz';
const REFLECTION = ['grpc.reflection.v1.ServerReflection', 'grpc.reflection.v1alpha.ServerReflection'] as const;

const offering = (services: readonly LoadedService[], name: string): LoadedService => {
  const found = services.find(({ definition }) => Object.values(definition).some(({ path }) => path.startsWith(`/${name}/`)));
  if (found === undefined) throw new Error(`no library offers ${name}`);
  return found;
};

const loadHealth = async (services: readonly string[]): Promise<LoadedService> => {
  const { HealthImplementation } = await import('grpc-health-check');
  const serving = Object.fromEntries(['', ...services].map((name) => [name, 'SERVING' as const]));
  return offering(
    captured((server) => new HealthImplementation(serving).addToServer(server)),
    HEALTH,
  );
};

const loadChannelz = async (): Promise<LoadedService> => ({
  definition: getChannelzServiceDefinition(),
  implementation: getChannelzHandlers(),
});

/**
 * The files of a google.protobuf.FileDescriptorSet (its field 1) as they are: proto-loader would join files of one
 * package and drop the comments.
 */
const filesOf = (set: Uint8Array): Buffer[] => {
  const reader = Reader.create(set);
  const files: Buffer[] = [];
  while (reader.pos < reader.len) {
    reader.uint32();
    files.push(Buffer.from(reader.bytes()));
  }
  return files;
};

/**
 * Reflection from the descriptors that `buf build` made of the contract, of health and of channelz, with their comments.
 */
const loadReflection = async (services: readonly string[]): Promise<LoadedService[]> => {
  const [{ ReflectionService }, { descriptors }] = await Promise.all([
    import('@grpc/reflection'),
    import('../../gen/descriptors.js'),
  ]);
  const described: PackageDefinition = {
    // Reflection takes the files from here and looks at nothing else.
    contract: { format: 'Protocol Buffer 3 EnumDescriptorProto', type: {}, fileDescriptorProtos: filesOf(descriptors()) },
  };
  const reflection = new ReflectionService(described, { services: [...services, HEALTH, CHANNELZ] });
  return captured((server) => reflection.addToServer(server));
};

/** Health, channelz and reflection, for `services` of the contract. */
export const adminServices = (services: readonly string[]): LazyService[] => {
  let reflection: Promise<LoadedService[]> | null = null;
  const reflect = async (name: string): Promise<LoadedService> => {
    reflection ??= loadReflection(services);
    return offering(await reflection, name);
  };
  const unary = (...methods: string[]): Record<string, 'unary'> => Object.fromEntries(methods.map((method) => [method, 'unary']));
  return [
    { name: HEALTH, methods: { ...unary('Check', 'List'), Watch: 'server' }, load: () => loadHealth(services) },
    {
      name: CHANNELZ,
      methods: unary('GetTopChannels', 'GetServers', 'GetServer', 'GetServerSockets', 'GetChannel', 'GetSubchannel', 'GetSocket'),
      load: loadChannelz,
    },
    ...REFLECTION.map((name): LazyService => ({ name, methods: { ServerReflectionInfo: 'bidi' }, load: () => reflect(name) })),
  ];
};
