import { Failure, type Result } from '../failure.js';
import type { Kernel } from '../kernel.js';
import type { Task } from '../sched/task.js';
import { type MightSleep, WaitQueue } from '../sched/wait.js';
import { KernelTimer } from '../timer.js';
import { type File, POLL } from './file.js';

/** `struct pollfd`. */
export interface PollRequest {
  readonly fd: number;
  /** Bits of POLL that are waited for; ERR, HUP and NVAL always are. */
  readonly events: number;
}

/** The events that come unasked. */
const ALWAYS = POLL.ERR | POLL.HUP;

const NANOSECONDS_PER_MILLISECOND = 1_000_000n;

/**
 * `do_sys_poll`: the events of each descriptor, in the order asked for, as soon as there is one, or when the time is up.
 * A descriptor below 0 is left out (0), one that is not open gives NVAL. EINTR when a signal ends the wait.
 * @param timeoutMs below 0: no limit
 */
export function* poll(
  kernel: Kernel,
  current: Task,
  requests: readonly PollRequest[],
  timeoutMs: number,
): MightSleep<Result<number[]>> {
  const files = requests.map(({ fd }) => (fd < 0 ? null : (current.process.files.lookup(fd)?.get() ?? undefined)));
  const look = (): number[] => requests.map(({ events }, index) => ready(files[index], events));
  const woken = new WaitQueue();
  let expired = timeoutMs === 0;
  const timer = new KernelTimer(kernel.timers, () => {
    expired = true;
    woken.wakeAll();
    return null;
  });
  const wake = (): boolean => {
    woken.wakeAll();
    return false;
  };
  const unhook = files.map((file) => file?.ops.pollQueue?.addCallback(wake, false));
  if (timeoutMs > 0) timer.start(kernel.clock.now() + BigInt(timeoutMs) * NANOSECONDS_PER_MILLISECOND);
  let interrupted = false;
  let found = look();
  while (!expired && !interrupted && found.every((events) => events === 0)) {
    interrupted = current.thread.signalPending || (yield { kind: 'interruptible', queue: woken, site: 'do_poll' }) === 'signal';
    found = look();
  }
  timer.cancel();
  for (const remove of unhook) remove?.();
  for (const file of files) if (file) yield* file.put(current);
  return interrupted && found.every((events) => events === 0) ? new Failure('EINTR', 'SIGNAL_PENDING', 'do_sys_poll') : found;
}

const ready = (file: File | null | undefined, events: number): number => {
  if (file === null) return 0;
  if (file === undefined) return POLL.NVAL;
  return (file.ops.poll === undefined ? POLL.IN | POLL.OUT : file.ops.poll()) & (events | ALWAYS);
};
