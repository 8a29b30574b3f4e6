import { randomUUID } from 'node:crypto';
import { type Logger, pino } from 'pino';
import { isLoopback, parseConfig } from './config.js';
import { createEntropy } from './hardware/entropy.js';
import { createHost } from './kernel/kvm/host.js';
import { type PickNext, Scheduler } from './kernel/sched/scheduler.js';
import type { Host } from './rpc/call.js';
import { createVolatileMigrationHost } from './rpc/migration/migration-host.js';
import { ProcessRegistry } from './rpc/process-registry.js';
import { startPump } from './rpc/pump.js';
import { createServer, listen } from './rpc/server.js';
import { VERSION } from './version.js';

/** As many CPUs would make it: whoever comes to a lock may be overtaken there. */
const preemptiveScheduler = (seed: string): Scheduler => {
  const entropy = createEntropy(seed).fork('scheduler');
  const pick: PickNext = (runnable) => new DataView(entropy.bytes(4).buffer).getUint32(0) % runnable.length;
  return new Scheduler({ pick, preemptAtLocks: true });
};

const callLog = (log: Logger): Host['log'] => (log.isLevelEnabled('debug') ? (call) => log.debug(call, 'call') : null);

const main = async (): Promise<void> => {
  const config = parseConfig(process.argv, VERSION);
  const log = pino({ level: config.logLevel }, pino.destination({ fd: 2, sync: true }));
  const started = process.hrtime.bigint();
  const kernel = createHost(config.host, {
    clock: { now: () => process.hrtime.bigint() - started },
    ...(config.preemptAtLocks ? { scheduler: preemptiveScheduler(config.host.seed) } : {}),
  });
  startPump(kernel);
  const migration = createVolatileMigrationHost();
  const server = createServer({
    kernel,
    processes: new ProcessRegistry(kernel),
    version: VERSION,
    bootId: randomUUID(),
    migration,
    log: callLog(log),
  });

  const host = config.listen.slice(0, config.listen.lastIndexOf(':'));
  if (!isLoopback(host)) log.warn({ listen: config.listen }, 'listening beyond loopback: whoever reaches the port may use it');
  const port = await listen(server, config.listen);
  migration.advertise = `${host}:${port}`;
  process.stdout.write(`simkvmd listening on ${host}:${port}\n`);
  log.info({ listen: `${host}:${port}`, vendor: config.host.vendor, seed: config.host.seed }, 'ready');

  const stop = (): void => {
    server.forceShutdown();
    process.exit(0);
  };
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
};

main().catch((error: unknown) => {
  process.stderr.write(`simkvmd: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exit(1);
});
