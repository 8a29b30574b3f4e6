export const SIGKILL = 9;

const NONE: ReadonlySet<number> = new Set();

/**
 * What a thread keeps between its system calls: its id, the signals that are pending on it and those it blocks. A
 * signal that is not blocked and finds the thread in user mode runs its handler there and is gone.
 */
export class Thread {
  blocked: ReadonlySet<number> = NONE;
  /** Null as long as there has been none, as in most threads: one is made for each call that names none. */
  private raised: Set<number> | null = null;

  constructor(readonly tid: number) {}

  /** A signal becomes pending. */
  raise(signo: number): void {
    this.raised ??= new Set();
    this.raised.add(signo);
  }

  get pending(): ReadonlySet<number> {
    return this.raised ?? NONE;
  }

  /** `signal_pending(current)`. */
  get signalPending(): boolean {
    if (this.raised === null) return false;
    for (const signo of this.raised) if (signo === SIGKILL || !this.blocked.has(signo)) return true;
    return false;
  }

  /** `fatal_signal_pending(current)`. */
  get fatalSignalPending(): boolean {
    return this.raised?.has(SIGKILL) ?? false;
  }

  /** Return to user mode: handlers of unblocked signals run, which takes the signals away. */
  deliver(): void {
    if (this.raised === null) return;
    for (const signo of this.raised) if (signo !== SIGKILL && !this.blocked.has(signo)) this.raised.delete(signo);
  }
}
