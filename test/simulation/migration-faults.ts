import { expect } from 'vitest';
import type { DestinationPhase } from '../../server/migration/destination.js';
import { because } from '../../server/migration/reason.js';
import type { SourcePhase } from '../../server/migration/source.js';
import { type Faults, play, type Side, type World } from './migration-world.js';

export const CALM = { loss: 0, repeat: 0, reorder: 0 } as const;
export const ROUGH = { loss: 0.2, repeat: 0.2, reorder: 0.4 } as const;
/** Enough for every migration to end, if it ever does. */
export const TURNS = 4000;
/** Worlds in which something is waited for that happens in most of them. */
const WORLDS = 400;

/**
 * Kills a side before each of its actions in turn, until the migration has fewer actions than that.
 * @returns how many it has
 */
export const killAtEach = (
  side: Side,
  makeWorld: (kill: NonNullable<Faults['kill']>) => World,
  check: (run: World, action: number) => void,
): number => {
  for (let action = 1; ; action++) {
    const run = makeWorld({ side, action });
    play(run, TURNS);
    const killed = !run.daemons[side].up;
    run.settle();
    if (!killed && run.daemons[side].boot === 1) return action - 1;
    check(run, action);
  }
};

/** Does something once, in the first world in which the time has come for it. @returns that world, healed and settled */
const interrupted = (makeWorld: (seed: number) => World, isTime: (run: World) => boolean, act: (run: World) => void): World => {
  for (let seed = 0; seed < WORLDS; seed++) {
    const run = makeWorld(seed);
    let done = false;
    play(run, TURNS, () => {
      if (done || !isTime(run)) return;
      done = true;
      act(run);
    });
    run.settle();
    if (done) return run;
  }
  throw new Error('the time never comes');
};

/**
 * Has the source cancel in a phase.
 * @param cancelled what must be so at once
 * @returns what becomes of it
 */
export const cancelledIn = (phase: SourcePhase, makeWorld: (seed: number) => World, cancelled: (run: World) => void): World => {
  const cancel = (run: World, reason: string): void => run.step('source', () => run.source?.cancel(because(reason)));
  // `revoking` is what cancelling in `committing` makes of it: cancelled once more.
  const begun = phase === 'revoking' ? 'committing' : phase;
  return interrupted(
    makeWorld,
    ({ sourcePhase }) => sourcePhase === begun,
    (run) => {
      if (phase === 'revoking') cancel(run, 'FIRST');
      expect(run.sourcePhase).toBe(phase);
      cancel(run, 'OPERATOR');
      cancelled(run);
    },
  );
};

/** Has the destination abort in a phase. @returns what becomes of it */
export const abortedIn = (phase: DestinationPhase, makeWorld: (seed: number) => World): World =>
  interrupted(
    makeWorld,
    ({ destination }) => destination?.state.phase === phase,
    (run) => run.step('destination', () => run.destination?.abort(because('OPERATOR'))),
  );
