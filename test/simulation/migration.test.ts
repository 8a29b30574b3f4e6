import { describe, expect, it } from 'vitest';
import { DESTINATION_PHASES } from '../../server/migration/destination.js';
import { because } from '../../server/migration/reason.js';
import { SOURCE_PHASES } from '../../server/migration/source.js';
import { abortedIn, CALM, cancelledIn, killAtEach, ROUGH, TURNS } from './migration-faults.js';
import { type Faults, play, type Side, seeded, World } from './migration-world.js';

const world = (seed: number, faults: Omit<Faults, 'random'> = CALM): World => new World({ random: seeded(seed), ...faults });

/** After healing: nobody has forgotten the session too early, and what does not run is freed. */
const expectNoLeak = ({ here, there, source, destination }: World): void => {
  expect(here.runnable || here.gone).toBe(true);
  expect(there === null || there.runnable || there.gone).toBe(true);
  expect(source?.closed ?? true).toBe(true);
  expect(destination?.closed ?? true).toBe(true);
};

describe('a migration, with the network and the power as they are', () => {
  it('brings the guest to the other host where nothing goes wrong', () => {
    const run = world(1);
    play(run, TURNS);
    run.settle();
    expect(run.sourcePhase).toBe('sent');
    expect(run.there?.runnable).toBe(true);
    expectNoLeak(run);
  });

  it('ends with exactly one copy that runs, whatever is lost, repeated and reordered', () => {
    let sent = 0;
    for (let seed = 0; seed < 300; seed++) {
      const run = world(seed, ROUGH);
      play(run, TURNS);
      run.settle();
      expect(run.runnableCopies, `seed ${seed}`).toBe(1);
      expectNoLeak(run);
      sent += Number(run.sourcePhase === 'sent');
    }
    expect(sent).toBe(300);
  });

  it('survives a cut at any moment, and goes on where it was', () => {
    for (let at = 0; at < 300; at++) {
      const run = world(at, ROUGH);
      play(run, TURNS, (turn) => {
        if (turn === at) run.cut();
        if (turn === at + 40) run.heal();
      });
      run.settle();
      expect(run.sourcePhase, `cut at ${at}`).toBe('sent');
      expect(run.runnableCopies).toBe(1);
      expectNoLeak(run);
    }
  });
});

describe('a migration over several streams', () => {
  const streams = 4;

  it('sends everything once where nothing is lost, whichever stream is the fastest', () => {
    for (let seed = 0; seed < 100; seed++) {
      const run = world(seed, { ...CALM, streams });
      play(run, TURNS);
      run.settle();
      expect(run.sourcePhase).toBe('sent');
      expect(run.there?.runnable).toBe(true);
      expectNoLeak(run);
      const { pagesSent = 0 } = run.source?.statistics(0) ?? {};
      expect(run.destination?.pagesReceived).toBe(pagesSent);
    }
  });

  it('ends with exactly one copy that runs, whatever is lost, repeated and reordered', () => {
    for (let seed = 0; seed < 200; seed++) {
      const run = world(seed, { ...ROUGH, streams });
      play(run, TURNS);
      run.settle();
      expect(run.sourcePhase, `seed ${seed}`).toBe('sent');
      expect(run.runnableCopies).toBe(1);
      expectNoLeak(run);
    }
  });

  it('goes on over those that are left when one is cut, and over all when that is back', () => {
    for (let seed = 0; seed < 200; seed++) {
      const run = world(seed, { ...CALM, streams });
      const stream = seed % streams;
      const at = seed % 50;
      play(run, TURNS, (turn) => {
        if (turn === at) run.cutStream(stream);
        // Without the first one nothing goes on; the others come back or do not.
        if (turn === at + 60 && (stream === 0 || seed % 3 === 0)) run.healStream(stream);
      });
      run.settle();
      expect(run.sourcePhase, `seed ${seed}`).toBe('sent');
      expect(run.runnableCopies).toBe(1);
      expectNoLeak(run);
    }
  });
});

const killEach = (side: Side, faults: Omit<Faults, 'random' | 'kill'>, check: (run: World, action: number) => void): number =>
  killAtEach(side, (kill) => world(7, { ...faults, kill }), check);

describe('a destination that loses its power at any step', () => {
  it('leaves the guest on the source, unless it had taken it', () => {
    let stayed = 0;
    let lost = 0;
    const steps = killEach('destination', CALM, (run, action) => {
      const hadCommitted = run.daemons.destination.disk.entries.some(({ kind }) => kind === 'committed');
      expect(run.runnableCopies, `action ${action}`).toBe(hadCommitted ? 0 : 1);
      expect(run.here.runnable).toBe(!hadCommitted);
      expectNoLeak(run);
      if (hadCommitted) lost++;
      else stayed++;
    });
    expect(steps).toBeGreaterThan(20);
    expect(stayed).toBeGreaterThan(10);
    expect(lost).toBeGreaterThan(0);
  });

  it('proves nothing where it keeps no records: the source stays paused, and asks', () => {
    let inDoubt = 0;
    killEach('destination', { ...CALM, durable: false }, (run) => {
      expect(run.runnableCopies).toBeLessThanOrEqual(1);
      if (run.source?.standing !== 'in-doubt') return;
      inDoubt++;
      expect(run.here.runnable).toBe(false);
      run.step('source', () => run.source?.forceRun('session'));
      expect(run.here.runnable).toBe(true);
      expect(run.daemons.source.disk.entries).toContainEqual({ kind: 'overridden', session: 'session', decision: 'run' });
    });
    expect(inDoubt).toBeGreaterThan(0);
  });

  it('is taken for the owner by an operator who knows: the guest does not run here any more', () => {
    let inDoubt = 0;
    killEach('destination', { ...CALM, durable: false }, (run) => {
      if (run.source?.standing !== 'in-doubt') return;
      inDoubt++;
      run.step('source', () => run.source?.forceSent('session'));
      expect(run.source.state.phase).toBe('sent');
      expect(run.here).toMatchObject({ runnable: false, gone: true });
      expect(run.daemons.source.disk.entries).toContainEqual({ kind: 'overridden', session: 'session', decision: 'discard' });
    });
    expect(inDoubt).toBeGreaterThan(0);
  });
});

