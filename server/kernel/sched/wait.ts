import { LazySet } from '../lazy-set.js';
import type { Task } from './task.js';

/**
 * The three kinds of wait of the kernel: nothing but the wake-up ends an uninterruptible one, a fatal signal ends a
 * killable one, any unmasked signal an interruptible one.
 */
export type WaitKind = 'uninterruptible' | 'killable' | 'interruptible';

/** What a task hands to the scheduler when it cannot go on: a wait on a queue, or its turn (cond_resched). */
export type Wait =
  | { readonly kind: WaitKind; readonly queue: WaitQueue /** the real function that waits here */; readonly site: string }
  | { readonly kind: 'resched' };

/** How a wait ended. */
export type Wake = 'woken' | 'signal';

/** A function that may sleep; driven by the scheduler, one step from wait to wait. */
export type MightSleep<T> = Generator<Wait, T, Wake>;

/** What a function that usually need not wait returns: its result at once, or the steps that lead to it. */
export type MaySleep<T> = T | MightSleep<T>;

/** True for the steps of a function that has not come to its result yet. */
export const sleeps = <T>(result: MaySleep<T>): result is MightSleep<T> =>
  typeof result === 'object' && result !== null && Symbol.iterator in result && 'next' in result;

/** What comes after a function that usually need not wait: at once where it did not. */
export const andThen = <T, U>(result: MaySleep<T>, next: (value: T) => U): MaySleep<U> =>
  sleeps(result) ? afterwards(result, next) : next(result);

function* afterwards<T, U>(steps: MightSleep<T>, next: (value: T) => U): MightSleep<U> {
  return next(yield* steps);
}

/** The steps of a function that usually need not wait, for one that waits anyway. */
export function* stepsOf<T>(result: MaySleep<T>): MightSleep<T> {
  return sleeps(result) ? yield* result : result;
}

export const RESCHED: Wait = { kind: 'resched' };

/**
 * Called on a wake-up in place of a sleeping task (`wait_queue_entry::func`), with the poll events that it is about; true
 * if it consumed an exclusive wake-up.
 */
export type WakeFunction = (events: number) => boolean;

/** A wake-up that says nothing about its cause: every event may have happened. */
const ANY_EVENT = ~0;

interface CallbackEntry {
  readonly wake: WakeFunction;
  readonly exclusive: boolean;
}

const NO_CALLBACKS: readonly CallbackEntry[] = [];

/** `struct wait_queue_head`: tasks that sleep in order of arrival, and callbacks, exclusive priority ones first. */
export class WaitQueue {
  private readonly sleepers = new LazySet<Task>();
  private callbacks: readonly CallbackEntry[] = NO_CALLBACKS;

  /** For the scheduler only: parks a task. */
  enqueue(task: Task): void {
    this.sleepers.add(task);
  }

  /** For the scheduler only: takes a task out again, woken or interrupted. */
  remove(task: Task): boolean {
    return this.sleepers.delete(task);
  }

  get empty(): boolean {
    return this.sleepers.size === 0;
  }

  /** True while an exclusive callback is installed (`add_wait_queue_priority_exclusive`). */
  get hasExclusive(): boolean {
    return this.callbacks.some((entry) => entry.exclusive);
  }

  /** Installs a callback; an exclusive one goes first. Returns the function that removes it. */
  addCallback(wake: WakeFunction, exclusive: boolean): () => void {
    const entry: CallbackEntry = { wake, exclusive };
    this.callbacks = exclusive ? [entry, ...this.callbacks] : [...this.callbacks, entry];
    return () => {
      this.callbacks = this.callbacks.filter((other) => other !== entry);
    };
  }

  /** Wakes the task that has slept longest. */
  wakeOne(): void {
    if (this.sleepers.size === 0) return;
    const [first] = this.sleepers;
    first?.wake();
  }

  /** Runs the callbacks, until an exclusive one has consumed the wake-up, then wakes every sleeper. */
  wakeAll(events: number = ANY_EVENT): void {
    for (const entry of this.callbacks) if (entry.wake(events) && entry.exclusive) return;
    if (this.sleepers.size > 0) for (const task of [...this.sleepers]) task.wake();
  }
}
