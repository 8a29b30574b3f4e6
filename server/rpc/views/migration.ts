import { type MigrationInit, MigrationStanding } from '../../../gen/messages.js';
import type { Standing } from '../../migration/message.js';
import { HALF_OF } from '../migration/daemon-client.js';
import type { Session } from '../migration/session.js';

const STANDING: Readonly<Record<Standing, number>> = {
  unknown: MigrationStanding.MIGRATION_STANDING_UNKNOWN,
  sending: MigrationStanding.MIGRATION_STANDING_SENDING,
  'in-doubt': MigrationStanding.MIGRATION_STANDING_IN_DOUBT,
  serving: MigrationStanding.MIGRATION_STANDING_SERVING,
  sent: MigrationStanding.MIGRATION_STANDING_SENT,
  stayed: MigrationStanding.MIGRATION_STANDING_STAYED,
  receiving: MigrationStanding.MIGRATION_STANDING_RECEIVING,
  prepared: MigrationStanding.MIGRATION_STANDING_PREPARED,
  committed: MigrationStanding.MIGRATION_STANDING_COMMITTED,
  aborted: MigrationStanding.MIGRATION_STANDING_ABORTED,
};

/** A session as those see it who ask for it. */
export const migrationView = ({ id, half, connected, peer, closed, waitsFor }: Session): MigrationInit => ({
  session: id,
  half: HALF_OF[half.role],
  standing: STANDING[half.standing],
  phase: half.phase,
  reason: half.reason,
  detail: half.detail,
  waits_for: waitsFor,
  connected,
  peer,
  closed,
  progress: half.progress(performance.now()),
  received: half.received(),
});
