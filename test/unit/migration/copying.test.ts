import { describe, expect, it } from 'vitest';
import { PAGE_SIZE } from '../../../server/hardware/units.js';
import { Destination } from '../../../server/migration/destination.js';
import type {
  DestinationGuest,
  GuestDescription,
  HeldMemory,
  OwedFramesHandler,
  SourceGuest,
} from '../../../server/migration/guest.js';
import { type CopyLimits, DEFAULT_LIMITS } from '../../../server/migration/limits.js';
import type { Frame } from '../../../server/migration/message.js';
import { Source } from '../../../server/migration/source.js';
import { nothingKept } from './two-hosts.js';

const none = new Uint8Array(0);

const description: GuestDescription = {
  ...{ kind: 'plain', vmType: 0, encryptedState: false, vmsaFeatures: 0n, irqchip: false, pit: false },
  ...{ pitSpeaker: false, bootCpuId: 0, tscKhz: 0 },
  ...{ capabilities: [], vcpus: [], slots: [], ioeventfds: [], irqfds: [], touchedPages: 0 },
};

/** A guest that touches nothing. */
const createDestinationGuest = (): DestinationGuest => {
  let missing = 0;
  let handler: OwedFramesHandler | null = null;
  return {
    target: none,
    begin: () => null,
    receive: ({ gfns }) => {
      if (handler === null) return null;
      missing -= gfns.length;
      if (missing === 0) handler.whole();
      return null;
    },
    owe: (runs, told) => {
      handler = told;
      missing += runs.reduce((sum, { count }) => sum + count, 0);
      return null;
    },
    get missing() {
      return missing;
    },
    lose: () => {},
    restore: () => null,
    prepare: () => null,
    whyUnfit: () => null,
    release: () => {},
    destroy: () => {},
  };
};

/** So many pages that have been held back. */
const heldPages = (pages: number): HeldMemory => {
  let left = pages;
  return {
    get size() {
      return left;
    },
    runs: [{ first: 0, count: pages }],
    urgent: false,
    want: () => 0,
    next: (count) => {
      const taken = Math.min(count, left);
      left -= taken;
      const gfns = Array.from({ length: taken }, (_, index) => index);
      return taken === 0 ? null : { form: 'clear', gfns, headers: none, data: new Uint8Array(taken * PAGE_SIZE) };
    },
    release: () => {},
  };
};

interface Shape {
  readonly pages: number;
  /** Pages that the guest writes in a millisecond, at full speed. */
  readonly writesPerMs: number;
  /** Pages that the wire carries in a millisecond. */
  readonly wirePagesPerMs: number;
  readonly limits: Partial<CopyLimits>;
}

/** A migration of a guest that does nothing but write, over a wire of a given speed. */
class Copying {
  nowMs = 0;
  /** Pages of the largest message. */
  largest = 0;
  readonly throttles: number[] = [];
  readonly source: Source;
  private readonly destination: Destination;
  private readonly wire: { readonly to: 'source' | 'destination'; readonly frame: Frame }[] = [];
  private owed = 0;
  private writtenUntilMs = 0;
  private running = true;

  constructor(private readonly shape: Shape) {
    const limits = { ...DEFAULT_LIMITS, ...shape.limits };
    const local = (boot: string) => ({ session: 'session', boot, ledger: 'memory' });
    const guest = this.sourceGuest();
    this.source = new Source(local('here'), guest, nothingKept, limits, (frame) => this.wire.push({ to: 'destination', frame }));
    const answer = (frame: Frame) => this.wire.push({ to: 'source', frame });
    this.destination = new Destination(local('there'), createDestinationGuest, nothingKept, answer);
    this.source.connected();
    this.destination.connected();
  }

  /** To its end. @returns milliseconds that it took */
  run(): number {
    for (let step = 0; step < 100_000 && this.source.state.phase !== 'sent'; step++) this.step();
    return this.nowMs;
  }

  private step(): void {
    const flight = this.wire.shift();
    if (flight?.to === 'source') this.source.receive(flight.frame, this.nowMs);
    else if (flight !== undefined) this.carry(flight.frame);
    else this.nowMs += this.source.pump(this.nowMs) ?? 1;
  }

  private carry(frame: Frame): void {
    const pages = frame.kind === 'data' && frame.message.kind === 'pages' ? frame.message.batch.gfns.length : 0;
    this.largest = Math.max(this.largest, pages);
    this.nowMs += pages / this.shape.wirePagesPerMs;
    this.destination.receive(frame);
  }

