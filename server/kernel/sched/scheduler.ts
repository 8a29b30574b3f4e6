import type { Process } from '../process/process.js';
import { Thread } from '../process/thread.js';
import { Task } from './task.js';
import type { MaySleep, Wake } from './wait.js';

/** Chooses which of the runnable tasks goes next: an index below `runnable.length`. */
export type PickNext = (runnable: readonly Task[]) => number;

export interface SchedulerOptions {
  /** @default the order in which tasks became runnable */
  readonly pick?: PickNext;
  /**
   * Makes every lock point a scheduling point, also where the lock is free: with `pick`, a test drives every order of
   * the lock points.
   * @default false
   */
  readonly preemptAtLocks?: boolean;
}

/**
 * The one scheduler of a simulated host. It is deterministic: tasks run in the order in which they became runnable,
 * unless a test puts its own `pick` in place. Between two waits of a task nothing else runs.
 */
export class Scheduler {
  readonly preemptAtLocks: boolean;
  private readonly pick: PickNext | null;
  private runnable: Task[] = [];
  private running = 0;
  /** The task that runs now; null between tasks. */
  current: Task | null = null;
  private nextTid = 1000;

  /** Called when there is something to run and nobody drives the scheduler: whoever owns the host arranges a `run`. */
  onRunnable: () => void = () => {};

  constructor(options: SchedulerOptions = {}) {
    this.pick = options.pick ?? null;
    this.preemptAtLocks = options.preemptAtLocks ?? false;
  }

  get idle(): boolean {
    return this.runnable.length === 0;
  }

  /** A thread id that no thread of this host has had. */
  allocateTid(): number {
    return this.nextTid++;
  }

  /**
   * Starts a task. It runs at once up to its first wait, unless every lock point is a scheduling point. `done` is
   * called with its result, possibly before this returns.
   */
  start<T>(
    process: Process,
    label: string,
    body: (current: Task) => MaySleep<T>,
    done: (result: T) => void,
    thread: Thread = new Thread(this.allocateTid()),
  ): Task {
    const task = new Task(this, process, thread, label);
    process.tasks.push(task);
    task.begin(body, done);
    if (this.preemptAtLocks) this.enqueue(task);
    else this.advance(task, 'woken');
    return task;
  }

  /** For `Task` only: adds a task that has become runnable. */
  enqueue(task: Task): void {
    this.runnable.push(task);
    if (this.running === 0) this.onRunnable();
  }

  /**
   * Resumes runnable tasks until none is left or `limit` resumptions are done.
   * @returns true if there is more to run
   */
  run(limit = Number.POSITIVE_INFINITY): boolean {
    for (let resumed = 0; resumed < limit && this.runnable.length > 0; resumed++) {
      const [task] = this.runnable.splice(this.pick === null ? 0 : this.pick(this.runnable), 1);
      if (task?.state.kind === 'runnable') this.advance(task, task.state.wake);
    }
    return this.runnable.length > 0;
  }

  private advance(task: Task, wake: Wake): void {
    const interrupted = this.current;
    this.current = task;
    this.running++;
    try {
      const wait = task.resume(wake);
      if (wait === null) return;
      if (wait.kind === 'resched') {
        task.state = { kind: 'runnable', wake: 'woken' };
        this.runnable.push(task);
        return;
      }
      task.state = { kind: 'sleeping', wait: wait.kind, queue: wait.queue, site: wait.site };
      wait.queue.enqueue(task);
      // A signal that came before the wait ends it at once, as for a task that is about to call schedule().
      if (task.interrupted) task.rouse('signal');
    } finally {
      this.current = interrupted;
      this.running--;
      if (this.running === 0 && this.runnable.length > 0) this.onRunnable();
    }
  }
}
