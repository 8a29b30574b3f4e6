import type { Kernel } from '../../server/kernel/kernel.js';
import { createHost } from '../../server/kernel/kvm/host.js';
import { createVolatileMigrationHost } from '../../server/rpc/migration/migration-host.js';
import { ProcessRegistry } from '../../server/rpc/process-registry.js';
import { startPump } from '../../server/rpc/pump.js';
import { createServer, listen } from '../../server/rpc/server.js';
import { RECORDED_HOST } from './recorded-host.js';
import { VirtualClock, VirtualTime } from './virtual-time.js';

/** A daemon in this process, on a port that the system picks. */
export interface GrpcHost {
  readonly kernel: Kernel;
  /** `127.0.0.1:PORT`. */
  readonly address: string;
  close(): void;
}

const serve = async (kernel: Kernel): Promise<GrpcHost> => {
  const processes = new ProcessRegistry(kernel);
  const migration = createVolatileMigrationHost();
  const server = createServer({ kernel, processes, version: 'test', bootId: 'test', migration, log: null });
  const port = await listen(server, '127.0.0.1:0');
  return { kernel, address: `127.0.0.1:${port}`, close: () => server.forceShutdown() };
};

/** Starts a host like the recorded one, with everything between it and a client that `simkvmd` has. */
export const startGrpcHost = (): Promise<GrpcHost> => {
  const started = process.hrtime.bigint();
  const kernel = createHost(RECORDED_HOST, { clock: { now: () => process.hrtime.bigint() - started } });
  startPump(kernel);
  return serve(kernel);
};

/** The same in simulated time, so that no limit of time in a script is one on this machine. */
export const startTimelessGrpcHost = async (): Promise<GrpcHost & { readonly time: VirtualTime }> => {
  const clock = new VirtualClock();
  const kernel = createHost(RECORDED_HOST, { clock });
  const arrived = (callsUnderWay: number): boolean => {
    let tasks = 0;
    for (const process of kernel.processes.values()) tasks += process.tasks.length;
    return tasks >= callsUnderWay;
  };
  const time = new VirtualTime(kernel, clock, arrived);
  return { ...(await serve(kernel)), time };
};
