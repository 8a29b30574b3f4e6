import { setTimeout as delay } from 'node:timers/promises';
import type { Side } from './frame-reader.js';
import type { Meddler, Passage } from './middle.js';

/** A step of the protocol: something that one daemon says to the other. */
export interface Step {
  readonly from: Side;
  readonly what: string;
  /** Which of its kind; what is said by the clock counts once. */
  readonly ordinal: number;
}

const BY_THE_CLOCK: ReadonlySet<string> = new Set(['ask', 'standing', 'ack', 'settled']);

/** So long the first pages take, so that the guest writes to one of them, which is then sent again when it is stopped. */
const COPYING_MS = 500;

const copying = async ({ what, ordinal }: Passage): Promise<void> => {
  if (what === 'pages' && ordinal === 1) await delay(COPYING_MS);
};

export const nameOf = ({ from, what, ordinal }: Step): string => `${from}: ${what} ${ordinal}`;

/** Whether what passes is a step. */
const isStep = ({ what, ordinal }: Passage): boolean => ordinal === 1 || !BY_THE_CLOCK.has(what);

/** Keeps the steps of a migration that nobody disturbs. */
export class StepRecorder {
  readonly steps: Step[] = [];

  readonly meddler: Meddler = async (passage) => {
    if (isStep(passage)) this.steps.push(passage);
    await copying(passage);
    return [passage.bytes];
  };
}

interface Hold {
  readonly step: Step;
  /** The way of what is held; null: it has not been reached. */
  reached: string | null;
  release: () => void;
  readonly released: Promise<void>;
}

/** From whom it comes, and by a call of its own or over Exchange. */
const wayOf = ({ from, connection }: Passage): string => `${from} ${connection === 0 ? 'calls' : 'exchanges'}`;

const holdAt = (step: Step): Hold => {
  let release = (): void => {};
  const released = new Promise<void>((resolve) => {
    release = resolve;
  });
  return { step, reached: null, release, released };
};

/**
 * Stops many migrations, each at a step of its own: before it gets to the other side, with all that comes after it in the same way,
 * also over another connection: a daemon that has waited for too long calls again.
 */
export class StepHolds {
  private readonly holds = new Map<string, Hold>();
  private holdsMore = true;

  /** To be said before the session begins. */
  stopAt(session: string, step: Step): void {
    this.holds.set(session, holdAt(step));
  }

  hasReached(session: string): boolean {
    return (this.holds.get(session)?.reached ?? null) !== null;
  }

  /** What is held stays where it is, and nothing else is. */
  holdNoMore(): void {
    this.holdsMore = false;
  }

  /** Lets all of them go on. */
  release(): void {
    for (const { release } of this.holds.values()) release();
  }

  readonly meddler: Meddler = async (passage) => {
    const hold = this.holdsMore ? this.holds.get(passage.session) : undefined;
    if (hold !== undefined && nameOf(hold.step) === nameOf(passage)) hold.reached = wayOf(passage);
    if (hold?.reached === wayOf(passage)) await hold.released;
    await copying(passage);
    return [passage.bytes];
  };
}
