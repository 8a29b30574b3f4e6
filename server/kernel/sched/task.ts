import type { Process } from '../process/process.js';
import type { Thread } from '../process/thread.js';
import type { JournalEntry } from '../sanitizer/findings.js';
import type { Scheduler } from './scheduler.js';
import type { MightSleep, Wait, WaitKind, WaitQueue, Wake } from './wait.js';

/** Where a task stands; `done` keeps nothing alive. */
export type TaskState =
  | { readonly kind: 'runnable'; readonly wake: Wake }
  | { readonly kind: 'running' }
  | { readonly kind: 'sleeping'; readonly wait: WaitKind; readonly queue: WaitQueue; readonly site: string }
  | { readonly kind: 'done' };

/** One thread's passage through the kernel: a system call, or a kernel worker. `current` is an argument here. */
export class Task {
  state: TaskState = { kind: 'runnable', wake: 'woken' };
  /** The call that this task has come to, as findings tell of it. */
  call: JournalEntry | null = null;
  private generator: MightSleep<void> | null = null;

  constructor(
    readonly scheduler: Scheduler,
    readonly process: Process,
    readonly thread: Thread,
    /** The system call or worker, for reports: `ioctl KVM_RUN`. */
    readonly label: string,
    private readonly steps: (task: Task) => MightSleep<void>,
  ) {}

  /** For the scheduler only: goes on until the next wait. Null when the task is done. */
  resume(wake: Wake): Wait | null {
    this.state = { kind: 'running' };
    this.generator ??= this.steps(this);
    const step = this.generator.next(wake);
    if (!step.done) return step.value;
    this.state = { kind: 'done' };
    return null;
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
