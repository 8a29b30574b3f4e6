import type { Kernel } from '../kernel/kernel.js';

/** Resumptions of tasks between two turns of the event loop: enough to be fast, few enough to answer in between. */
const RESUMPTIONS_PER_TURN = 64;

/**
 * Drives a kernel's scheduler from the event loop: whatever becomes runnable is run in turns, with the network served
 * in between, so a guest in an endless loop delays nobody.
 */
export const startPump = (kernel: Kernel): void => {
  let scheduled = false;
  const turn = (): void => {
    scheduled = false;
    if (kernel.scheduler.run(RESUMPTIONS_PER_TURN)) schedule();
  };
  const schedule = (): void => {
    if (scheduled) return;
    scheduled = true;
    setImmediate(turn);
  };
  kernel.scheduler.onRunnable = schedule;
};