  private sourceGuest(): SourceGuest {
    const { pages, writesPerMs } = this.shape;
    return {
      describe: () => description,
      begin: () => {
        this.owed = pages;
        return none;
      },
      next: (count) => {
        const taken = Math.min(count, this.owed);
        this.owed -= taken;
        const gfns = Array.from({ length: taken }, (_, index) => index);
        return taken === 0 ? null : { form: 'clear', gfns, headers: none, data: new Uint8Array(taken * PAGE_SIZE) };
      },
      nextRound: () => {
        const share = 1 - (this.throttles.at(-1) ?? 0) / 100;
        const written = this.running ? (this.nowMs - this.writtenUntilMs) * writesPerMs * share : 0;
        this.writtenUntilMs = this.nowMs;
        this.owed = Math.min(pages, this.owed + Math.floor(written));
        return this.owed;
      },
      throttle: (percent) => this.throttles.push(percent),
      stop: (stopped) => {
        this.running = false;
        stopped(null);
      },
      waitsFor: null,
      hold: () => {
        const held = heldPages(this.owed);
        this.owed = 0;
        return held;
      },
      state: () => none,
      fence: () => null,
      resume: () => {},
      finish: () => {},
    };
  }
}

const QUIET = { pages: 4096, writesPerMs: 0, wirePagesPerMs: 64, limits: {} } as const;

describe('the downtime limit', () => {
  const busy = { ...QUIET, writesPerMs: 16 };

  it('goes on copying until what is left fits into it, as far as can be foreseen', () => {
    for (const downtimeMs of [1, 5, 10]) {
      const copying = new Copying({ ...busy, limits: { downtimeMs } });
      copying.run();
      const { downtimeMs: stopped, round } = copying.source.statistics(copying.nowMs);
      expect(stopped).toBeLessThanOrEqual(downtimeMs + 1);
      expect(round).toBeGreaterThan(1);
    }
  });

  it('stops the guest in any case after so many rounds', () => {
    const copying = new Copying({ ...busy, writesPerMs: 100, limits: { downtimeMs: 5, rounds: 4 } });
    copying.run();
    expect(copying.source.statistics(copying.nowMs)).toMatchObject({ round: 4 });
    expect(copying.source.statistics(copying.nowMs).downtimeMs).toBeGreaterThan(5);
  });

  it('stops a guest that writes nothing after one round, for next to nothing', () => {
    const copying = new Copying(QUIET);
    copying.run();
    expect(copying.source.statistics(copying.nowMs)).toMatchObject({ round: 1, pagesSent: 4096, pagesLeft: 0 });
    expect(copying.source.statistics(copying.nowMs).downtimeMs).toBeLessThanOrEqual(1);
  });
});

describe('statistics', () => {
  it('tell the rate of the wire and that of the guest', () => {
    const copying = new Copying({ ...QUIET, writesPerMs: 16, limits: { downtimeMs: 1 } });
    copying.run();
    const { bytesPerSecond, dirtyPagesPerSecond, bytesSent, pagesSent } = copying.source.statistics(copying.nowMs);
    expect(bytesPerSecond / (64_000 * PAGE_SIZE)).toBeCloseTo(1, 1);
    expect(dirtyPagesPerSecond / 16_000).toBeCloseTo(1, 0);
    expect(bytesSent).toBeGreaterThan(pagesSent * PAGE_SIZE);
  });
});

describe('the bandwidth limit', () => {
  it('does not become bursts where it is low', () => {
    const copying = new Copying({ ...QUIET, limits: { bandwidth: 100 * PAGE_SIZE } });
    expect(copying.run()).toBeGreaterThan(4096 * 10 - 1000);
    // What 50 ms may bring.
    expect(copying.largest).toBe(5);
  });

  it('holds while the guest runs', () => {
    const bandwidth = 16_000 * PAGE_SIZE;
    const elapsedMs = new Copying({ ...QUIET, limits: { bandwidth } }).run();
    expect(elapsedMs).toBeGreaterThan(4096 / 16 - 60);
    expect(elapsedMs).toBeLessThan(4096 / 16 + 60);
  });

  it('does not hold back what the stopped guest waits for', () => {
    const limits = { bandwidth: 2_000 * PAGE_SIZE, rounds: 1 };
    const copying = new Copying({ ...QUIET, writesPerMs: 100, limits });
    copying.run();
    // All of the memory has been written again; at the limit it would take 2 s.
    expect(copying.source.statistics(copying.nowMs).downtimeMs).toBeLessThan(100);
  });
});

