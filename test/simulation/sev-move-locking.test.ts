import { describe, expect, it } from 'vitest';
import { createEntropy } from '../../server/hardware/entropy.js';
import { failed, type Result } from '../../server/kernel/failure.js';
import { createSevModule } from '../../server/kernel/kvm/svm/sev-module.js';
import { moveEncContext } from '../../server/kernel/kvm/svm/sev-move.js';
import { sevTwoVmLock, type TwoVmLock } from '../../server/kernel/kvm/svm/two-vm-lock.js';
import { type PickNext, Scheduler } from '../../server/kernel/sched/scheduler.js';
import type { Task } from '../../server/kernel/sched/task.js';
import type { MightSleep } from '../../server/kernel/sched/wait.js';
import { unguardedTwoVmLock } from '../mutants/two-vm-lock.js';
import { createSevRig, type Guest, type SevRig } from '../unit/kernel/kvm/svm/sev-rig.js';

/**
 * The locking of moves under every order of the lock points: each lock is a scheduling point, and the test is the
 * scheduler.
 */

interface World {
  readonly rig: SevRig;
  readonly guests: readonly Guest[];
  /** Starts a thread; it runs when the scheduler picks it. */
  start(body: (current: Task) => MightSleep<void>): Task;
  move(current: Task, destination: Guest, source: Guest): MightSleep<Result<number>>;
  /** Runs everything to its end, or until nothing can run any more. */
  run(): void;
}

/** @param launched which of the VMs are SEV guests */
const createWorld = (locks: TwoVmLock, pick: PickNext, launched: readonly boolean[], vcpus: number): World => {
  let choosing = false;
  // While the world is built there is one task only, and nothing to choose.
  const scheduler = new Scheduler({ preemptAtLocks: true, pick: (runnable) => (choosing ? pick(runnable) : 0) });
  const rig = createSevRig({}, scheduler);
  const guests = launched.map((sev) => (sev ? rig.vmm.createSevGuest({ vcpus }) : rig.vmm.createGuest(vcpus)));
  const module = createSevModule(rig.host.kernel);
  return {
    rig,
    guests,
    start: (body) => scheduler.start(rig.host.process, 'thread', body, () => {}),
    move: (current, destination, source) => moveEncContext(module, locks, current, destination.vm, source.fd),
    run: () => {
      choosing = true;
      while (scheduler.run());
    },
  };
};

const answer = (result: Result<number>): string => (failed(result) ? result.errno : String(result));

interface Outcome {
  /** Of the two moves; undefined: it never came to an end. */
  readonly results: readonly (string | undefined)[];
  readonly deadlocked: boolean;
}

/** Runs two opposite moves once for every order of their lock points, depth first. */
const enumerate = (locks: TwoVmLock, launched: readonly [boolean, boolean], vcpus: number): Outcome[] => {
  const outcomes: Outcome[] = [];
  let prefix: number[] | null = [];
  while (prefix !== null) {
    const taken: number[] = [];
    const choices: number[] = [];
    const follow: readonly number[] = prefix;
    const world = createWorld(
      locks,
      (runnable) => {
        const choice = follow[taken.length] ?? 0;
        taken.push(choice);
        choices.push(runnable.length);
        return choice;
      },
      launched,
      vcpus,
    );
    const [one, two] = world.guests;
    if (one === undefined || two === undefined) throw new Error('two VMs are needed');
    const results: (string | undefined)[] = [undefined, undefined];
    const tasks = [[one, two] as const, [two, one] as const].map(([destination, source], index) =>
      world.start(function* moving(current) {
        results[index] = answer(yield* world.move(current, destination, source));
      }),
    );
    world.run();
    outcomes.push({ results, deadlocked: tasks.some(({ state }) => state.kind !== 'done') });
    prefix = nextPrefix(taken, choices);
  }
  return outcomes;
};

/** The choices of the next run: the last one that had an alternative is changed, and all before it stay. */
const nextPrefix = (taken: readonly number[], choices: readonly number[]): number[] | null => {
  for (let index = taken.length - 1; index >= 0; index--) {
    const next = (taken[index] ?? 0) + 1;
    if (next < (choices[index] ?? 0)) return [...taken.slice(0, index), next];
  }
  return null;
};

const distinct = (outcomes: readonly Outcome[]): string[] =>
  [...new Set(outcomes.map(({ results }) => results.join(' ')))].sort();

describe('two opposite moves, in every order of their lock points', () => {
  it('of two SEV guests: EINVAL or EBUSY, always to an end', () => {
    const outcomes = enumerate(sevTwoVmLock, [true, true], 0);
    // Few, because of two moves one ends before its first lock wherever they overlap.
    expect(outcomes).toHaveLength(6);
    expect(outcomes.filter(({ deadlocked }) => deadlocked)).toEqual([]);
    expect(distinct(outcomes)).toEqual(['EBUSY EINVAL', 'EINVAL EBUSY', 'EINVAL EINVAL']);
  });

  it('of a SEV guest and a plain VM with vCPUs: the guest has one owner at the end', () => {
    const outcomes = enumerate(sevTwoVmLock, [true, false], 1);
    expect(outcomes).toHaveLength(8);
    expect(outcomes.filter(({ deadlocked }) => deadlocked)).toEqual([]);
    // The first moves back into the source, the second out of it; no gate is in the way here.
    expect(distinct(outcomes)).toEqual(['0 0', 'EBUSY 0', 'EINVAL 0', 'EINVAL EBUSY']);
  });

  it('deadlock without the migration guard', () => {
    const outcomes = enumerate(unguardedTwoVmLock, [true, true], 0);
    expect(outcomes.some(({ deadlocked }) => deadlocked)).toBe(true);
    expect(outcomes.length).toBeGreaterThan(6);
    expect(outcomes.some(({ deadlocked }) => !deadlocked)).toBe(true);
  });
});

const THREADS = 3;
const ITERATIONS = 10_000;

/** `sev_migrate_tests` locking: each thread moves from the VMs in rotation into its own. */
const rotate = (locks: TwoVmLock, seed: string) => {
  const random = createEntropy(seed);
  const pick: PickNext = (runnable) => (random.bytes(1)[0] ?? 0) % runnable.length;
  const world = createWorld(locks, pick, [true, true, true], 1);
  const counts = new Map<string, number>();
  const tasks = Array.from({ length: THREADS }, (_, thread) =>
    world.start(function* moving(current) {
      for (let index = 0; index < ITERATIONS; index++) {
        const [own, source] = [world.guests[thread], world.guests[index % THREADS]];
        if (own === undefined || source === undefined) throw new Error('a VM for each thread');
        const result = answer(yield* world.move(current, own, source));
        counts.set(result, (counts.get(result) ?? 0) + 1);
      }
    }),
  );
  world.run();
  return { counts, deadlocked: tasks.some(({ state }) => state.kind !== 'done') };
};

describe('three threads that move three VMs into each other 10,000 times', () => {
  it('get EINVAL or EBUSY, EBUSY at least once, and come to an end', () => {
    const { counts, deadlocked } = rotate(sevTwoVmLock, 'locking');
    expect(deadlocked).toBe(false);
    expect([...counts.keys()].sort()).toEqual(['EBUSY', 'EINVAL']);
    expect([...counts.values()].reduce((sum, count) => sum + count, 0)).toBe(THREADS * ITERATIONS);
  });

  it('deadlock without the migration guard', () => {
    expect(rotate(unguardedTwoVmLock, 'locking').deadlocked).toBe(true);
  });
});
