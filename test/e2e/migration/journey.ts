import { setTimeout as delay } from 'node:timers/promises';
import { KvmError, type Migration, Migrations, PostCopy, type Process, sendVm, type Vcpu } from '../../../client/index.js';
import { receivedGuest } from '../../../client/received-guest.js';
import { type CountingGuest, upTo } from '../migrating-guest.js';
import type { Crossing } from './crossing.js';
import type { Machine } from './machine.js';

/** Between two KVM_RUN of one guest: many guests share two cores. */
const PACE_MS = 100;
/** As many numbers more say that a guest goes on. */
const GOES_ON = 3;
/** The steps of a migration are the same each time, however slow this machine is. */
const ONE_ROUND = { rounds: 1 };
const BEFORE_ITS_MEMORY = { post_copy: PostCopy.POST_COPY_AT_ONCE };

/** Whether a guest goes with its memory, or before it. */
export type Manner = 'pre-copy' | 'post-copy';

/** Where a guest is. */
export type Place = 'here' | 'there';

const pause = (milliseconds: number, signal?: AbortSignal): Promise<void> =>
  delay(milliseconds, undefined, { signal }).catch(() => {});

/**
 * A guest that counts while it is sent from one machine to another. From the beginning both VMMs try to run it, and everything that
 * it says anywhere goes to one list, in the order in which it was said: two copies that run, or one that goes on from an old
 * state, would say something twice.
 */
export class Journey {
  readonly serial: number[] = [];
  /** Whether and why SendVm has been refused. */
  readonly refusal: Promise<KvmError | null>;
  private readonly over = new AbortController();
  private readonly loops: Promise<void>[];
  private readonly said = { here: 0, there: 0 };

  constructor(
    crossing: Pick<Crossing, 'there' | 'address'>,
    readonly session: string,
    guest: CountingGuest,
    manner: Manner = 'pre-copy',
  ) {
    const { there, address } = crossing;
    this.loops = [this.run(guest.vcpu, 'here'), this.receive(there.process)];
    const limits = manner === 'pre-copy' ? ONE_ROUND : BEFORE_ITS_MEMORY;
    this.refusal = sendVm(guest.vm, { session, to: { address, process: there.process }, limits }).then(
      () => null,
      (error) => KvmError.from(error),
    );
  }

  /** Whether it has said every number once, from the first one to the last. */
  get isWhole(): boolean {
    return this.serial.join() === upTo(this.serial.length).join();
  }

  /** Where it goes on, as soon as it does anywhere, or after so long. */
  async runsAt(patienceMs: number): Promise<readonly Place[]> {
    const before = { ...this.said };
    const places = (): Place[] => (['here', 'there'] as const).filter((place) => this.said[place] > before[place] + GOES_ON);
    for (let waited = 0; waited < patienceMs && places().length === 0; waited += PACE_MS) await pause(PACE_MS);
    return places();
  }

  /** How a machine sees it; null: there is no such session. */
  seenBy(machine: Machine): Promise<Migration | null> {
    return machine.migrations.get(this.session).catch(() => null);
  }

  /** Its VMMs do not go on. */
  async end(): Promise<void> {
    this.over.abort();
    await Promise.all(this.loops);
  }

  private async run(vcpu: Vcpu, place: Place): Promise<void> {
    const { signal } = this.over;
    while (!signal.aborted) {
      const { errno, value } = await vcpu.try.run().catch(() => ({ errno: 'EIO', value: null }));
      if (errno === 'EINTR') continue;
      if (errno !== null || value?.reason !== 'KVM_EXIT_IO') return;
      this.serial.push(value.io.data[0] ?? -1);
      this.said[place]++;
      await pause(PACE_MS, signal);
    }
  }

  /** The VMM of the destination runs what it has got as soon as it has a descriptor for it. */
  private async receive(process: Process): Promise<void> {
    const { signal } = this.over;
    const migrations = new Migrations(process.caller.with({ signal }));
    while (!signal.aborted) {
      const vcpu = await this.received(process, migrations).catch(() => null);
      if (vcpu !== null) return this.run(vcpu, 'there');
      await pause(PACE_MS, signal);
    }
  }

  /** @throws KvmError where there is no such session */
  private async received(process: Process, migrations: Migrations): Promise<Vcpu | null> {
    for await (const { received } of migrations.watch(this.session)) {
      const [vcpu] = received === null ? [] : receivedGuest(process, received).vcpus;
      if (vcpu !== undefined) return vcpu;
    }
    return null;
  }
}
