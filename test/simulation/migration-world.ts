import { Destination } from '../../server/migration/destination.js';
import type {
  DestinationGuest,
  GuestDescription,
  OwedFramesHandler,
  PageBatch,
  SourceGuest,
} from '../../server/migration/guest.js';
import { type CopyLimits, DEFAULT_LIMITS, type PostCopyMode } from '../../server/migration/limits.js';
import type { Transmit } from '../../server/migration/link.js';
import type { Frame } from '../../server/migration/message.js';
import { answerForUnknown } from '../../server/migration/sessions.js';
import { Source, type SourcePhase } from '../../server/migration/source.js';
import { bytesOf, Copy, heldMemory, PAGES } from './migration-copy.js';
import { Disk } from './migration-disk.js';

/** A world of two daemons and a bad network, for one migration of a guest that is an array of counters. */

const SESSION = 'session';
const LIMITS: CopyLimits = { ...DEFAULT_LIMITS, batchPages: 4, downtimeMs: 5, rounds: 4 };

/** The power of a daemon goes off in the middle of whatever it does. */
export class PowerLoss extends Error {}

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

const description: GuestDescription = {
  kind: 'plain',
  vmType: 0,
  encryptedState: false,
  vmsaFeatures: 0n,
  irqchip: false,
  pit: false,
  capabilities: [],
  vcpus: [],
  slots: [],
  ioeventfds: [],
  irqfds: [],
};

export class World {
  /** The guest's memory as it has written it, wherever it ran. */
  readonly truth: number[] = new Array(PAGES).fill(0);
  readonly here = new Copy();
  /** The destination's copy, once it has made room. */
  there: Copy | null = null;
  readonly daemons: Record<Side, Daemon>;
  source: Source | null = null;
  destination: Destination | null = null;
  /** Streams that are not cut. */
  private readonly up = new Set<number>();
  private now = 0;
  /** Phases that the source has been seen in. */
  readonly phases = new Set<string>();
  private flights: Flight[] = [];
  private pendingStop: ((failure: null) => void) | null = null;

