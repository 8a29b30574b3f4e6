export const SIGKILL = 9;

/**
 * What a thread keeps between its system calls: its id, the signals that are pending on it and those it blocks. A
 * signal that is not blocked and finds the thread in user mode runs its handler there and is gone.
 */
export class Thread {
  readonly pending = new Set<number>();
  blocked: ReadonlySet<number> = new Set();

  constructor(readonly tid: number) {}

  /** `signal_pending(current)`. */
  get signalPending(): boolean {
    for (const signo of this.pending) if (signo === SIGKILL || !this.blocked.has(signo)) return true;
    return false;
  }

  /** `fatal_signal_pending(current)`. */
  get fatalSignalPending(): boolean {
    return this.pending.has(SIGKILL);
  }

  /** Return to user mode: handlers of unblocked signals run, which takes the signals away. */
  deliver(): void {
    for (const signo of this.pending) if (signo !== SIGKILL && !this.blocked.has(signo)) this.pending.delete(signo);
  }
}
