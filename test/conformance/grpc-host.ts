import type { Kernel } from '../../server/kernel/kernel.js';
import { createHost } from '../../server/kernel/kvm/host.js';
import { createVolatileMigrationHost } from '../../server/rpc/migration/migration-host.js';
import { ProcessRegistry } from '../../server/rpc/process-registry.js';
import { startPump } from '../../server/rpc/pump.js';
import { createServer, listen } from '../../server/rpc/server.js';
import { RECORDED_HOST } from './recorded-host.js';

/** A daemon in this process, on a port that the system picks. */
export interface GrpcHost {
  readonly kernel: Kernel;
  /** `127.0.0.1:PORT`. */
  readonly address: string;
  close(): void;
}

/** Starts a host like the recorded one, with everything between it and a client that `simkvmd` has. */
export const startGrpcHost = async (): Promise<GrpcHost> => {
  const started = process.hrtime.bigint();
  const kernel = createHost(RECORDED_HOST, { clock: { now: () => process.hrtime.bigint() - started } });
  startPump(kernel);
  const processes = new ProcessRegistry(kernel);
  const migration = createVolatileMigrationHost();
  const server = createServer({ kernel, processes, version: 'test', bootId: 'test', migration, log: null });
  const port = await listen(server, '127.0.0.1:0');
  return { kernel, address: `127.0.0.1:${port}`, close: () => server.forceShutdown() };
};
