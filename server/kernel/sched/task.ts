import type { Process } from '../process/process.js';
import type { Thread } from '../process/thread.js';
import type { JournalEntry } from '../sanitizer/findings.js';
import type { Scheduler } from './scheduler.js';
import { type MaySleep, type MightSleep, sleeps, type Wait, type WaitKind, type WaitQueue, type Wake } from './wait.js';

/** Where a task stands; `done` keeps nothing alive. */
export type TaskState =
  | { readonly kind: 'runnable'; readonly wake: Wake }
  | { readonly kind: 'running' }
  | { readonly kind: 'sleeping'; readonly wait: WaitKind; readonly queue: WaitQueue; readonly site: string }
  | { readonly kind: 'done' };

const RUNNING: TaskState = { kind: 'running' };
const DONE: TaskState = { kind: 'done' };

/** One thread's passage through the kernel: a system call, or a kernel worker. `current` is an argument here. */
export class Task {
  state: TaskState = { kind: 'runnable', wake: 'woken' };
  /** The call that this task has come to, as findings tell of it. */
  call: JournalEntry | null = null;
  private step: (wake: Wake) => Wait | null = () => null;

  constructor(
    readonly scheduler: Scheduler,
    readonly process: Process,
    readonly thread: Thread,
    /** The system call or worker, for reports: `ioctl KVM_RUN`. */
    readonly label: string,
  ) {}

  /** For the scheduler only: what the task is to do. `done` gets its result. */
  begin<T>(body: (current: Task) => MaySleep<T>, done: (result: T) => void): void {
    let steps: MightSleep<T> | null = null;
    this.step = (wake) => {
      try {
        if (steps === null) {
          this.process.mm?.provider.enter?.();
          const begun = body(this);
          if (!sleeps(begun)) return this.finish(begun, done);
          steps = begun;
        }
        const { done: over, value } = steps.next(wake);
        return over ? this.finish(value, done) : value;
      } catch (error) {
        this.process.mm?.provider.leave?.();
        this.end();
        throw error;
      }
    };
  }

  /** For the scheduler only: goes on until the next wait. Null when the task is done. */
  resume(wake: Wake): Wait | null {
    this.state = RUNNING;
    return this.step(wake);
  }

  private finish<T>(result: T, done: (result: T) => void): null {
    this.process.mm?.provider.leave?.();
    done(result);
    this.end();
    return null;
  }

  private end(): void {
    this.state = DONE;
    this.process.taskEnded(this);
    this.thread.deliver();
  }

  /** Makes a sleeping task runnable; no effect on one that does not sleep. */
  wake(): void {
    this.rouse('woken');
  }

  /** Sends a signal to this task's thread; it ends the wait that it may end. */
  signal(signo: number): void {
    this.thread.raise(signo);
    if (this.interrupted) this.rouse('signal');
  }

  /** True while the task sleeps in a wait that a pending signal ends. */
  get interrupted(): boolean {
    if (this.state.kind !== 'sleeping') return false;
    if (this.state.wait === 'interruptible') return this.thread.signalPending;
    return this.state.wait === 'killable' && this.thread.fatalSignalPending;
  }

  /** For the scheduler too: ends the present wait. */
  rouse(wake: Wake): void {
    if (this.state.kind !== 'sleeping') return;
    this.state.queue.remove(this);
    this.state = { kind: 'runnable', wake };
    this.scheduler.enqueue(this);
  }
}
