import type { Clock } from '../../server/kernel/clock.js';
import type { Kernel } from '../../server/kernel/kernel.js';
import type { Process } from '../../server/kernel/process/process.js';
import type { Thread } from '../../server/kernel/process/thread.js';
import type { Task } from '../../server/kernel/sched/task.js';
import type { MightSleep } from '../../server/kernel/sched/wait.js';
import type { Timer } from './system-calls.js';

const NANOSECONDS_PER_MILLISECOND = 1_000_000n;
/** Simulated time that passes while a task runs from one wait to the next: a guest's slice, for the most part. */
const RESUMPTION_NS = 3_000_000n;
/** Resumptions between two looks at the timers. */
const RESUMPTIONS = 2;

/** A clock that stands still unless it is moved. */
export class VirtualClock implements Clock {
  private time = 0n;

  now(): bigint {
    return this.time;
  }

  moveTo(time: bigint): void {
    if (time > this.time) this.time = time;
  }
}

interface Sleeper {
  readonly deadline: bigint;
  expire(): void;
}

const macrotask = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/**
 * Drives a kernel in simulated time: while tasks can run, they do, and each resumption takes a while; when none can, the
 * clock jumps to the next deadline. So a script with waits in it takes no time, and gives the same answers every time.
 */
export class VirtualTime {
  private readonly sleepers = new Set<Sleeper>();
  private callsUnderWay = 0;
  private driving = false;

  /** @param arrived whether every call under way is in the kernel: while a call or its answer is on its way, nothing runs */
  constructor(
    private readonly kernel: Kernel,
    private readonly clock: VirtualClock,
    private readonly arrived: (callsUnderWay: number) => boolean = () => true,
  ) {
    kernel.scheduler.onRunnable = () => this.drive();
  }

  /** Starts a system call; the promise is kept when it is over. */
  call<T>(process: Process, thread: Thread, label: string, body: (current: Task) => MightSleep<T>): Promise<T> {
    this.begun();
    return new Promise((resolve) => {
      const done = (result: T): void => {
        this.over();
        resolve(result);
      };
      this.kernel.scheduler.start(process, label, body, done, thread);
    });
  }

  /** A call has been made: time may have to pass for it to end. */
  begun(): void {
    this.callsUnderWay++;
    this.drive();
  }

  /** Whoever made it has its answer. */
  over(): void {
    this.callsUnderWay--;
  }

  timer(ms: number): Timer {
    const deadline = this.clock.now() + BigInt(ms) * NANOSECONDS_PER_MILLISECOND;
    let cancel = (): void => {};
    const expired = new Promise<void>((resolve) => {
      const sleeper: Sleeper = { deadline, expire: resolve };
      this.sleepers.add(sleeper);
      cancel = () => this.sleepers.delete(sleeper);
    });
    this.drive();
    return { expired, cancel };
  }

  private drive(): void {
    if (this.driving) return;
    this.driving = true;
    void this.run().finally(() => {
      this.driving = false;
    });
  }

  private async run(): Promise<void> {
    const { scheduler, timers } = this.kernel;
    for (;;) {
      // Whoever waits for a promise that has just been kept goes on before any time passes.
      await macrotask();
      if (!this.arrived(this.callsUnderWay)) continue;
      if (!scheduler.idle) {
        scheduler.run(RESUMPTIONS);
        this.clock.moveTo(this.clock.now() + BigInt(RESUMPTIONS) * RESUMPTION_NS);
      } else {
        const next = this.nextDeadline();
        if (next === null || (this.callsUnderWay === 0 && this.sleepers.size === 0)) return;
        this.clock.moveTo(next);
      }
      timers.advance(this.clock.now());
      this.expireSleepers();
    }
  }

  private nextDeadline(): bigint | null {
    let next = this.kernel.timers.nextDeadline();
    for (const { deadline } of this.sleepers) if (next === null || deadline < next) next = deadline;
    return next;
  }

  private expireSleepers(): void {
    for (const sleeper of [...this.sleepers]) {
      if (sleeper.deadline > this.clock.now()) continue;
      this.sleepers.delete(sleeper);
      sleeper.expire();
    }
  }
}
