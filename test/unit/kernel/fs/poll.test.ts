import { describe, expect, it } from 'vitest';
import { DEFAULT_HOST_CONFIG } from '../../../../server/kernel/config.js';
import { POLL } from '../../../../server/kernel/fs/file.js';
import { poll } from '../../../../server/kernel/fs/poll.js';
import { createHost } from '../../../../server/kernel/kvm/host.js';
import type { Task } from '../../../../server/kernel/sched/task.js';
import type { MightSleep } from '../../../../server/kernel/sched/wait.js';
import { close } from '../../../../server/kernel/syscalls/descriptors.js';
import { eventfd, pipe } from '../../../../server/kernel/syscalls/events.js';
import { read, write } from '../../../../server/kernel/syscalls/io.js';
import { errnoOf } from '../run-task.js';

const SIGUSR1 = 10;
const MILLISECOND = 1_000_000n;
const FOREVER = -1;

const setUp = () => {
  let time = 0n;
  const kernel = createHost(DEFAULT_HOST_CONFIG, { clock: { now: () => time } });
  const process = kernel.spawn(null);
  const start = <T>(body: (current: Task) => MightSleep<T>) => {
    const outcome: { result?: T } = {};
    const task = kernel.scheduler.start(process, 'test', body, (result) => {
      outcome.result = result;
    });
    kernel.scheduler.run();
    return { task, result: () => errnoOf(outcome.result) };
  };
  const number = (body: (current: Task) => MightSleep<unknown>): number => {
    const result = start(body).result();
    if (typeof result !== 'number') throw new Error(`no descriptor: ${String(result)}`);
    return result;
  };
  const event = number((current) => eventfd(current, 0, 0));
  const startPoll = (fds: readonly (readonly [fd: number, events: number])[], timeout: number) =>
    start((current) =>
      poll(
        kernel,
        current,
        fds.map(([fd, events]) => ({ fd, events })),
        timeout,
      ),
    );
  const signalEvent = () => start((current) => write(current, event, Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0)));
  const pass = (ms: number) => {
    time += BigInt(ms) * MILLISECOND;
    kernel.timers.advance(time);
    kernel.scheduler.run();
  };
  return { kernel, process, start, event, startPoll, signalEvent, pass };
};

describe('poll', () => {
  it('answers at once when there is something, each descriptor for itself', () => {
    const { startPoll, event, signalEvent } = setUp();
    expect(startPoll([[event, POLL.IN | POLL.OUT]], FOREVER).result()).toEqual([POLL.OUT]);
    signalEvent();
    const found = startPoll(
      [
        [event, POLL.IN],
        [event, POLL.OUT],
        [-1, POLL.IN],
        [999, POLL.IN],
      ],
      FOREVER,
    );
    expect(found.result()).toEqual([POLL.IN, POLL.OUT, 0, POLL.NVAL]);
  });

  it('with no time to wait answers with nothing', () => {
    const { startPoll, event } = setUp();
    expect(startPoll([[event, POLL.IN]], 0).result()).toEqual([0]);
  });

  it('waits for the event it asks for', () => {
    const { startPoll, event, signalEvent } = setUp();
    const waiting = startPoll([[event, POLL.IN]], FOREVER);
    expect(waiting.result()).toBeUndefined();
    signalEvent();
    expect(waiting.result()).toEqual([POLL.IN]);
  });

  it('ends with nothing when the time is up, and not before', () => {
    const { startPoll, event, pass, kernel } = setUp();
    const waiting = startPoll([[event, POLL.IN]], 20);
    pass(19);
    expect(waiting.result()).toBeUndefined();
    pass(1);
    expect(waiting.result()).toEqual([0]);
    expect(kernel.timers.nextDeadline()).toBeNull();
  });

  it('leaves no timer behind when the event comes first', () => {
    const { startPoll, event, signalEvent, kernel } = setUp();
    startPoll([[event, POLL.IN]], 20);
    signalEvent();
    expect(kernel.timers.nextDeadline()).toBeNull();
  });

  it('ends with EINTR when a signal comes', () => {
    const { startPoll, event, kernel } = setUp();
    const waiting = startPoll([[event, POLL.IN]], FOREVER);
    waiting.task.signal(SIGUSR1);
    kernel.scheduler.run();
    expect(waiting.result()).toBe('EINTR');
  });

  it('keeps the file that is closed meanwhile until it is over', () => {
    const { start, startPoll, kernel } = setUp();
    const made = start((current) => pipe(kernel, current, 0)).result();
    if (typeof made !== 'object' || !('reader' in made)) throw new Error('no pipe');
    const waiting = startPoll([[made.reader, POLL.IN]], FOREVER);
    start((current) => close(current, made.reader));
    expect(waiting.result()).toBeUndefined();
    start((current) => close(current, made.writer));
    expect(waiting.result()).toEqual([POLL.HUP]);
  });

  it('of an eventfd waits again after somebody else has read it', () => {
    const { start, startPoll, event, signalEvent } = setUp();
    signalEvent();
    start((current) => read(current, event, 8));
    expect(startPoll([[event, POLL.IN]], FOREVER).result()).toBeUndefined();
  });
});
