import { describe, expect, it } from 'vitest';
import { DESTINATION_PHASES } from '../../server/migration/destination.js';
import { SOURCE_PHASES } from '../../server/migration/source.js';
import { abortedIn, CALM, cancelledIn, killAtEach, ROUGH, TURNS } from './migration-faults.js';
import { type Faults, play, type Side, seeded, World } from './migration-world.js';

const world = (seed: number, faults: Omit<Faults, 'random'> = CALM): World =>
  new World({ random: seeded(seed), postCopy: 'at-once', ...faults });

/** After healing: nobody keeps anything for somebody who does not want it any more. */
const expectNoLeak = ({ here, there, source, destination }: World): void => {
  expect(here.runnable || here.gone).toBe(true);
  expect(here.held).toBeNull();
  expect(there === null || there.runnable || there.gone).toBe(true);
  expect(source?.closed ?? true).toBe(true);
  expect(destination?.closed ?? true).toBe(true);
};

/** The guest has gone, with all of its memory, and what it has written since has not been overwritten. */
const expectWhole = ({ there, guest, destination }: World): void => {
  expect(there?.runnable).toBe(true);
  expect(there?.missing.size).toBe(0);
  expect(there?.awaited.size).toBe(0);
  expect(there?.memory).toEqual(guest.truth);
  expect(destination?.state).toEqual({ phase: 'committed', lost: 0 });
};

describe('post-copy', () => {
  it('brings the guest to the other host first, and its memory after it', () => {
    const run = world(1);
    let ranWithout = 0;
    play(run, TURNS, () => {
      if (run.there?.runnable && run.there.missing.size > 0) ranWithout++;
    });
    run.settle();
    expect(run.sourcePhase).toBe('sent');
    expect(ranWithout).toBeGreaterThan(0);
    expectWhole(run);
    expectNoLeak(run);
  });

  it('serves what the guest waits for', () => {
    let served = 0;
    for (let seed = 0; seed < 50; seed++) {
      const run = world(seed);
      play(run, TURNS);
      run.settle();
      served += run.source?.statistics(0).faultsServed ?? 0;
      expect(run.destination?.faults).toBeGreaterThanOrEqual(run.source?.statistics(0).faultsServed ?? 0);
    }
    expect(served).toBeGreaterThan(20);
  });

  it.each([1, 4])('loses nothing, whatever is lost, repeated and reordered, over %i streams', (streams) => {
    for (let seed = 0; seed < 300; seed++) {
      const run = world(seed, { ...ROUGH, streams });
      play(run, TURNS);
      run.settle();
      expect(run.sourcePhase, `seed ${seed}`).toBe('sent');
      expectWhole(run);
      expectNoLeak(run);
    }
  });

  it('survives a cut at any moment: who waits for a page goes on once the link is healed', () => {
    let cutWhileOwed = 0;
    for (let at = 0; at < 300; at++) {
      const run = world(at, ROUGH);
      play(run, TURNS, (turn) => {
        if (turn === at) run.cut();
        if (turn === at + 60) cutWhileOwed += Number(run.there?.runnable === true && run.there.missing.size > 0);
        if (turn === at + 120) run.heal();
      });
      run.settle();
      expect(run.sourcePhase, `cut at ${at}`).toBe('sent');
      expectWhole(run);
      expectNoLeak(run);
    }
    expect(cutWhileOwed).toBeGreaterThan(20);
  });

  it('may be asked for while the guest is copied, and not after it has been stopped', () => {
    let begun = 0;
    for (let seed = 0; seed < 100; seed++) {
      const run = world(seed, { ...ROUGH, postCopy: 'on-request' });
      let answer: string | null = 'not asked';
      play(run, TURNS, (turn) => {
        if (turn !== seed) return;
        const { phase } = run.source?.state ?? { phase: null };
        run.step('source', () => {
          answer = run.source?.startPostCopy()?.errno ?? null;
        });
        expect(answer, phase ?? '').toBe(phase === 'negotiating' || phase === 'copying' ? null : 'EBUSY');
        begun += Number(answer === null);
      });
      run.settle();
      expectWhole(run);
      expectNoLeak(run);
    }
    expect(begun).toBeGreaterThan(20);
  });

  it('is refused where it was not allowed when the migration began', () => {
    const run = world(1, { ...CALM, postCopy: 'never' });
    expect(run.source?.startPostCopy()).toMatchObject({ errno: 'EINVAL', details: { field: 'limits.post_copy' } });
  });

  it('does not happen by itself where the guest can be stopped for as short as is wanted', () => {
    const run = world(1, { ...CALM, postCopy: 'on-request' });
    play(run, TURNS);
    run.settle();
    expect(run.destination?.faults).toBe(0);
    expectWhole(run);
  });

  it('ends when the process has given up what it did not have yet', () => {
    let given = 0;
    for (let seed = 0; seed < 100; seed++) {
      const run = world(seed, ROUGH);
      play(run, TURNS, () => {
        const { there, destination } = run;
        if (given > seed || there === null || there.missing.size === 0) return;
        // Before the guest runs, or while it does.
        if (destination?.state.phase !== (seed % 2 === 0 ? 'fetching' : 'prepared')) return;
        run.guest.unmapMissing();
        given = seed + 1;
      });
      run.settle();
      expect(run.sourcePhase, `seed ${seed}`).toBe('sent');
      expectNoLeak(run);
    }
    expect(given).toBe(100);
  });
});

