import { Destination } from '../../server/migration/destination.js';
import { type CopyLimits, DEFAULT_LIMITS, type PostCopyMode } from '../../server/migration/limits.js';
import type { Transmit } from '../../server/migration/link.js';
import type { Frame } from '../../server/migration/message.js';
import { answerForUnknown } from '../../server/migration/sessions.js';
import { Source, type SourcePhase } from '../../server/migration/source.js';
import { type Copy, PAGES } from './migration-copy.js';
import { Disk } from './migration-disk.js';
import { type OnHost, SimulatedGuest } from './migration-guest.js';

/** A world of two daemons and a bad network, for one migration. */

const SESSION = 'session';
const LIMITS: CopyLimits = { ...DEFAULT_LIMITS, batchPages: 4, downtimeMs: 5, rounds: 4 };

/** The power of a daemon goes off in the middle of whatever it does. */
class PowerLoss extends Error {}

export type Side = 'source' | 'destination';

export interface Faults {
  /** Number from 0 to 1, different each time. */
  readonly random: () => number;
  readonly loss: number;
  readonly repeat: number;
  readonly reorder: number;
  /** Power goes off at this action of the daemon, counted from 1. */
  readonly kill?: { readonly side: Side; readonly action: number };
  /** The destination keeps its records over a restart. @default true */
  readonly durable?: boolean;
  /** @default never */
  readonly postCopy?: PostCopyMode;
  /** Streams between the daemons; each keeps its order, but for `reorder`. @default 1 */
  readonly streams?: number;
}

interface Flight {
  readonly to: Side;
  readonly stream: number;
  readonly frame: Frame;
}

interface Daemon {
  boot: number;
  up: boolean;
  actions: number;
  readonly disk: Disk;
}

export class World {
  readonly guest: SimulatedGuest;
  readonly daemons: Record<Side, Daemon>;
  source: Source | null = null;
  destination: Destination | null = null;
  /** Streams that are not cut. */
  private readonly up = new Set<number>();
  private now = 0;
  /** Phases that the source has been seen in. */
  readonly phases = new Set<string>();
  private flights: Flight[] = [];

  constructor(private readonly faults: Faults) {
    const disk = (name: string): Disk => new Disk(faults.durable === false ? null : name);
    this.daemons = {
      source: { boot: 1, up: true, actions: 0, disk: disk('source disk') },
      destination: { boot: 1, up: true, actions: 0, disk: disk('destination disk') },
    };
    this.guest = new SimulatedGuest(this.on('source'), this.on('destination'));
    this.step('source', () => {
      const guest = this.guest.onSource();
      const limits = { ...LIMITS, postCopy: faults.postCopy ?? 'never' };
      this.source = new Source(this.local('source'), guest, this.daemons.source.disk, limits, this.wire('source'));
    });
    this.step('destination', () => {
      const { disk } = this.daemons.destination;
      this.destination = new Destination(
        this.local('destination'),
        () => this.guest.onDestination(),
        disk,
        this.wire('destination'),
      );
    });
    this.cut();
    this.heal();
  }

  get sourcePhase(): SourcePhase | 'sent' | 'stayed' | null {
    return this.source?.state.phase ?? null;
  }

  // -- what may happen ---------------------------------------------------------------------------------------------

  /** One thing happens, chosen by the random numbers. */
  turn(): void {
    const { random } = this.faults;
    const choice = random();
    this.now++;
    if (choice < 0.55) this.deliver();
    else if (choice < 0.7) this.pump(Math.floor(random() * this.streams));
    else if (choice < 0.8) this.guest.writes(Math.floor(random() * PAGES));
    else if (choice < 0.9) this.guest.stopVcpus();
    else this.tick();
  }

  cut(): void {
    for (let stream = 0; stream < this.streams; stream++) this.cutStream(stream);
  }

  heal(): void {
    for (let stream = 0; stream < this.streams; stream++) this.healStream(stream);
  }

  cutStream(stream: number): void {
    this.up.delete(stream);
    this.flights = this.flights.filter((flight) => flight.stream !== stream);
    this.step('source', () => this.source?.disconnected(stream));
    this.step('destination', () => this.destination?.disconnected(stream));
  }

  healStream(stream: number): void {
    this.up.add(stream);
    this.step('source', () => this.source?.connected(stream));
    this.step('destination', () => this.destination?.connected(stream));
  }

  /** @returns whether there may be more to send at once */
  pump(stream: number): boolean {
    let more = false;
    this.step('source', () => {
      more = this.source?.pump(this.now, stream) === 0;
    });
    return more;
  }

