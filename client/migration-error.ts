import { status } from '@grpc/grpc-js';
import type { Migration } from '../gen/messages.js';
import { KvmError } from './kvm-error.js';

/** What a person may make of it. */
const describe = ({ session, reason, detail, phase }: Migration): string => {
  if (reason === 'PAGES_LOST') return `the guest runs without memory that nobody has any more (session ${session})`;
  if (reason === 'GUEST_LOST') return `the guest is lost: ${detail} (session ${session})`;
  return `the guest has stayed where it was: ${reason === '' ? phase : reason}${detail === '' ? '' : ` (${detail})`}, session ${session}`;
};

/**
 * A migration that did not come about: the guest runs on at the source. `reason` says why, as the side said it that gave up:
 * `CANCELLED`, `CPUID_NOT_SUPPORTED`, `FRAME_NOT_AUTHENTIC` and so on. `GUEST_LOST`: the destination had it, and has restarted
 * since. `PAGES_LOST`: post-copy began, and did not come to its end; the guest is at the destination, and some of its memory
 * nowhere.
 */
export class MigrationError extends KvmError {
  /** @param migration the source's last word; the destination's, of what it has lost */
  constructor(
    readonly migration: Migration,
    cause?: unknown,
  ) {
    const { reason, session, phase } = migration;
    const details = { ioctl: 'SendVm', object: `migration ${session}`, state: phase };
    super({ code: status.ABORTED, message: describe(migration), reason, details, response: migration, cause });
  }
}