describe('auto-converge', () => {
  const diverging = { ...QUIET, writesPerMs: 100, limits: { downtimeMs: 5, autoConverge: true } };

  it('slows down a guest that writes faster than is copied, step by step, until it converges', () => {
    const copying = new Copying(diverging);
    copying.run();
    expect(copying.throttles).toEqual([20, 30, 40, 50, 60, 70].slice(0, copying.throttles.length));
    expect(copying.throttles.length).toBeGreaterThan(2);
    expect(copying.source.statistics(copying.nowMs).downtimeMs).toBeLessThanOrEqual(6);
    expect(copying.source.statistics(copying.nowMs).throttlePercent).toBe(copying.throttles.at(-1));
  });

  describe('under a low limit of bandwidth', () => {
    /** All of its memory is written in 128 ms, sent in 32 ms, and may be sent in 256 ms. */
    const limits = { downtimeMs: 40, autoConverge: true, bandwidth: 8_000 * PAGE_SIZE };
    const held = { ...QUIET, pages: 2048, writesPerMs: 16, limits };
    const switchoverBandwidth = 64_000 * PAGE_SIZE;

    it('slows a guest down that writes faster than that, since the downtime is foreseen at it', () => {
      const copying = new Copying(held);
      copying.run();
      expect(copying.throttles.length).toBeGreaterThan(2);
    });

    it('spares a guest that can be stopped in time, where it is known what the link carries then', () => {
      const copying = new Copying({ ...held, limits: { ...limits, switchoverBandwidth } });
      copying.run();
      expect(copying.throttles).toEqual([]);
      expect(copying.source.statistics(copying.nowMs).downtimeMs).toBeLessThanOrEqual(limits.downtimeMs);
    });

    it('slows it down all the same where it could not be stopped in time even so', () => {
      const copying = new Copying({ ...held, limits: { ...limits, downtimeMs: 20, switchoverBandwidth } });
      copying.run();
      expect(copying.throttles.length).toBeGreaterThan(0);
    });
  });

  it('leaves a guest alone that converges by itself', () => {
    const copying = new Copying({ ...diverging, writesPerMs: 16 });
    copying.run();
    expect(copying.throttles).toEqual([]);
  });
});

describe('post-copy', () => {
  /** It writes all of its memory faster than that can be sent. */
  const diverging = { ...QUIET, writesPerMs: 100 };
  const limits = { downtimeMs: 5, rounds: 4 };

  it('stops a guest for next to nothing that writes faster than is copied, once all rounds are over', () => {
    const copying = new Copying({ ...diverging, limits: { ...limits, postCopy: 'after-rounds' } });
    copying.run();
    const { round, downtimeMs, pagesLeft, pagesSent } = copying.source.statistics(copying.nowMs);
    expect([round, pagesLeft, pagesSent]).toEqual([4, 0, 5 * 4096]);
    // Its memory alone would take 64 ms.
    expect(downtimeMs).toBeLessThanOrEqual(2);
  });

  it('is not needed where a guest can be stopped for as short as is wanted', () => {
    const copying = new Copying({ ...QUIET, writesPerMs: 16, limits: { ...limits, rounds: 30, postCopy: 'after-rounds' } });
    copying.run();
    const { pagesLeft, downtimeMs } = copying.source.statistics(copying.nowMs);
    expect(pagesLeft).toBe(0);
    expect(downtimeMs).toBeGreaterThan(0);
  });

  it('is not begun by itself where it has to be asked for', () => {
    const copying = new Copying({ ...diverging, limits: { ...limits, postCopy: 'on-request' } });
    copying.run();
    expect(copying.source.statistics(copying.nowMs).downtimeMs).toBeGreaterThan(5);
  });

  it('sends nothing twice where nothing is copied before, and small messages that a wanted page can overtake', () => {
    const copying = new Copying({ ...diverging, limits: { postCopy: 'at-once' } });
    copying.run();
    const { pagesSent, downtimeMs } = copying.source.statistics(copying.nowMs);
    expect(pagesSent).toBe(4096);
    expect(downtimeMs).toBeLessThanOrEqual(2);
    expect(copying.largest).toBe(32);
  });

  it('keeps to the bandwidth limit, since the guest runs', () => {
    const copying = new Copying({ ...QUIET, limits: { bandwidth: 16_000 * PAGE_SIZE, postCopy: 'at-once' } });
    expect(copying.run()).toBeGreaterThan(4096 / 16 - 60);
  });
});
