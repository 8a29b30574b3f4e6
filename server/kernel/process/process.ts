import { FdTable } from '../fs/fd-table.js';
import { KmemOwner } from '../kmem.js';
import type { AddressSpace } from '../mm/address-space.js';
import type { Task } from '../sched/task.js';
import { type MightSleep, WaitQueue } from '../sched/wait.js';
import { SIGKILL, Thread } from './thread.js';

export type ProcessState = { readonly kind: 'running' } | { readonly kind: 'exiting' } | { readonly kind: 'exited' };

/** `struct task_struct` of a thread group: what a client attaches to. Owns descriptors, memory and threads. */
export class Process {
  state: ProcessState = { kind: 'running' };
  /** Its calls under way, in the order in which they began. */
  readonly tasks: Task[] = [];
  readonly kmem: KmemOwner;
  private readonly threads = new Map<number, Thread>();
  private readonly taskDone = new WaitQueue();

  constructor(
    readonly pid: number,
    /** Null for a kernel thread. */
    readonly mm: AddressSpace | null,
    readonly files: FdTable = new FdTable(),
    readonly parent: Process | null = null,
    readonly name = `process ${pid}`,
  ) {
    this.kmem = new KmemOwner(name);
  }

  /** The thread with this id, made when it is first named. */
  thread(tid: number): Thread {
    let thread = this.threads.get(tid);
    if (thread === undefined) {
      thread = new Thread(tid);
      this.threads.set(tid, thread);
    }
    return thread;
  }

  /** True if a call has named this thread, or one of it runs. */
  hasThread(tid: number): boolean {
    if (this.threads.has(tid)) return true;
    for (const task of this.tasks) if (task.thread.tid === tid) return true;
    return false;
  }

  /**
   * Sends a signal: to the calls of one thread, or of all. A thread that is in user mode and does not block it runs its
   * handler there, so nothing stays.
   * @returns false if no thread with that id is known
   */
  signal(signo: number, tid?: number): boolean {
    let known = tid === undefined;
    for (const task of [...this.tasks]) {
      if (tid !== undefined && task.thread.tid !== tid) continue;
      known = true;
      task.signal(signo);
    }
    for (const thread of this.threads.values()) {
      if (tid !== undefined && thread.tid !== tid) continue;
      known = true;
      if (thread.blocked.has(signo)) thread.raise(signo);
    }
    return known;
  }

  /**
   * `do_exit`: kills what still runs, then gives up memory and, after it, descriptors, as the kernel does. `current` is
   * not one of the process's own tasks.
   */
  *exit(current: Task): MightSleep<void> {
    if (this.state.kind !== 'running') return;
    this.state = { kind: 'exiting' };
    this.signal(SIGKILL);
    while (this.tasks.length > 0) yield { kind: 'uninterruptible', queue: this.taskDone, site: 'do_exit' };
    this.mm?.exit();
    yield* this.files.closeAll(current);
    this.state = { kind: 'exited' };
  }

  /** For the scheduler: a task of this process has ended. */
  taskEnded(task: Task): void {
    // From the end: a call that did not wait is the last.
    const index = this.tasks.lastIndexOf(task);
    if (index !== -1) this.tasks.splice(index, 1);
    if (this.tasks.length === 0) this.taskDone.wakeAll();
  }
}
