import { Failure } from '../failure.js';
import type { Task } from './task.js';
import { type MaySleep, type MightSleep, RESCHED, sleeps, stepsOf, WaitQueue } from './wait.js';

/** `struct mutex`: sleeping lock with an owner; waiters get it in the order in which they came. */
export class Mutex {
  private owner: Task | null = null;
  private readonly waiters = new WaitQueue();

  /** @param name as the kernel writes it, for example `kvm->lock` */
  constructor(readonly name: string) {}

  get locked(): boolean {
    return this.owner !== null;
  }

  heldBy(task: Task): boolean {
    return this.owner === task;
  }

  /** `mutex_trylock`; also the fast path of every other form, unless lock points are scheduling points. */
  tryLock(current: Task): boolean {
    if (this.owner !== null) return false;
    this.owner = current;
    return true;
  }

  /** `mutex_lock`. */
  *lock(current: Task): MightSleep<void> {
    if (current.scheduler.preemptAtLocks) yield RESCHED;
    while (!this.tryLock(current)) {
      if (this.owner === current) throw new Error(`${this.name} locked twice by ${current.label}`);
      yield { kind: 'uninterruptible', queue: this.waiters, site: `mutex_lock(${this.name})` };
    }
  }

  /** `mutex_lock_killable`: EINTR when the process is killed while waiting. */
  *lockKillable(current: Task): MightSleep<Failure | null> {
    if (current.scheduler.preemptAtLocks) yield RESCHED;
    while (!this.tryLock(current)) {
      if (this.owner === current) throw new Error(`${this.name} locked twice by ${current.label}`);
      const wake = yield { kind: 'killable', queue: this.waiters, site: `mutex_lock_killable(${this.name})` };
      if (wake === 'signal') return new Failure('EINTR', 'KILLED_WAITING_FOR_LOCK', 'mutex_lock_killable', { lock: this.name });
    }
    return null;
  }

  /** Runs `body` between `mutex_lock` and `mutex_unlock`: at once where nobody has the lock and `body` need not wait. */
  with<T>(current: Task, body: () => MaySleep<T>): MaySleep<T> {
    return this.lockedAtOnce(current) ? this.runLocked(current, body) : this.lockAndRun(current, body);
  }

  /** The same with `mutex_lock_killable`. */
  withKillable<T>(current: Task, body: () => MaySleep<T>): MaySleep<T | Failure> {
    return this.lockedAtOnce(current) ? this.runLocked(current, body) : this.lockKillableAndRun(current, body);
  }

  private lockedAtOnce(current: Task): boolean {
    return !current.scheduler.preemptAtLocks && this.tryLock(current);
  }

  private *lockAndRun<T>(current: Task, body: () => MaySleep<T>): MightSleep<T> {
    yield* this.lock(current);
    return yield* stepsOf(this.runLocked(current, body));
  }

  private *lockKillableAndRun<T>(current: Task, body: () => MaySleep<T>): MightSleep<T | Failure> {
    const killed = yield* this.lockKillable(current);
    return killed ?? (yield* stepsOf(this.runLocked(current, body)));
  }

  private runLocked<T>(current: Task, body: () => MaySleep<T>): MaySleep<T> {
    let result: MaySleep<T>;
    try {
      result = body();
    } catch (error) {
      this.unlock(current);
      throw error;
    }
    if (sleeps(result)) return this.unlockAfter(current, result);
    this.unlock(current);
    return result;
  }

  private *unlockAfter<T>(current: Task, steps: MightSleep<T>): MightSleep<T> {
    try {
      return yield* steps;
    } finally {
      this.unlock(current);
    }
  }

  /** `mutex_unlock`. */
  unlock(current: Task): void {
    if (this.owner !== current) throw new Error(`${this.name} unlocked by ${current.label}, which does not hold it`);
    this.owner = null;
    this.waiters.wakeOne();
  }
}