  constructor(private readonly faults: Faults) {
    const disk = (name: string): Disk => new Disk(faults.durable === false ? null : name);
    this.daemons = {
      source: { boot: 1, up: true, actions: 0, disk: disk('source disk') },
      destination: { boot: 1, up: true, actions: 0, disk: disk('destination disk') },
    };
    this.here.runnable = true;
    this.step('source', () => {
      const guest = this.sourceGuest();
      const limits = { ...LIMITS, postCopy: faults.postCopy ?? 'never' };
      this.source = new Source(this.local('source'), guest, this.daemons.source.disk, limits, this.wire('source'));
    });
    this.step('destination', () => {
      const { disk } = this.daemons.destination;
      this.destination = new Destination(
        this.local('destination'),
        () => this.destinationGuest(),
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
    else if (choice < 0.8) this.guestWrites();
    else if (choice < 0.9) this.stopVcpus();
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
    this.step('source', () => this.source?.tick());
    this.step('destination', () => this.destination?.tick());
  }

  /** The power goes off, and the daemon comes back with nothing but its disk. */
  kill(side: Side): void {
    const daemon = this.daemons[side];
    if (!daemon.up) return;
    daemon.up = false;
    if (side === 'source') {
      this.source = null;
      this.pendingStop = null;
      Object.assign(this.here, { runnable: false, gone: true, held: null });
    } else {
      this.destination = null;
      if (this.there !== null) Object.assign(this.there, { runnable: false, gone: true });
      this.there?.awaited.clear();
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
      this.stopVcpus();
      this.now++;
      for (let stream = 0; stream < this.streams; stream++) while (this.pump(stream));
    }
  }

  // -- what must be so ----------------------------------------------------------------------------------------------

  get runnableCopies(): number {
    return Number(this.here.runnable) + Number(this.there?.runnable ?? false);
  }

  // -- the parts ----------------------------------------------------------------------------------------------------

  private get streams(): number {
    return this.faults.streams ?? 1;
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

  private guestWrites(): void {
    const copy = this.here.runnable ? this.here : this.there?.runnable ? this.there : null;
    if (copy === null) return;
    const page = Math.floor(this.faults.random() * PAGES);
    if (copy.missing.has(page)) {
      this.touchMissing(copy, page);
      return;
    }
    copy.memory[page] = (copy.memory[page] ?? 0) + 1;
    this.truth[page] = (this.truth[page] ?? 0) + 1;
    this.written.add(page);
  }

  /** A vCPU waits until the page has come, or fails. */
  private touchMissing(copy: Copy, page: number): void {
    if (copy.lost || copy.awaited.has(page)) return;
    copy.awaited.add(page);
    this.step('destination', () => this.owedFrames?.wanted([page]));
  }

  private owedFrames: OwedFramesHandler | null = null;

  /** The process gives up what it does not have yet, as munmap does. */
  unmapMissing(): void {
    const { there } = this;
    if (there === null || there.missing.size === 0) return;
    there.missing.clear();
    there.awaited.clear();
    there.lost = true;
    this.step('destination', () => this.owedFrames?.whole());
  }

  private readonly written = new Set<number>();

  /** The vCPUs leave KVM_RUN some time after they have been asked to. */
  private stopVcpus(): void {
    const stopped = this.pendingStop;
    if (stopped === null) return;
    this.pendingStop = null;
    this.here.runnable = false;
    this.step('source', () => stopped(null));
  }

  private sourceGuest(): SourceGuest {
    const owed = new Set<number>();
    const { here } = this;
    const act = (): void => this.act('source');
    return {
      describe: () => description,
      begin: () => {
        act();
        for (let page = 0; page < PAGES; page++) owed.add(page);
        return new Uint8Array(1);
      },
      next: (count) => {
        act();
        const gfns = [...owed].slice(0, count);
        if (gfns.length === 0) return null;
        for (const gfn of gfns) owed.delete(gfn);
        return { form: 'clear', gfns, headers: new Uint8Array(0), data: bytesOf(gfns.map((gfn) => here.memory[gfn] ?? 0)) };
      },
      nextRound: () => {
        act();
        for (const page of this.written) owed.add(page);
        this.written.clear();
        return owed.size;
      },
      throttle: () => {},
      stop: (stopped) => {
        act();
        this.pendingStop = stopped;
      },
      hold: () => {
        act();
        here.held = heldMemory(owed, here);
        return here.held;
      },
      state: () => {
        act();
        return bytesOf(here.memory);
      },
      fence: () => {
        act();
        return null;
      },
      resume: () => {
        act();
        this.pendingStop = null;
        here.runnable = true;
      },
      finish: () => {
        act();
        here.gone = true;
      },
    };
  }

  private destinationGuest(): DestinationGuest {
    const act = (): void => this.act('destination');
    act();
    const copy = new Copy();
    this.there = copy;
    return {
      target: new Uint8Array(1),
      begin: () => {
        act();
        return null;
      },
      receive: ({ gfns, data }: PageBatch) => {
        act();
        const values = new Uint32Array(data.buffer);
        for (const [index, gfn] of gfns.entries()) {
          if (this.owedFrames !== null && !copy.missing.delete(gfn)) continue;
          copy.awaited.delete(gfn);
          copy.memory[gfn] = values[index] ?? 0;
        }
        if (this.owedFrames !== null && copy.missing.size === 0) this.owedFrames.whole();
        return null;
      },
      owe: (runs, handler) => {
        act();
        this.owedFrames = handler;
        for (const { first, count } of runs)
          for (let page = first; page < first + count; page++) {
            copy.missing.add(page);
            copy.memory[page] = -1;
          }
        return null;
      },
      get missing() {
        return copy.missing.size;
      },
      lose: () => {
        copy.lost = true;
        copy.awaited.clear();
      },
      restore: (state) => {
        act();
        const whole = Array.from(new Uint32Array(state.buffer)).map((value, page) => (copy.missing.has(page) ? -1 : value));
        if (whole.join() !== copy.memory.join()) throw new Error('the guest has not arrived as it left');
        return null;
      },
      prepare: () => {
        act();
        return null;
      },
      release: () => {
        act();
        copy.runnable = true;
      },
      destroy: () => {
        act();
        copy.gone = true;
      },
    };
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