const killEach = (side: Side, check: (run: World, action: number) => void): number =>
  killAtEach(side, (kill) => world(7, { ...CALM, kill }), check);

describe('power that goes off', () => {
  it('at the destination leaves the guest on the source, unless it had been taken over: then it is lost, and nothing is kept', () => {
    let lost = 0;
    let stayed = 0;
    killEach('destination', (run, action) => {
      const hadCommitted = run.daemons.destination.disk.entries.some(({ kind }) => kind === 'committed');
      expect(run.here.runnable, `action ${action}`).toBe(!hadCommitted);
      expect(run.runnableCopies).toBe(hadCommitted ? 0 : 1);
      expectNoLeak(run);
      if (hadCommitted) lost++;
      else stayed++;
    });
    expect(stayed).toBeGreaterThan(10);
    expect(lost).toBeGreaterThan(10);
  });

  it('at the source takes with it what is owed: nobody waits for it, and what has come stays', () => {
    let torn = 0;
    killEach('source', (run, action) => {
      const { destination, there } = run;
      if (!there?.runnable || destination?.state.phase !== 'committed') {
        expect(destination?.state.phase, `action ${action}`).not.toBe('fetching');
        return;
      }
      expect(there.awaited.size).toBe(0);
      expect(destination.state.lost).toBe(there.missing.size);
      expect(there.lost).toBe(there.missing.size > 0);
      for (const [page, value] of there.memory.entries()) if (!there.missing.has(page)) expect(value).toBe(run.guest.truth[page]);
      expectNoLeak(run);
      torn += Number(there.missing.size > 0);
    });
    expect(torn).toBeGreaterThan(3);
  });

  it('never makes the guest run twice, on a bad network either', () => {
    for (const side of ['source', 'destination'] as const)
      for (let action = 1; action < 150; action++) {
        const run = world(1000 + action, { ...ROUGH, kill: { side, action } });
        play(run, TURNS, (turn) => {
          if (turn % 97 === 50) run.cut();
          if (turn % 97 === 70) run.heal();
          if (turn % 97 === 90) run.restart(side);
        });
        run.settle();
        expect(run.runnableCopies).toBeLessThanOrEqual(1);
        expect(run.here.held).toBeNull();
        expect(run.there?.awaited.size ?? 0).toBe(0);
      }
  });
});

describe('an operator who does not wait for the other side any longer', () => {
  /** Both sides know that the guest has gone, and some of it has not. */
  const torn = (): World => {
    for (let seed = 0; ; seed++) {
      const run = world(seed);
      for (let turn = 0; turn < TURNS && run.sourcePhase !== 'sent'; turn++) {
        run.turn();
        if (run.sourcePhase === 'serving' && run.destination?.state.phase === 'fetching' && run.there?.awaited.size) {
          run.cut();
          return run;
        }
      }
    }
  };

  it('frees what the source holds; the destination learns it, and nobody waits there', () => {
    const run = torn();
    run.step('source', () => run.source?.forceSent('session'));
    expect(run.here.held).toBeNull();
    expect(run.daemons.source.disk.entries).toContainEqual({ kind: 'overridden', session: 'session', decision: 'discard' });
    run.settle();
    expect(run.destination?.state).toEqual({ phase: 'committed', lost: run.there?.missing.size });
    expect(run.there?.awaited.size).toBe(0);
    expectNoLeak(run);
  });

  it('lets the guest at the destination go on without; the source learns it, and frees what it holds', () => {
    const run = torn();
    run.step('destination', () => run.destination?.forceLoss());
    expect(run.there?.awaited.size).toBe(0);
    expect(run.destination?.state).toMatchObject({ phase: 'committed', lost: run.there?.missing.size });
    expect(run.daemons.destination.disk.entries).toContainEqual({ kind: 'overridden', session: 'session', decision: 'discard' });
    run.settle();
    expectNoLeak(run);
  });

  it('cannot make the source run what it holds: the guest is not its any more', () => {
    const run = torn();
    run.step('source', () => run.source?.forceRun('session'));
    expect([run.sourcePhase, run.here.runnable]).toEqual(['serving', false]);
  });
});

describe('cancelling a migration with post-copy', () => {
  it.each(SOURCE_PHASES)('in phase %s leaves one copy that runs', (phase) => {
    // What is copied before has to be copied for some time.
    const postCopy = phase === 'copying' || phase === 'draining' ? 'on-request' : 'at-once';
    const run = cancelledIn(
      phase,
      (seed) => world(seed, { ...ROUGH, postCopy }),
      ({ here }) => expect(here.runnable).toBe(phase !== 'committing' && phase !== 'revoking' && phase !== 'serving'),
    );
    expect(run.runnableCopies).toBe(1);
    if (phase === 'serving') expectWhole(run);
    expectNoLeak(run);
  });

  it.each(DESTINATION_PHASES)('by the destination in phase %s leaves one copy that runs', (phase) => {
    const run = abortedIn(phase, (seed) => world(seed, ROUGH));
    // In `fetching` it runs there already, and goes on.
    expect(run.here.runnable).toBe(phase !== 'fetching');
    expect(run.runnableCopies).toBe(1);
    if (phase === 'fetching') expectWhole(run);
    expectNoLeak(run);
  });
});
