import type { Kernel } from '../kernel/kernel.js';

const NS_PER_MS = 1_000_000n;
/** Time that tasks get between two turns of the event loop. One slice of a guest may take as long alone. */
const TURN_NS = 2n * NS_PER_MS;
/** Longest sleep that setTimeout keeps to. */
const SLEEP_MAX_MS = 2 ** 31 - 1;

/**
 * Drives a kernel from the event loop: whatever becomes runnable is run in turns, with the network served in between, so
 * a guest in an endless loop delays nobody; and timers fire when their time has come by the kernel's clock.
 */
export const startPump = (kernel: Kernel): void => {
  const { scheduler, timers, clock, findings } = kernel;
  let scheduled = false;
  let sleeping: NodeJS.Timeout | null = null;

  const turn = (): void => {
    scheduled = false;
    const end = clock.now() + TURN_NS;
    timers.advance(clock.now());
    let more = true;
    while (more && clock.now() < end) more = runOne();
    if (more) schedule();
    sleepUntilDeadline();
  };
  /** A kernel thread that throws ends alone; a call's own exceptions are the dispatch's. */
  const runOne = (): boolean => {
    try {
      return scheduler.run(1);
    } catch (error) {
      findings.report('kernel', 'KERNEL_OOPS', error instanceof Error ? error.message : String(error));
      return !scheduler.idle;
    }
  };
  const schedule = (): void => {
    if (scheduled) return;
    scheduled = true;
    setImmediate(turn);
  };
  const sleepUntilDeadline = (): void => {
    if (sleeping !== null) clearTimeout(sleeping);
    sleeping = null;
    const deadline = timers.nextDeadline();
    if (deadline === null || scheduled) return;
    const milliseconds = Number((deadline - clock.now() + NS_PER_MS - 1n) / NS_PER_MS);
    sleeping = setTimeout(schedule, Math.min(Math.max(milliseconds, 0), SLEEP_MAX_MS));
  };

  scheduler.onRunnable = schedule;
  timers.onEarlier = sleepUntilDeadline;
};