describe('a ledger that cannot be written', () => {
  it('leaves the guest on the source: the destination destroys its copy when Commit comes', () => {
    const run = world(7, CALM);
    run.daemons.destination.disk.full = true;
    play(run, TURNS);
    run.settle();
    expect(run.source?.state).toMatchObject({ phase: 'stayed', reason: 'LEDGER_UNWRITABLE' });
    expect(run.here.runnable).toBe(true);
    expect(run.runnableCopies).toBe(1);
    expectNoLeak(run);
  });

  it('refuses an operator, whose decision would leave no trace', () => {
    let inDoubt = 0;
    killEach('destination', { ...CALM, durable: false }, (run) => {
      if (run.source?.standing !== 'in-doubt') return;
      inDoubt++;
      run.daemons.source.disk.full = true;
      expect(run.source.forceRun('session')).toMatchObject({ reason: 'LEDGER_UNWRITABLE' });
      expect(run.source.forceSent('session')).toMatchObject({ reason: 'LEDGER_UNWRITABLE' });
      expect(run.source.standing).toBe('in-doubt');
      expect(run.here.runnable).toBe(false);
    });
    expect(inDoubt).toBeGreaterThan(0);
  });
});

describe('a source that loses its power at any step', () => {
  it('takes the guest with it, unless the destination has it', () => {
    let complete = 0;
    const steps = killEach('source', CALM, (run, action) => {
      const { destination, there } = run;
      if (there?.runnable) {
        expect(destination?.state.phase, `action ${action}`).toBe('committed');
        expectNoLeak(run);
        return;
      }
      expect(run.runnableCopies).toBe(0);
      if (destination?.state.phase !== 'prepared') {
        expectNoLeak(run);
        return;
      }
      // Complete, and nobody else has it: it does not run by itself.
      complete++;
      expect(there?.gone).toBe(false);
      run.step('destination', () => destination.forceRun());
      expect(there?.runnable).toBe(true);
      expect(run.daemons.destination.disk.entries[0]?.kind).toBe('overridden');
    });
    expect(steps).toBeGreaterThan(20);
    expect(complete).toBeGreaterThan(0);
  });

  it('leaves a copy that an operator may give up', () => {
    let complete = 0;
    killEach('source', CALM, ({ destination, there, daemons }) => {
      if (destination?.state.phase !== 'prepared') return;
      complete++;
      destination.forceAbort();
      expect(destination.state).toMatchObject({ phase: 'aborted', reason: 'OPERATOR_OVERRIDE' });
      expect(there?.gone).toBe(true);
      expect(daemons.destination.disk.entries).toContainEqual({ kind: 'overridden', session: 'session', decision: 'discard' });
    });
    expect(complete).toBeGreaterThan(0);
  });

  it('never runs twice on a bad network either', () => {
    for (const side of ['source', 'destination'] as const)
      for (let action = 1; action < 120; action++) {
        const run = world(1000 + action, { ...ROUGH, kill: { side, action } });
        play(run, TURNS, (turn) => {
          if (turn % 97 === 50) run.cut();
          if (turn % 97 === 70) run.heal();
          if (turn % 97 === 90) run.restart(side);
        });
        run.settle();
        expect(run.runnableCopies).toBeLessThanOrEqual(1);
      }
  });
});

describe('cancelling', () => {
  // The others are post-copy's, and are tried with it. A phase that no world comes to fails.
  const OF_SOURCE = SOURCE_PHASES.filter((phase) => phase !== 'serving');
  const OF_DESTINATION = DESTINATION_PHASES.filter((phase) => phase !== 'fetching');
  const rough = (seed: number): World => world(seed, ROUGH);

  it.each(OF_SOURCE)('in phase %s leaves one copy that runs', (phase) => {
    const run = cancelledIn(phase, rough, ({ here }) =>
      expect(here.runnable).toBe(phase !== 'committing' && phase !== 'revoking'),
    );
    expect(run.runnableCopies).toBe(1);
    expectNoLeak(run);
  });

  it.each(OF_DESTINATION)('by the destination in phase %s gives the guest back', (phase) => {
    const run = abortedIn(phase, rough);
    expect(run.here.runnable).toBe(true);
    expect(run.runnableCopies).toBe(1);
    expectNoLeak(run);
  });

  it('by the destination before it has committed gives the guest back', () => {
    for (let seed = 0; seed < 50; seed++) {
      const run = rough(seed);
      play(run, TURNS, (turn) => {
        if (turn === seed * 4) run.step('destination', () => run.destination?.abort(because('OPERATOR')));
      });
      run.settle();
      expect(run.runnableCopies).toBe(1);
      expectNoLeak(run);
    }
  });
});
