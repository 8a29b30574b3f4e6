import type {
  DestinationGuest,
  GuestDescription,
  OwedFramesHandler,
  PageBatch,
  SourceGuest,
} from '../../server/migration/guest.js';
import { bytesOf, Copy, heldMemory, PAGES } from './migration-copy.js';

const DESCRIPTION: GuestDescription = {
  kind: 'plain',
  vmType: 0,
  encryptedState: false,
  vmsaFeatures: 0n,
  irqchip: false,
  pit: false,
  pitSpeaker: false,
  bootCpuId: 0,
  tscKhz: 0,
  capabilities: [],
  vcpus: [],
  slots: [],
  ioeventfds: [],
  irqfds: [],
  touchedPages: 0,
};

/** What happens on a host on behalf of its daemon. */
export interface OnHost {
  /** Something is about to be done to the guest: the power may go off before it. */
  act(): void;
  /** The host does something that the daemon hears of, unless it has no power. */
  step(body: () => void): void;
}

/** A guest that is an array of counters, and its copies on the two hosts of a migration. */
export class SimulatedGuest {
  /** Its memory as it has written it, wherever it ran. */
  readonly truth: number[] = new Array(PAGES).fill(0);
  readonly here = new Copy();
  /** The destination's copy, once it has made room. */
  there: Copy | null = null;
  private readonly written = new Set<number>();
  private pendingStop: ((failure: null) => void) | null = null;
  private owedFrames: OwedFramesHandler | null = null;

  constructor(
    private readonly source: OnHost,
    private readonly destination: OnHost,
  ) {
    this.here.runnable = true;
  }

  get runnableCopies(): number {
    return Number(this.here.runnable) + Number(this.there?.runnable ?? false);
  }

  /** It writes to one of its pages, if it runs anywhere. */
  writes(page: number): void {
    const copy = this.here.runnable ? this.here : this.there?.runnable ? this.there : null;
    if (copy === null) return;
    if (copy.missing.has(page)) {
      this.touchesMissing(copy, page);
      return;
    }
    copy.memory[page] = (copy.memory[page] ?? 0) + 1;
    this.truth[page] = (this.truth[page] ?? 0) + 1;
    this.written.add(page);
  }

  /** A vCPU waits until the page has come, or fails. */
  private touchesMissing(copy: Copy, page: number): void {
    if (copy.lost || copy.awaited.has(page)) return;
    copy.awaited.add(page);
    this.destination.step(() => this.owedFrames?.wanted([page]));
  }

  /** The process gives up what it does not have yet, as munmap does. */
  unmapMissing(): void {
    const { there } = this;
    if (there === null || there.missing.size === 0) return;
    there.missing.clear();
    there.awaited.clear();
    there.lost = true;
    this.destination.step(() => this.owedFrames?.whole());
  }

  /** The vCPUs leave KVM_RUN some time after they have been asked to. */
  stopVcpus(): void {
    const stopped = this.pendingStop;
    if (stopped === null) return;
    this.pendingStop = null;
    this.here.runnable = false;
    this.source.step(() => stopped(null));
  }

  /** The power of its source goes off. */
  sourceDies(): void {
    this.pendingStop = null;
    Object.assign(this.here, { runnable: false, gone: true, held: null });
  }

  destinationDies(): void {
    if (this.there !== null) Object.assign(this.there, { runnable: false, gone: true });
    this.there?.awaited.clear();
  }

  onSource(): SourceGuest {
    const owed = new Set<number>();
    const { here } = this;
    const act = (): void => this.source.act();
    const isStopping = (): boolean => this.pendingStop !== null;
    return {
      get waitsFor() {
        return isStopping() ? 'a vCPU' : null;
      },
      describe: () => DESCRIPTION,
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

  /** Makes room for it. */
  onDestination(): DestinationGuest {
    const act = (): void => this.destination.act();
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
      whyUnfit: () => null,
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
