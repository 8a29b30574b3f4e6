import {
  type AllowPeerResponse,
  type CancelMigrationResponse,
  type GetIdentityResponse,
  type ListMigrationsResponse,
  type Migration,
  OverrideDecision,
  type OverrideMigrationResponse,
  type StartPostCopyResponse,
} from '../gen/messages.js';
import { MigrationService } from '../gen/services.js';
import { type Caller, ENDLESS } from './call.js';
import { withForms } from './forms.js';
import { type CallingObject, present, syscall, valueOrThrow } from './syscall.js';

/** The largest page of a list. */
const PAGE_SIZE = 1000;

/** `run`: the copy of this host runs. `discard`: it is destroyed, or is taken for sent; in post-copy, what is owed is given up. */
export type Decision = 'run' | 'discard';

const DECISIONS: Readonly<Record<Decision, number>> = {
  run: OverrideDecision.OVERRIDE_DECISION_RUN,
  discard: OverrideDecision.OVERRIDE_DECISION_DISCARD,
};

const sessionOf = (_self: CallingObject, session: string) => ({ session });

const migrationOf = ({ migration }: CancelMigrationResponse | StartPostCopyResponse | OverrideMigrationResponse): Migration =>
  present(migration, 'migration');

const listMigrations = syscall(
  MigrationService.listMigrations,
  (_self: CallingObject, token: string) => ({ page_size: PAGE_SIZE, page_token: token }),
  (response: ListMigrationsResponse) => response,
);

/** What can be done about the migrations between this host and others, by their session's number. */
export const migrationCalls = {
  /**
   * Gives a migration up. Before Commit has left, the guest runs on at the source at once; afterwards the destination has to
   * agree, and may own it already: `standing` says so in the end.
   * Errno: ENOENT (no such session), EBUSY (post-copy: the guest runs at the destination already).
   */
  cancel: syscall(MigrationService.cancelMigration, sessionOf, migrationOf),
  /**
   * Has the source hand a plain guest over before all of its memory has been copied. It waits at the destination for each page
   * that it touches and does not have yet; until all have come, the guest is lost if either host is.
   * Errno: ENOENT (no such session), EINVAL (begun without `limits.post_copy`, or not the source's host), EBUSY (the guest
   * has been stopped already).
   */
  startPostCopy: syscall(MigrationService.startPostCopy, sessionOf, migrationOf),
  /**
   * DANGEROUS. Decides for a session in doubt what the protocol cannot: the caller knows what became of the other host. If
   * that is wrong the guest runs twice. It is recorded. In post-copy, `discard` ends the wait for a host that does not come
   * back: what is still owed is lost.
   * Errno: ENOENT (no such session), EBUSY (the session is not in doubt), EPERM (not called on the host's own machine).
   */
  override: syscall(
    MigrationService.overrideMigration,
    (_self: CallingObject, session: string, decision: Decision) => ({ session, decision: DECISIONS[decision] }),
    migrationOf,
  ),
  /** Who the daemon is to others: its key, the fingerprint of that, and whom it exchanges guests with. */
  identity: syscall(
    MigrationService.getIdentity,
    () => ({}),
    (response: GetIdentityResponse) => response,
  ),
  /**
   * Lets guests come from a daemon, and go to it; the value is the list of all that it may be.
   * Errno: EINVAL (fingerprint), EPERM (not called on the host's own machine).
   * @param fingerprint SHA-256 of its public key, as its `identity` says
   */
  allowPeer: syscall(
    MigrationService.allowPeer,
    (_self: CallingObject, fingerprint: string) => ({ fingerprint }),
    ({ peers }: AllowPeerResponse) => peers,
  ),
} as const;

class MigrationsObject implements CallingObject {
  constructor(readonly caller: Caller) {}
}

/** Migrations between hosts, as one of them sees them: `simkvm.migrations`. */
export class Migrations extends withForms(MigrationsObject, migrationCalls) {
  /** Every session of this host, oldest first. */
  async list(): Promise<Migration[]> {
    const migrations: Migration[] = [];
    for (let token = ''; ; ) {
      const page = valueOrThrow(await listMigrations(this, token));
      migrations.push(...page.migrations);
      token = page.next_page_token;
      if (token === '') return migrations;
    }
  }

  /**
   * How a session goes: at once, then at every change, until it has ended and both sides know. Whoever leaves changes nothing.
   * @throws KvmError ENOENT (no such session)
   */
  async *watch(session: string): AsyncIterable<Migration> {
    const responses = this.caller.serverStream(MigrationService.watchMigration, { session }, ENDLESS);
    for await (const { migration } of responses) yield present(migration, 'migration');
  }

  /** Where a session stands. @throws KvmError ENOENT (no such session) */
  async get(session: string): Promise<Migration> {
    for await (const migration of this.watch(session)) return migration;
    return present<Migration>(null, 'migration');
  }
}

/** Two fingerprints become known to each other's daemons, so that guests can go both ways. */
export const introduce = async (one: Migrations, other: Migrations): Promise<void> => {
  const [here, there] = await Promise.all([one.identity(), other.identity()]);
  await Promise.all([one.allowPeer(there.fingerprint), other.allowPeer(here.fingerprint)]);
};
