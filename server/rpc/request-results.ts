import { Failure, type Result } from '../kernel/failure.js';

/** Results that a process may have outstanding: executed, but not acknowledged by their caller. */
export const RESULTS_MAX = 1024;

/** How far a call with a request id has come. */
type State<Reply> =
  | { readonly kind: 'running'; readonly waiting: ((reply: Reply) => void)[] }
  | { readonly kind: 'done'; readonly reply: Reply };

interface Entry<Reply> {
  /** Path of the method: a call of another one under the same id is a mistake, not a repetition. */
  readonly path: string;
  state: State<Reply>;
}

/**
 * Executes a call with a request id once. Ids are numbers that a process counts up. Whoever asks again under the same
 * id, because a reply was lost or the call was cancelled, gets the reply of the one execution, whatever the request says
 * the second time. To acknowledge N is to say that every reply up to N has arrived, but for those of ids that are named;
 * they are forgotten, and the ids refused. Naming some lets one KVM_RUN last while thousands of other calls come and go.
 */
export class RequestResults<Reply> {
  private readonly entries = new Map<number, Entry<Reply>>();
  private acknowledged = 0;
  /** Ids up to `acknowledged` whose replies have not arrived. */
  private outstanding: ReadonlySet<number> = new Set();

  /**
   * @returns 'execute' if the caller has to execute and then `finish`; 'pending' if `deliver` will be called, or has
   *   been, with the reply of the execution
   */
  begin(id: number, path: string, deliver: (reply: Reply) => void): Result<'execute' | 'pending'> {
    const refuse = (errno: 'EINVAL' | 'EAGAIN', reason: string, allowed: string): Failure =>
      new Failure(errno, reason, 'simkvmd', { field: 'simkvm-request-id', given: String(id), allowed });
    if (!Number.isSafeInteger(id) || id < 1) return refuse('EINVAL', 'REQUEST_ID_INVALID', 'a decimal number from 1 to 2^53-1');
    if (this.hasArrived(id)) return refuse('EINVAL', 'REQUEST_ACKNOWLEDGED', `a number above ${this.acknowledged}`);
    const entry = this.entries.get(id);
    if (entry === undefined) {
      if (this.entries.size >= RESULTS_MAX)
        return refuse('EAGAIN', 'TOO_MANY_RESULTS', `at most ${RESULTS_MAX} results that are not acknowledged`);
      this.entries.set(id, { path, state: { kind: 'running', waiting: [] } });
      return 'execute';
    }
    if (entry.path !== path) return refuse('EINVAL', 'REQUEST_ID_REUSED', 'an id of its own for each call');
    if (entry.state.kind === 'done') deliver(entry.state.reply);
    else entry.state.waiting.push(deliver);
    return 'pending';
  }

  finish(id: number, reply: Reply): void {
    const entry = this.entries.get(id);
    if (entry?.state.kind !== 'running') return;
    const { waiting } = entry.state;
    entry.state = { kind: 'done', reply };
    for (const deliver of waiting) deliver(reply);
    if (this.hasArrived(id)) this.entries.delete(id);
  }

  /** Every reply up to `id` has arrived, but those of the ids `outstanding`. */
  acknowledge(id: number, outstanding: readonly number[] = []): void {
    if (!(id > this.acknowledged)) return;
    this.acknowledged = id;
    this.outstanding = new Set(outstanding);
    for (const [key, entry] of this.entries) if (entry.state.kind === 'done' && this.hasArrived(key)) this.entries.delete(key);
  }

  private hasArrived(id: number): boolean {
    return id <= this.acknowledged && !this.outstanding.has(id);
  }

  get size(): number {
    return this.entries.size;
  }
}
