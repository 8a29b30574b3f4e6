import { randomUUID } from 'node:crypto';
import { isLoopback, type MigrationConfig, parseConfig } from './config.js';
import { createEntropy } from './hardware/entropy.js';
import { openInitExFile } from './init-ex-file.js';
import { createHost } from './kernel/kvm/host.js';
import { type PickNext, Scheduler } from './kernel/sched/scheduler.js';
import { createLog, type Log } from './log.js';
import { createIdentity, fingerprint } from './migration/identity.js';
import type { Host } from './rpc/call.js';
import { createHeapRoom } from './rpc/migration/heap-room.js';
import { createVolatileMigrationHost, type MigrationHost } from './rpc/migration/migration-host.js';
import { ProcessRegistry } from './rpc/process-registry.js';
import { startPump } from './rpc/pump.js';
import { createServer, listen } from './rpc/server.js';
import { openStateDir } from './state-dir/state-dir.js';
import { loadTls, type Tls } from './tls.js';
import { VERSION } from './version.js';

/** As many CPUs would make it: whoever comes to a lock may be overtaken there. */
const preemptiveScheduler = (seed: string): Scheduler => {
  const entropy = createEntropy(seed).fork('scheduler');
  const pick: PickNext = (runnable) => new DataView(entropy.bytes(4).buffer).getUint32(0) % runnable.length;
  return new Scheduler({ pick, preemptAtLocks: true });
};

const callLog = (log: Log): Host['log'] => (log.writes('debug') ? (call) => log.debug('call', call) : null);

/** What this daemon is to others; with a state directory it is the same at every start. */
const migrationHost = ({ stateDir, peers, advertise, unsealed }: MigrationConfig, tls: Tls | null): MigrationHost => {
  const state = stateDir === null ? null : openStateDir(stateDir);
  if (state !== null) process.on('exit', () => state.close());
  return {
    ...createVolatileMigrationHost(),
    ...(state === null ? {} : { identity: createIdentity(state.identitySeed), ledger: state.ledger }),
    peers: new Set(peers),
    advertise,
    tls: tls?.client ?? null,
    tlsPeers: tls?.peers ?? null,
    unsealed,
    heapRoom: createHeapRoom(),
  };
};

const main = async (): Promise<void> => {
  const config = parseConfig(process.argv, VERSION);
  const log = createLog(config.logLevel);
  const started = process.hrtime.bigint();
  const kernel = createHost(config.host, {
    clock: { now: () => process.hrtime.bigint() - started },
    ...(config.preemptAtLocks ? { scheduler: preemptiveScheduler(config.host.seed) } : {}),
    ...(config.initExPath === null ? {} : { initExFile: openInitExFile(config.initExPath, log) }),
  });
  startPump(kernel);
  const tls = config.tls === null ? null : loadTls(config.tls);
  const migration = migrationHost(config.migration, tls);
  const server = createServer({
    kernel,
    processes: new ProcessRegistry(kernel),
    version: VERSION,
    bootId: randomUUID(),
    migration,
    log: callLog(log),
  });

  const host = config.listen.slice(0, config.listen.lastIndexOf(':'));
  if (!isLoopback(host) && tls === null)
    log.warn('listening beyond loopback: whoever reaches the port may use it', { listen: config.listen });
  if (migration.unsealed)
    log.warn('--migration-unsealed: guests are taken from anybody, and whoever carries them may change them');
  const port = await listen(server, config.listen, tls?.server);
  migration.advertise ??= `${host}:${port}`;
  process.stdout.write(`simkvmd listening on ${host}:${port}\n`);
  const identity = fingerprint(migration.identity.publicKey);
  log.info('ready', { listen: `${host}:${port}`, vendor: config.host.vendor, seed: config.host.seed, identity });

  let stopping = false;
  const stop = async (): Promise<void> => {
    // Whoever says it twice does not want to wait.
    if (!stopping) {
      stopping = true;
      await Promise.all(migration.farewells.map((farewell) => farewell()));
    }
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