  tick(): void {
    this.step('source', () => this.source?.tick(this.now));
    this.step('destination', () => this.destination?.tick());
  }

  /** The power goes off, and the daemon comes back with nothing but its disk. */
  kill(side: Side): void {
    const daemon = this.daemons[side];
    if (!daemon.up) return;
    daemon.up = false;
    if (side === 'source') {
      this.source = null;
      this.guest.sourceDies();
    } else {
      this.destination = null;
      this.guest.destinationDies();
    }
  }

  restart(side: Side): void {
    const daemon = this.daemons[side];
    if (daemon.up) return;
    daemon.up = true;
    daemon.boot++;
  }

  /** Without faults from now on, until nothing changes any more. */
  settle(): void {
    this.restart('source');
    this.restart('destination');
    this.cut();
    this.heal();
    for (let round = 0; round < 60; round++) {
      this.tick();
      for (let turns = 0; turns < 200 && this.flights.length > 0; turns++) this.deliverFirst();
      this.guest.stopVcpus();
      this.now++;
      for (let stream = 0; stream < this.streams; stream++) while (this.pump(stream));
    }
  }

  // -- what there is ------------------------------------------------------------------------------------------------

  /** The source's copy. */
  get here(): Copy {
    return this.guest.here;
  }

  /** The destination's, once it has made room. */
  get there(): Copy | null {
    return this.guest.there;
  }

  get runnableCopies(): number {
    return this.guest.runnableCopies;
  }

  // -- the parts ----------------------------------------------------------------------------------------------------

  private get streams(): number {
    return this.faults.streams ?? 1;
  }

  private on(side: Side): OnHost {
    return { act: () => this.act(side), step: (body) => this.step(side, body) };
  }

  private local(side: Side) {
    const { boot, disk } = this.daemons[side];
    return { session: SESSION, boot: `${side} ${boot}`, ledger: disk.id };
  }

  /** Something a daemon does to the world outside: the power may go off before it. */
  private act(side: Side): void {
    const { kill } = this.faults;
    if (kill?.side === side && ++this.daemons[side].actions === kill.action) throw new PowerLoss();
    if (this.runnableCopies > 1) throw new Error('two copies of the guest may run');
  }

  step(side: Side, body: () => void): void {
    if (!this.daemons[side].up) return;
    try {
      body();
    } catch (error) {
      if (!(error instanceof PowerLoss)) throw error;
      this.kill(side);
    }
    const phase = this.sourcePhase;
    if (phase !== null) this.phases.add(phase);
    if (this.runnableCopies > 1) throw new Error('two copies of the guest may run');
  }

  private wire(side: Side): Transmit {
    const to = side === 'source' ? 'destination' : 'source';
    return (frame, stream) => {
      this.act(side);
      if (!this.up.has(stream)) return;
      const { random, loss, repeat } = this.faults;
      if (random() < loss) return;
      this.flights.push({ to, frame, stream });
      if (random() < repeat) this.flights.push({ to, frame, stream });
    };
  }

  private deliver(): void {
    const { random, reorder } = this.faults;
    const any = Math.floor(random() * this.flights.length);
    // The first of its stream, unless something overtakes.
    const { stream } = this.flights[any] ?? { stream: 0 };
    const first = this.flights.findIndex((flight) => flight.stream === stream);
    const [flight] = this.flights.splice(random() < reorder ? any : Math.max(0, first), 1);
    if (flight !== undefined) this.arrive(flight);
  }

  private deliverFirst(): void {
    const flight = this.flights.shift();
    if (flight !== undefined) this.arrive(flight);
  }

  private arrive({ to, frame }: Flight): void {
    this.step(to, () => {
      const { source, destination } = this;
      if (to === 'source' && source !== null) return source.receive(frame, this.now);
      if (to === 'destination' && destination !== null) return destination.receive(frame);
      const { disk } = this.daemons[to];
      const answer = answerForUnknown({ boot: this.local(to).boot, ledger: disk }, frame);
      if (answer !== null) this.wire(to)(answer, 0);
    });
  }
}

/** A generator of numbers from 0 to 1 (mulberry32): the same seed gives the same world. */
export const seeded = (seed: number): (() => number) => {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
};

/** Lets the world go its way until the migration has ended on the source, or `turns` are over. */
export const play = (world: World, turns: number, between: (turn: number) => void = () => {}): void => {
  for (let turn = 0; turn < turns; turn++) {
    between(turn);
    world.turn();
    if (world.source === null || world.source.state.phase === 'stayed' || world.source.state.phase === 'sent') return;
  }
};
