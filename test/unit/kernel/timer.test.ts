import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { KernelTimer, TimerQueue } from '../../../server/kernel/timer.js';

const once = (queue: TimerQueue, fired: string[], name: string): KernelTimer =>
  new KernelTimer(queue, () => {
    fired.push(name);
    return null;
  });

describe('the timers of a kernel', () => {
  it('fire in order of their deadlines, equal ones in order of arming', () => {
    const queue = new TimerQueue();
    const fired: string[] = [];
    once(queue, fired, 'late').start(30n);
    once(queue, fired, 'first of two').start(20n);
    once(queue, fired, 'second of two').start(20n);
    once(queue, fired, 'early').start(10n);
    queue.advance(25n);
    expect(fired).toEqual(['early', 'first of two', 'second of two']);
    expect(queue.nextDeadline()).toBe(30n);
  });

  it('do not fire before their time, nor after they were cancelled', () => {
    const queue = new TimerQueue();
    const fired: string[] = [];
    const timer = once(queue, fired, 'x');
    timer.start(10n);
    queue.advance(9n);
    expect(fired).toEqual([]);
    expect(timer.cancel()).toBe(true);
    expect(timer.cancel()).toBe(false);
    queue.advance(100n);
    expect(fired).toEqual([]);
    expect(queue.nextDeadline()).toBeNull();
  });

  it('are moved when they are started again', () => {
    const queue = new TimerQueue();
    const fired: string[] = [];
    const timer = once(queue, fired, 'x');
    timer.start(10n);
    timer.start(50n);
    queue.advance(20n);
    expect(fired).toEqual([]);
    expect(timer.deadline).toBe(50n);
  });

  it('start themselves anew with the deadline that their function returns, also one that has come', () => {
    const queue = new TimerQueue();
    const times: bigint[] = [];
    let next = 10n;
    const timer = new KernelTimer(queue, (now) => {
      times.push(now);
      next += 10n;
      return next <= 40n ? next : null;
    });
    timer.start(10n);
    queue.advance(35n);
    expect(times).toEqual([35n, 35n, 35n]);
    expect(timer.deadline).toBe(40n);
  });

  it('tell when the earliest deadline has moved forward, and only then', () => {
    const queue = new TimerQueue();
    let told = 0;
    queue.onEarlier = () => told++;
    once(queue, [], 'a').start(20n);
    once(queue, [], 'b').start(30n);
    once(queue, [], 'c').start(10n);
    expect(told).toBe(2);
  });

  it('keep the order of a sorted list under any sequence of starts and cancellations', () => {
    const step = fc.record({ timer: fc.nat(15), deadline: fc.bigInt({ min: 0n, max: 50n }), cancel: fc.boolean() });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 80 }), (steps) => {
        const queue = new TimerQueue();
        const fired: number[] = [];
        const timers = Array.from(
          { length: 16 },
          (_, index) =>
            new KernelTimer(queue, () => {
              fired.push(index);
              return null;
            }),
        );
        const armed = new Map<number, { deadline: bigint; order: number }>();
        steps.forEach(({ timer, deadline, cancel }, order) => {
          if (cancel) {
            expect(timers[timer]?.cancel()).toBe(armed.delete(timer));
          } else {
            timers[timer]?.start(deadline);
            armed.set(timer, { deadline, order });
          }
        });
        const expected = [...armed].sort(([, a], [, b]) => Number(a.deadline - b.deadline) || a.order - b.order);
        queue.advance(100n);
        expect(fired).toEqual(expected.map(([index]) => index));
      }),
    );
  });
});
