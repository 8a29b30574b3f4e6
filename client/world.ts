import { type Daemon, type DaemonOptions, startDaemon } from './daemon.js';
import type { Process } from './process.js';
import { SimKvm } from './sim-kvm.js';

/** A daemon, a connection to it and a process on it. */
export class World implements AsyncDisposable {
  constructor(
    readonly daemon: Daemon,
    readonly simkvm: SimKvm,
    readonly process: Process,
  ) {}

  /** Ends the process, closes the connection and stops the daemon. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.process[Symbol.asyncDispose]();
    await this.simkvm[Symbol.asyncDispose]();
    await this.daemon.stop();
  }
}

/**
 * A ready world in one call, for a test.
 *
 * @example
 * ```ts
 * await using world = await startWorld();
 * await using kvm = await world.process.openKvm();
 * await using vm = await kvm.createVm();
 * ```
 */
export const startWorld = async (options: DaemonOptions = {}): Promise<World> => {
  const daemon = await startDaemon(options);
  try {
    const simkvm = await SimKvm.connect(daemon.target);
    return new World(daemon, simkvm, await simkvm.attach({ name: 'world' }));
  } catch (error) {
    await daemon.stop();
    throw error;
  }
};
