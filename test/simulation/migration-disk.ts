import { Failure } from '../../server/kernel/failure.js';
import type { Ledger, LedgerEntry } from '../../server/migration/ledger.js';

const FULL = new Failure('EIO', 'LEDGER_UNWRITABLE', 'test');

/** A store that survives its daemon. */
export class Disk implements Ledger {
  readonly entries: LedgerEntry[] = [];
  readonly committed = new Set<string>();
  full = false;

  get records(): readonly LedgerEntry[] {
    return this.entries;
  }

  get unwritable(): Failure | null {
    return this.full ? FULL : null;
  }

  constructor(readonly id: string | null) {}

  record(entry: LedgerEntry): Failure | null {
    if (this.full) return FULL;
    this.entries.push(entry);
    if (entry.kind === 'committed' && this.id !== null) this.committed.add(entry.session);
    return null;
  }

  hasCommitted(session: string): boolean {
    return this.committed.has(session);
  }

  forget(session: string): void {
    this.committed.delete(session);
  }
}
