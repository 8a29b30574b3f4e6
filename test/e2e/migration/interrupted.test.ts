import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { type Migration, MigrationStanding } from '../../../client/index.js';
import { requires } from '../../helpers/requirements.js';
import { type CountingGuest, plainGuest, sevGuest } from '../migrating-guest.js';
import { Crossing, startCrossingIn } from './crossing.js';
import { Journey, type Manner, type Place } from './journey.js';
import { NOTHING_LEFT } from './machine.js';
import { NetworkRig } from './network-rig.js';
import { nameOf, type Step, StepHolds, StepRecorder } from './steps.js';

/*
 * As many migrations as the protocol has steps go on between two machines at once, each stopped at a step of its own by somebody in
 * the middle; then the link is cut, or a machine loses its power, for all of them together. Every guest says how far it has
 * counted, wherever it runs: it says each number once.
 */

const GUESTS = [plainGuest, sevGuest] as const;
/** What is said until SendVm has its answer. A source that does not get it keeps the guest. */
const BEGINNING: ReadonlySet<string> = new Set([
  ...['ReceiveVm', 'ReceiveVm answer', 'attach', 'hello', 'proof'],
  ...['ask', 'standing', 'offer', 'ack'],
]);
/** Longer than it takes to give a connection up, which is twice five seconds. */
const LONG_CUT_MS = 11_000;
const SHORT_CUT_MS = 1500;
const PATIENCE_MS = 150_000;
/** So long nobody may hear of a guest that runs nowhere. */
const SILENCE_MS = 1500;

const { MIGRATION_STANDING_COMMITTED: COMMITTED, MIGRATION_STANDING_PREPARED: PREPARED } = MigrationStanding;
const { MIGRATION_STANDING_SENT: SENT, MIGRATION_STANDING_STAYED: STAYED } = MigrationStanding;
const { MIGRATION_STANDING_ABORTED: ABORTED } = MigrationStanding;
/** In which a half waits for nobody, or for an operator. */
const FINAL: readonly number[] = [SENT, STAYED, COMMITTED, PREPARED, ABORTED];

interface Travel {
  readonly step: Step;
  readonly journey: Journey;
}

/** The steps of the protocol: what the daemons say to each other when nobody disturbs them. */
const stepsOf = async (crossing: Crossing, manner: Manner = 'pre-copy'): Promise<readonly Step[]> => {
  const recorder = new StepRecorder();
  crossing.middle.meddler = recorder.meddler;
  const journey = new Journey(crossing, 'undisturbed', await plainGuest(crossing.here), manner);
  await expect.poll(async () => (await journey.seenBy(crossing.there))?.closed, { timeout: PATIENCE_MS }).toBe(true);
  expect([await journey.refusal, await journey.runsAt(PATIENCE_MS), journey.isWhole]).toEqual([null, ['there'], true]);
  await journey.end();
  return recorder.steps;
};

/** A migration for each step, stopped there. */
const stopAtSteps = async (
  crossing: Crossing,
  steps: readonly Step[],
  holds: StepHolds,
  first: number,
  manner: Manner = 'pre-copy',
): Promise<Travel[]> => {
  crossing.middle.meddler = holds.meddler;
  const guestAt = (index: number) => (manner === 'pre-copy' ? GUESTS[(first + index) % 2] : null) ?? plainGuest;
  const made = await Promise.all(steps.map((_, index) => guestAt(index)(crossing.here)));
  const travels = steps.map((step, index) => {
    const session = `step-${index}`;
    holds.stopAt(session, step);
    return { step, journey: new Journey(crossing, session, made[index] as CountingGuest, manner) };
  });
  // On a machine that is too slow a guest may have written nothing since its first pages were sent: it goes all the way.
  const mayBeMissed = ({ what, ordinal }: Step): boolean => what === 'wanted' || (what === 'pages' && ordinal > 1);
  // So does one of which SendVm does not hear that it has begun.
  const isNotHeld = ({ what }: Step): boolean => what === 'ReceiveVm answer';
  const isUnderWay = async ({ step, journey }: Travel): Promise<boolean> => {
    const hasReached = holds.hasReached(journey.session);
    if (hasReached ? !isNotHeld(step) : !mayBeMissed(step)) return !hasReached;
    return !(await journey.seenBy(crossing.there))?.closed;
  };
  const late = async () => {
    const areUnderWay = await Promise.all(travels.map(isUnderWay));
    return travels.flatMap(({ step }, index) => (areUnderWay[index] ? [nameOf(step)] : []));
  };
  await expect.poll(late, { timeout: PATIENCE_MS }).toEqual([]);
  return travels;
};

