import { MigrationHalf, type MigrationInit, MigrationStanding } from '../../../gen/messages.js';
import type { Ledger, LedgerEntry } from '../../migration/ledger.js';

/** What the ledger knows of a session from before this start of the daemon. */
export interface RememberedSession {
  readonly ordinal: number;
  readonly entries: readonly LedgerEntry[];
}

/** By session, in the order of the ledger; ordinals begin at 1. */
export const rememberedSessions = ({ records }: Ledger): ReadonlyMap<string, RememberedSession> => {
  const sessions = new Map<string, RememberedSession>();
  for (const entry of records) {
    const { ordinal, entries } = sessions.get(entry.session) ?? { ordinal: sessions.size + 1, entries: [] };
    sessions.set(entry.session, { ordinal, entries: [...entries, entry] });
  }
  return sessions;
};

const wordsOf = (entry: LedgerEntry): string =>
  entry.kind === 'committed'
    ? 'this host had committed before this start of the daemon, with whose end its guests were lost'
    : `an operator had decided before this start of the daemon: ${entry.decision}`;

/**
 * Such a session as those see it who ask for it. A Commit that is still there has not been settled: its source may be in doubt,
 * and is told of it when it asks. Null: it has been settled since.
 */
export const rememberedView = (session: string, { entries }: RememberedSession, ledger: Ledger): MigrationInit | null => {
  const committed = ledger.hasCommitted(session);
  const told = entries.filter(({ kind }) => kind === 'overridden' || committed);
  if (told.length === 0) return null;
  return {
    session,
    half: committed ? MigrationHalf.MIGRATION_HALF_DESTINATION : MigrationHalf.MIGRATION_HALF_UNSPECIFIED,
    standing: committed ? MigrationStanding.MIGRATION_STANDING_COMMITTED : MigrationStanding.MIGRATION_STANDING_UNKNOWN,
    phase: committed ? 'committed' : 'overridden',
    reason: committed ? 'DAEMON_RESTARTED' : 'OPERATOR_OVERRIDE',
    detail: told.map(wordsOf).join('; '),
    closed: !committed,
  };
};
