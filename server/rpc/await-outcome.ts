import { Failure, type Result } from '../kernel/failure.js';
import { type MightSleep, WaitQueue } from '../kernel/sched/wait.js';

/**
 * Lets a task of the kernel wait for something outside of it, which goes on if the wait is interrupted.
 * @param site what waits, for those who look at the task
 * @returns EINTR where a signal has come
 */
export function* outcomeOf<T>(site: string, promise: Promise<T>): MightSleep<Result<T>> {
  const queue = new WaitQueue();
  const outcome: { result: Result<T> | undefined } = { result: undefined };
  const settle = (result: Result<T>): void => {
    outcome.result = result;
    queue.wakeAll();
  };
  promise.then(settle, (error: unknown) =>
    settle(new Failure('EIO', 'KERNEL_OOPS', site, { message: error instanceof Error ? error.message : String(error) })),
  );
  while (outcome.result === undefined)
    if ((yield { kind: 'interruptible', queue, site }) === 'signal') return new Failure('EINTR', 'SIGNAL', site);
  return outcome.result;
}
