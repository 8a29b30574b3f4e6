import type { Failure } from '../kernel/failure.js';

/** Something that must outlive the daemon. */
export type LedgerEntry =
  /** This host owns the guest of the session. */
  | { readonly kind: 'committed'; readonly session: string }
  /** An operator has decided what the protocol could not: the other host may have a copy that runs. */
  | { readonly kind: 'overridden'; readonly session: string; readonly decision: 'run' | 'discard' };

/** The store of `--state-dir`. */
export interface Ledger {
  /** Same for as long as the store lives; null: nothing survives a restart, so that 'unknown' proves nothing. */
  readonly id: string | null;
  /** What it remembers: operators' decisions, then Commits that sources have not settled. */
  readonly records: readonly LedgerEntry[];
  /** EIO: an entry could not be recorded, and it still cannot be written. */
  readonly unwritable: Failure | null;
  /** Null: the entry is on disk. EIO: it is not. */
  record(entry: LedgerEntry): Failure | null;
  /** Whether this host has committed to the session, also before a restart. */
  hasCommitted(session: string): boolean;
  /** The source knows: the record is not needed any more, and harms nobody if it is kept all the same. */
  forget(session: string): void;
}
