import { describe, expect, it } from 'vitest';
import { Failure } from '../../../../server/kernel/failure.js';
import { Process } from '../../../../server/kernel/process/process.js';
import { SIGKILL, Thread } from '../../../../server/kernel/process/thread.js';
import { Mutex } from '../../../../server/kernel/sched/mutex.js';
import { Scheduler } from '../../../../server/kernel/sched/scheduler.js';
import type { Task } from '../../../../server/kernel/sched/task.js';
import { type MaySleep, type MightSleep, RESCHED, WaitQueue, type Wake } from '../../../../server/kernel/sched/wait.js';

const SIGUSR1 = 10;

const setUp = (scheduler = new Scheduler()) => {
  const process = new Process(7, null);
  const start = <T>(body: (current: Task) => MaySleep<T>, thread?: Thread) => {
    const outcome: { result?: T } = {};
    const task = scheduler.start(process, 'test', body, (result) => Object.assign(outcome, { result }), thread);
    return { task, outcome };
  };
  return { scheduler, process, start };
};

describe('a task', () => {
  it('that never waits is done before start returns', () => {
    const { start } = setUp();
    const mutex = new Mutex('m');
    const { outcome } = start(function* body(current) {
      yield* mutex.lock(current);
      return mutex.heldBy(current);
    });
    expect(outcome.result).toBe(true);
  });

  it('that yields its turn goes on when the scheduler runs, after those that came before it', () => {
    const { scheduler, start } = setUp();
    const order: string[] = [];
    for (const name of ['a', 'b'])
      start(function* body() {
        order.push(`${name}1`);
        yield RESCHED;
        order.push(`${name}2`);
      });
    expect(order).toEqual(['a1', 'b1']);
    scheduler.run();
    expect(order).toEqual(['a1', 'b1', 'a2', 'b2']);
  });

  it('asks for a run when something becomes runnable and nobody drives the scheduler', () => {
    const { scheduler, start } = setUp();
    let asked = 0;
    scheduler.onRunnable = () => asked++;
    const queue = new WaitQueue();
    start(function* body() {
      yield { kind: 'uninterruptible', queue, site: 'test' };
    });
    expect(asked).toBe(0);
    queue.wakeAll();
    expect(asked).toBe(1);
  });
});

describe('the three kinds of wait', () => {
  const ends = (kind: 'uninterruptible' | 'killable' | 'interruptible', signo: number): string => {
    const { scheduler, start } = setUp();
    const queue = new WaitQueue();
    const { task, outcome } = start(function* body(): MightSleep<Wake> {
      return yield { kind, queue, site: 'test' };
    });
    task.signal(signo);
    scheduler.run();
    return outcome.result ?? 'sleeps on';
  };

  it.each([
    ['uninterruptible', SIGUSR1, 'sleeps on'],
    ['uninterruptible', SIGKILL, 'sleeps on'],
    ['killable', SIGUSR1, 'sleeps on'],
    ['killable', SIGKILL, 'signal'],
    ['interruptible', SIGUSR1, 'signal'],
    ['interruptible', SIGKILL, 'signal'],
  ] as const)('%s with signal %i: %s', (kind, signo, expected) => {
    expect(ends(kind, signo)).toBe(expected);
  });

  it('a signal that the thread blocks ends no wait, and stays pending', () => {
    const { scheduler, start } = setUp();
    const thread = new Thread(5);
    thread.blocked = new Set([SIGUSR1]);
    const queue = new WaitQueue();
    const { task, outcome } = start(function* body(): MightSleep<Wake> {
      return yield { kind: 'interruptible', queue, site: 'test' };
    }, thread);
    task.signal(SIGUSR1);
    scheduler.run();
    expect(outcome.result).toBeUndefined();
    expect(thread.pending.has(SIGUSR1)).toBe(true);
  });

  it('a signal that came before the wait ends it at once', () => {
    const { scheduler, start } = setUp();
    const thread = new Thread(5);
    thread.raise(SIGKILL);
    const { outcome } = start(function* body(): MightSleep<Wake> {
      return yield { kind: 'killable', queue: new WaitQueue(), site: 'test' };
    }, thread);
    scheduler.run();
    expect(outcome.result).toBe('signal');
  });
});

