import { Dram } from '../../../server/hardware/dram.js';
import type { Failure } from '../../../server/kernel/failure.js';
import { AddressSpace } from '../../../server/kernel/mm/address-space.js';
import { PageAllocator } from '../../../server/kernel/mm/page.js';
import { Process } from '../../../server/kernel/process/process.js';
import type { Thread } from '../../../server/kernel/process/thread.js';
import { Scheduler } from '../../../server/kernel/sched/scheduler.js';
import type { Task } from '../../../server/kernel/sched/task.js';
import type { MightSleep } from '../../../server/kernel/sched/wait.js';

/** A call under way: `result` is there once it is over. */
export interface Running<T> {
  readonly task: Task;
  result?: T;
}

/** A process with memory on a machine of 1,024 frames, and ways to make calls in it; no KVM. */
export const createTestProcess = () => {
  const dram = new Dram(1, 1024);
  const pages = new PageAllocator(dram);
  const scheduler = new Scheduler();
  const process = new Process(100, new AddressSpace(pages));
  const start = <T>(body: (current: Task) => MightSleep<T>, thread?: Thread): Running<T> => {
    const outcome: { result?: T } = {};
    const task = scheduler.start(
      process,
      'test',
      body,
      (result) => {
        outcome.result = result;
      },
      thread,
    );
    return Object.defineProperty({ task }, 'result', { get: () => outcome.result, enumerable: true });
  };
  /** For a call that does not wait, or whose wait is over when the scheduler has run. */
  const call = <T>(body: (current: Task) => MightSleep<T>): T => {
    const running = start(body);
    scheduler.run();
    if (running.task.state.kind !== 'done' || running.result === undefined) throw new Error('the call has not ended');
    return running.result;
  };
  return { dram, pages, scheduler, process, start, call };
};

/** The errno of a failure, or the value itself: for comparisons that show both. */
export const errnoOf = <T>(result: T | Failure): T | string =>
  typeof result === 'object' && result !== null && 'errno' in result ? result.errno : result;

/** A call that never waits, in the shape of one that may. */
export const atOnce = <T>(body: (current: Task) => T) =>
  function* call(current: Task): MightSleep<T> {
    return body(current);
  };
