import type { MigrationProgress } from '../../gen/messages.js';
import type { Migrated } from '../migrate.js';
import type { ReceivedGuest } from '../received-guest.js';
import { summary } from './migration-view.js';

/** A guest that has moved, as the program prints it. */
export interface Moved {
  readonly session: string;
  readonly statistics: MigrationProgress;
  /** Descriptors in the destination's process. */
  readonly received: { readonly vm: number; readonly vcpus: readonly number[] } | null;
}

export const movedView = (
  { session, received }: Migrated & { readonly received: ReceivedGuest | null },
  statistics: MigrationProgress,
): Moved => ({
  session,
  statistics,
  received: received && { vm: received.vm.fd, vcpus: received.vcpus.map(({ fd }) => fd) },
});

export const renderMoved = ({ session, statistics }: Moved): string => summary(session, statistics);