/** What has become of a migration. */
interface Ending {
  readonly step: string;
  /** Where the guest runs. */
  readonly runs: readonly Place[];
  /** It has said each number once. */
  readonly isWhole: boolean;
  /** How its halves stand; null where there is none. */
  readonly source: number | null;
  readonly destination: number | null;
}

type IsOver = (seen: Migration) => boolean;

/**
 * Waits until both machines have no more to say about it, and looks where the guest runs.
 * @param lost the machine that has lost its power
 */
const endingOf = async (
  { here, there }: Crossing,
  { step, journey }: Travel,
  isOver: IsOver,
  lost: Place | null = null,
): Promise<Ending> => {
  const seen = () => Promise.all([journey.seenBy(here), journey.seenBy(there)]);
  const pending = async () => (await seen()).filter((half) => half !== null && !isOver(half)).map((half) => half?.phase);
  await expect.poll(pending, { timeout: PATIENCE_MS, interval: 200, message: nameOf(step) }).toEqual([]);
  const halves = await seen();
  const [source, destination] = halves.map((half) => half?.standing ?? null);
  const isTorn = halves.some((half) => half?.reason === 'PAGES_LOST');
  const isLost = isTorn || (lost === 'here' ? destination !== COMMITTED : lost === 'there' && source === SENT);
  const runs = await journey.runsAt(isLost ? SILENCE_MS : PATIENCE_MS);
  return { step: nameOf(step), runs, isWhole: journey.isWhole, source: source ?? null, destination: destination ?? null };
};

const leavesNothing = async (crossing: Crossing, travels: readonly Travel[]): Promise<void> => {
  await Promise.all(travels.map(({ journey }) => journey.end()));
  for (const machine of [crossing.here, crossing.there]) {
    await machine.restartVmm();
    expect(await machine.leftovers()).toEqual(NOTHING_LEFT);
  }
};

describe('a link that is cut at each step of the protocol, and heals', () => {
  requires('netns', 'links between daemons that can be cut');

  it.each([
    ['before anybody notices', SHORT_CUT_MS, 0],
    ['after the daemons have given their connections up', LONG_CUT_MS, 1],
  ])('%s: the guest runs at one place, which both know, and nothing is left of it at the other', async (_when, cutMs, first) => {
    using rig = new NetworkRig();
    const { crossing, links } = await startCrossingIn(rig);
    await using _crossing = crossing;
    const holds = new StepHolds();
    const travels = await stopAtSteps(crossing, await stepsOf(crossing), holds, first);
    for (const link of links) link.cut();
    holds.release();
    await delay(cutMs);
    for (const link of links) link.heal();
    const moved = async (travel: Travel) => {
      const ending = await endingOf(crossing, travel, ({ closed }) => closed);
      return { ...ending, refusal: (await travel.journey.refusal)?.reason ?? null, begins: BEGINNING.has(travel.step.what) };
    };
    for (const { step, begins, refusal, ...ending } of await Promise.all(travels.map(moved))) {
      const isGone = ending.source === SENT;
      expect({ step, ...ending }).toMatchObject({ step, runs: [isGone ? 'there' : 'here'], isWhole: true });
      expect(ending.destination === COMMITTED, step).toBe(isGone);
      if (!begins) expect(isGone, step).toBe(true);
      if (refusal !== null) expect(isGone, `${step}: ${refusal}`).toBe(false);
    }
    await leavesNothing(crossing, travels);
  });

  it('while a guest runs that has left its memory behind: it goes on where it is, and gets all of it', async () => {
    using rig = new NetworkRig();
    const { crossing, links } = await startCrossingIn(rig);
    await using _crossing = crossing;
    const holds = new StepHolds();
    const steps = (await stepsOf(crossing, 'post-copy')).filter(({ what }) => !BEGINNING.has(what));
    expect(steps.map(({ what }) => what)).toEqual(expect.arrayContaining(['owed', 'pages', 'complete']));
    const travels = await stopAtSteps(crossing, steps, holds, 0, 'post-copy');
    for (const link of links) link.cut();
    holds.release();
    await delay(SHORT_CUT_MS);
    for (const link of links) link.heal();
    for (const travel of travels) {
      const { step, ...ending } = await endingOf(crossing, travel, ({ closed }) => closed);
      expect({ step, ...ending }).toMatchObject({ step, runs: ['there'], isWhole: true, source: SENT, destination: COMMITTED });
      expect((await travel.journey.seenBy(crossing.there))?.reason, step).toBe('');
    }
    await leavesNothing(crossing, travels);
  });
});

