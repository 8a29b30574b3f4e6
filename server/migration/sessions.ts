import type { Ledger } from './ledger.js';
import type { Frame, Standing } from './message.js';

/** A daemon, as far as it answers for sessions that it does not have (any more). */
export interface DaemonIdentity {
  readonly boot: string;
  readonly ledger: Ledger;
}

/**
 * The answer of a daemon to a frame of a session that it does not know: where it stands by its records. A daemon that has
 * restarted knows of a Commit, and of nothing else.
 */
export const answerForUnknown = ({ boot, ledger }: DaemonIdentity, frame: Frame): Frame | null => {
  const { session } = frame;
  if (frame.kind === 'settled') ledger.forget(session);
  if (frame.kind !== 'ask') return null;
  const standing: Standing = ledger.hasCommitted(session) ? 'committed' : 'unknown';
  return { session, boot, kind: 'standing', answers: frame.number, standing, ledger: ledger.id, received: 0 };
};
