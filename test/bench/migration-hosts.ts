import { readFileSync } from 'node:fs';
import {
  introduce,
  type MigrationLimitsInit,
  type MigrationProgress,
  migrate,
  type Process,
  SimKvm,
} from '../../client/index.js';
import type { Authority, Certified } from '../certificates.js';
import { type ChildServer, startSimkvmd } from './child-server.js';
import { type BenchGuest, createGuest, type GuestName } from './migration-guests.js';

/**
 * To and fro, until V8 has compiled what moves a guest. After that a migration takes no longer than the one before it, as
 * between daemons that run for long; what the first one takes is measured apart.
 */
export const WARMING_HOPS = 12;

/** How the hosts speak to each other. */
export interface Wiring {
  /** The daemons seal what they say. */
  readonly sealed: boolean;
  /** Vouches for both, over mutual TLS; null: no TLS. */
  readonly authority: Authority | null;
}

/** A daemon in a process of its own, and a process on it. */
class BenchHost implements AsyncDisposable {
  private constructor(
    private readonly server: ChildServer,
    readonly simkvm: SimKvm,
    readonly process: Process,
  ) {}

  static async start(args: readonly string[], certified: Certified | null): Promise<BenchHost> {
    const server = await startSimkvmd('--memory', '4G', ...args, ...(certified?.args ?? []));
    try {
      const simkvm = await SimKvm.connect(server.target, { tls: certified === null ? undefined : pemOf(certified) });
      return new BenchHost(server, simkvm, await simkvm.attach({ name: 'bench' }));
    } catch (error) {
      await server[Symbol.asyncDispose]();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.process[Symbol.asyncDispose]();
    await this.simkvm[Symbol.asyncDispose]();
    await this.server[Symbol.asyncDispose]();
  }
}

const pemOf = ({ ca, cert, key }: Certified) => ({
  ca: readFileSync(ca),
  cert: readFileSync(cert),
  key: readFileSync(key),
});

export interface Moved {
  /** From the call to its answer. */
  readonly seconds: number;
  readonly statistics: MigrationProgress;
}

/** Two hosts, and a guest that goes to and fro between them. */
export class BenchHosts implements AsyncDisposable {
  private constructor(
    private here: BenchHost,
    private there: BenchHost,
    private current: BenchGuest,
    readonly bytes: number,
  ) {}

  static async start({ sealed, authority }: Wiring, name: GuestName, mib: number): Promise<BenchHosts> {
    const args = sealed ? [] : ['--migration-unsealed'];
    const here = await BenchHost.start(args, authority?.certify('here') ?? null);
    const there = await BenchHost.start(args, authority?.certify('there') ?? null);
    if (sealed) await introduce(here.simkvm.migrations, there.simkvm.migrations);
    return new BenchHosts(here, there, await createGuest(here.process, name, mib), mib * 2 ** 20);
  }

  /** Hosts that have had the guest before. */
  static async startWarm(wiring: Wiring, name: GuestName, mib: number): Promise<BenchHosts> {
    const hosts = await BenchHosts.start(wiring, name, mib);
    for (let hop = 0; hop < WARMING_HOPS; hop++) await hosts.move();
    return hosts;
  }

  /** The guest as it is now, in `process`. */
  get guest(): BenchGuest {
    return this.current;
  }

  /** Whose the guest is now. */
  get process(): Process {
    return this.here.process;
  }

  /** Moves the guest to the other host, with all of its memory; what is left of it here is cleared away. */
  async move({ limits, push = false }: { limits?: MigrationLimitsInit; push?: boolean } = {}): Promise<Moved> {
    const { here, there, current: guest } = this;
    const begin = performance.now();
    const { received, statistics, completed } = await migrate(guest.vm, { to: there.process, limits, push });
    const seconds = (performance.now() - begin) / 1000;
    const { vm, slots } = received;
    const [vcpu] = received.vcpus;
    if (vcpu === undefined) throw new Error('a guest has lost its vCPU');
    this.current = { vm, vcpu, uaddr: slots[0]?.userspace_addr ?? 0n };
    [this.here, this.there] = [there, here];
    await guest.vcpu.close();
    await guest.vm.close();
    await here.process.memory.munmap(guest.uaddr, this.bytes);
    await completed();
    return { seconds, statistics };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.here[Symbol.asyncDispose]();
    await this.there[Symbol.asyncDispose]();
  }
}