describe('SIGKILL at each step of the protocol', () => {
  /** Whether pages that are fetched still may be lost is not known yet. */
  const isFinal: IsOver = ({ standing, phase }) => FINAL.includes(standing) && phase !== 'fetching';

  /** Stops them, kills a daemon and starts it again. @returns what became of each, and whether it had been committed before */
  const killAndLook = async (crossing: Crossing, side: Place, manner: Manner = 'pre-copy') => {
    const holds = new StepHolds();
    const travels = await stopAtSteps(crossing, await stepsOf(crossing, manner), holds, side === 'here' ? 0 : 1, manner);
    const before = await Promise.all(travels.map(({ journey }) => journey.seenBy(crossing.there)));
    await crossing[side].kill();
    // What a source had under way is lost with it; what was under way to a destination comes too late.
    if (side === 'there') holds.release();
    else holds.holdNoMore();
    await crossing.startAgain(side);
    const endings = await Promise.all(
      travels.map(async (travel, index) => ({
        ...(await endingOf(crossing, travel, isFinal, side)),
        wasCommitted: before[index]?.standing === COMMITTED,
      })),
    );
    holds.release();
    return { travels, endings };
  };

  it('of the source: what it has not handed over is lost with it, and runs again only if an operator says so', async () => {
    await using crossing = await Crossing.start();
    const { travels, endings } = await killAndLook(crossing, 'here');
    for (const { step, wasCommitted, runs, isWhole, destination } of endings) {
      expect({ step, runs, isWhole, isCommitted: destination === COMMITTED }).toEqual({
        ...{ step, isWhole: true, isCommitted: wasCommitted },
        runs: wasCommitted ? ['there'] : [],
      });
    }
    const complete = travels.filter((_, index) => endings[index]?.destination === PREPARED);
    expect(complete.length).toBeGreaterThan(0);
    for (const [index, { journey }] of complete.entries()) {
      const decision = index % 2 === 0 ? 'run' : 'discard';
      await crossing.there.migrations.override(journey.session, decision);
      const patience = decision === 'run' ? PATIENCE_MS : SILENCE_MS;
      expect(await journey.runsAt(patience)).toEqual(decision === 'run' ? ['there'] : []);
    }
    const { findings } = await crossing.there.leftovers();
    expect(findings).toBe(BigInt(complete.length));
  });

  it('of the destination: the guest goes on where it was, unless it had been handed over, and is lost with its holder then', async () => {
    await using crossing = await Crossing.start();
    const { travels, endings } = await killAndLook(crossing, 'there');
    for (const { step, wasCommitted, runs, isWhole, source } of endings)
      expect({ step, runs, isWhole, source: source ?? STAYED }).toEqual({
        ...{ step, isWhole: true, source: wasCommitted ? SENT : STAYED },
        runs: wasCommitted ? [] : ['here'],
      });
    await leavesNothing(crossing, travels);
  });

  it('of a source that its guest has left before its memory: it goes on as far as it has it, and nobody waits for the rest', async () => {
    await using crossing = await Crossing.start();
    const { travels, endings } = await killAndLook(crossing, 'here', 'post-copy');
    for (const [index, { step, wasCommitted, runs, isWhole, destination }] of endings.entries()) {
      expect({ step, isWhole, isCommitted: destination === COMMITTED }).toEqual({
        step,
        isWhole: true,
        isCommitted: wasCommitted,
      });
      expect(runs, step).not.toContain('here');
      const seen = await travels[index]?.journey.seenBy(crossing.there);
      if (!wasCommitted) expect(runs, step).toEqual([]);
      else if (seen?.reason === '') expect(runs, step).toEqual(['there']);
      else expect({ step, phase: seen?.phase, reason: seen?.reason }).toEqual({ step, phase: 'committed', reason: 'PAGES_LOST' });
    }
    const torn = await Promise.all(travels.map(async ({ journey }) => (await journey.seenBy(crossing.there))?.reason));
    expect(torn).toContain('PAGES_LOST');
  });

  it('of a destination that has the guest and not its memory: it is lost with its holders, and the source keeps nothing', async () => {
    await using crossing = await Crossing.start();
    const { travels, endings } = await killAndLook(crossing, 'there', 'post-copy');
    for (const { step, wasCommitted, runs, isWhole, source } of endings)
      expect({ step, runs, isWhole, source: source ?? STAYED }).toEqual({
        ...{ step, isWhole: true, source: wasCommitted ? SENT : STAYED },
        runs: wasCommitted ? [] : ['here'],
      });
    await leavesNothing(crossing, travels);
  });
});
