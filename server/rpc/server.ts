import { Server, ServerCredentials, type ServiceDefinition, type UntypedServiceImplementation } from '@grpc/grpc-js';
import { missingField } from '../../gen/required.js';
import { KvmSystem, KvmVcpu, KvmVm, SevPlatform } from '../../gen/services.js';
import { Failure } from '../kernel/failure.js';
import { adminServices } from './admin-services.js';
import type { Host } from './call.js';
import { Dispatch } from './dispatch.js';
import { addLazyService } from './lazy-service.js';
import { MESSAGE_MAX } from './message-max.js';
import { ioctlRoutes, type Route } from './route.js';
import { eventFdRoutes } from './services/eventfd.js';
import { fileRoutes } from './services/file.js';
import { hostRoutes } from './services/host.js';
import { keyDistributionRoutes } from './services/key-distribution.js';
import { kvmSystem } from './services/kvm-system.js';
import { kvmVcpu } from './services/kvm-vcpu.js';
import { kvmVm } from './services/kvm-vm.js';
import { memoryRoutes } from './services/memory.js';
import { migrationRoutes } from './services/migration.js';
import { migrationSessionRoutes } from './services/migration-sessions.js';
import { processRoutes } from './services/process.js';
import { sevPlatform } from './services/sev-platform.js';
import { syscallRoutes } from './services/syscall.js';

const KEEPALIVE_MS = 60_000;
const KEEPALIVE_TIMEOUT_MS = 20_000;

/** Every RPC of the contract, with what serves it and who may call it. */
export const routes = (): readonly Route[] => [
  ...hostRoutes(),
  ...processRoutes,
  ...fileRoutes,
  ...memoryRoutes,
  ...eventFdRoutes,
  ...syscallRoutes,
  ...ioctlRoutes(KvmSystem, kvmSystem),
  ...ioctlRoutes(KvmVm, kvmVm),
  ...ioctlRoutes(KvmVcpu, kvmVcpu),
  ...ioctlRoutes(SevPlatform, sevPlatform),
  ...keyDistributionRoutes,
  ...migrationRoutes,
  ...migrationSessionRoutes(),
];

/** A field that must be there and is not never reaches the kernel. */
const validate = (path: string, request: object): Failure | null => {
  const field = missingField(path, request);
  return field === null
    ? null
    : new Failure('EINVAL', 'FIELD_MISSING', 'simkvmd', { field, given: 'nothing', allowed: 'a value' });
};

const byService = (all: readonly Route[]): Map<string, Route[]> => {
  const services = new Map<string, Route[]>();
  for (const route of all) services.set(route.service, [...(services.get(route.service) ?? []), route]);
  return services;
};

/** Puts the server together: limits, the dispatch behind every RPC, health, reflection and channelz. */
export const createServer = (host: Host): Server => {
  const server = new Server({
    'grpc.max_receive_message_length': MESSAGE_MAX,
    'grpc.max_send_message_length': MESSAGE_MAX,
    'grpc.keepalive_time_ms': KEEPALIVE_MS,
    'grpc.keepalive_timeout_ms': KEEPALIVE_TIMEOUT_MS,
  });
  const dispatch = new Dispatch(host, validate);
  const services = byService(routes());
  for (const [, members] of services) {
    const definition: ServiceDefinition = Object.fromEntries(members.map((route) => [route.name, route.definition]));
    const handlers: UntypedServiceImplementation = Object.fromEntries(
      members.map((route) => [route.name, route.serve(dispatch)]),
    );
    server.addService(definition, handlers);
  }
  for (const service of adminServices([...services.keys()])) addLazyService(server, service);
  return server;
};

/** Binds the server. Resolves to the port, which the system picks where `address` says 0. */
export const listen = (
  server: Server,
  address: string,
  credentials: ServerCredentials = ServerCredentials.createInsecure(),
): Promise<number> =>
  new Promise((resolve, reject) => {
    server.bindAsync(address, credentials, (error, port) => (error === null ? resolve(port) : reject(error)));
  });