describe('a mutex', () => {
  it('is had in the order of arrival', () => {
    const { scheduler, start } = setUp();
    const mutex = new Mutex('m');
    const order: string[] = [];
    const contender = (name: string) =>
      function* body(current: Task): MightSleep<void> {
        yield* mutex.lock(current);
        order.push(name);
        yield RESCHED;
        mutex.unlock(current);
      };
    for (const name of ['a', 'b', 'c']) start(contender(name));
    scheduler.run();
    expect(order).toEqual(['a', 'b', 'c']);
    expect(mutex.locked).toBe(false);
  });

  it('lockKillable gives EINTR to a waiter that is killed, and the lock stays with its owner', () => {
    const { scheduler, start } = setUp();
    const mutex = new Mutex('m');
    const release = new WaitQueue();
    const owner = start(function* body(current) {
      yield* mutex.lock(current);
      yield { kind: 'uninterruptible', queue: release, site: 'test' };
      mutex.unlock(current);
    });
    const waiter = start((current) => mutex.lockKillable(current));
    waiter.task.signal(SIGKILL);
    scheduler.run();
    expect(waiter.outcome.result).toBeInstanceOf(Failure);
    expect(waiter.outcome.result?.errno).toBe('EINTR');
    expect(mutex.heldBy(owner.task)).toBe(true);
  });

  it('with preemptAtLocks another task may come between a free lock and its taker', () => {
    const order: string[] = [];
    const { scheduler, start } = setUp(new Scheduler({ preemptAtLocks: true, pick: (runnable) => runnable.length - 1 }));
    const mutex = new Mutex('m');
    for (const name of ['a', 'b'])
      start(function* body(current) {
        order.push(`${name} before`);
        yield* mutex.lock(current);
        order.push(`${name} inside`);
        mutex.unlock(current);
      });
    scheduler.run();
    expect(order).toEqual(['b before', 'b inside', 'a before', 'a inside']);
  });

  it('is held just as long as what is run with it, which ends at once where nothing makes it wait', () => {
    const { scheduler, start } = setUp();
    const mutex = new Mutex('m');
    const order: string[] = [];
    const inside = (name: string, waits: boolean) =>
      start((current) =>
        mutex.with(current, () => {
          order.push(`${name} ${mutex.heldBy(current)}`);
          return waits ? resched(name) : name;
        }),
      );
    function* resched(name: string): MightSleep<string> {
      yield RESCHED;
      return name;
    }
    expect(inside('a', false).outcome.result).toBe('a');
    expect(mutex.locked).toBe(false);
    const waiting = [inside('b', true), inside('c', false), inside('d', true)];
    expect(order).toEqual(['a true', 'b true']);
    scheduler.run();
    expect(waiting.map(({ outcome }) => outcome.result)).toEqual(['b', 'c', 'd']);
    expect(order).toEqual(['a true', 'b true', 'c true', 'd true']);
    expect(mutex.locked).toBe(false);
  });

  it('is free again after what is run with it has thrown', () => {
    const { start } = setUp();
    const mutex = new Mutex('m');
    const broken = (): never => {
      throw new Error('broken');
    };
    expect(() => start((current) => mutex.with(current, broken))).toThrow('broken');
    expect(mutex.locked).toBe(false);
  });

  it('throws when a task unlocks what it does not hold', () => {
    const { start } = setUp();
    const mutex = new Mutex('m');
    expect(() =>
      start(function* body(current) {
        mutex.unlock(current);
        yield RESCHED;
      }),
    ).toThrow(/does not hold/);
  });
});

describe('a wait queue', () => {
  it('an exclusive callback that consumes the wake-up keeps it from sleepers and later callbacks', () => {
    const { scheduler, start } = setUp();
    const queue = new WaitQueue();
    const seen: string[] = [];
    queue.addCallback(() => {
      seen.push('plain');
      return false;
    }, false);
    const remove = queue.addCallback(() => {
      seen.push('exclusive');
      return true;
    }, true);
    const { outcome } = start(function* body(): MightSleep<Wake> {
      return yield { kind: 'uninterruptible', queue, site: 'test' };
    });
    queue.wakeAll();
    scheduler.run();
    expect(seen).toEqual(['exclusive']);
    expect(outcome.result).toBeUndefined();
    remove();
    queue.wakeAll();
    scheduler.run();
    expect(seen).toEqual(['exclusive', 'plain']);
    expect(outcome.result).toBe('woken');
  });
});
