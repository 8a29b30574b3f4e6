import {
  type Migration,
  MigrationHalf,
  type MigrationLimitsInit,
  type MigrationProgress,
  MigrationStanding,
  type ReceiveVmRequestInit,
  type ReceiveVmResponse,
  type SendVmRequestInit,
  type SendVmResponse,
  type Verdict,
} from '../gen/messages.js';
import { MigrationService } from '../gen/services.js';
import { KvmError } from './kvm-error.js';
import { MigrationError } from './migration-error.js';
import { Migrations } from './migrations.js';
import { Process } from './process.js';
import { type ReceivedGuest, receivedGuest } from './received-guest.js';
import { relayMigration } from './relay.js';
import { type CallingObject, type FdObject, present, syscall, valueOrThrow } from './syscall.js';
import type { Vm } from './vm.js';

/** How long what has been carried may have to reach both hosts, after one of them has said how a migration ended. */
const CONCLUSION_MS = 5_000;

/** A process of another host, where that one's daemon is to be dialled at an address of its own. */
export interface MigrationAddress {
  /** `host:port`, as the daemon at the other end sees it. */
  readonly address: string;
  /** The process, or its token. */
  readonly process: Process | string;
}

/** The other end: a process of another connection, whose daemon is dialled where this program has dialled it, or elsewhere. */
export type MigrationEnd = Process | MigrationAddress;

/** What both forms of starting a migration take. */
interface SessionOptions {
  /**
   * Number of the session: 1 to 64 letters, digits, dots, dashes and underscores.
   * @default one that the daemon picks
   */
  readonly session?: string;
  /**
   * How long to go on copying, and what that may take.
   * @default 300 ms of downtime, 30 rounds, one stream, as fast as it goes
   */
  readonly limits?: MigrationLimitsInit;
}

/** How to move a guest to another host. */
export interface MigrateOptions extends SessionOptions {
  /** The process that is to own it. */
  readonly to: MigrationEnd;
  /** Told of every change, and several times a second while memory is copied. */
  readonly onProgress?: (migration: Migration) => void;
  /** Gives the migration up; the promise rejects once it is certain that the guest has stayed, and resolves if it was too late. */
  readonly signal?: AbortSignal;
  /**
   * The source pushes, and does not let the destination pull, which is faster.
   * @default false: it pushes only where the destination cannot reach it
   */
  readonly push?: boolean;
  /**
   * This program carries what the daemons say, which cannot reach each other; it can neither read nor change it. `to` is a
   * Process then.
   * @default false
   */
  readonly relay?: boolean;
}

/** What is looked at of these while a session goes its way. */
type Watched = Pick<MigrateOptions, 'to' | 'onProgress' | 'signal'>;

/** A guest that has moved. */
export interface Migrated {
  readonly session: string;
  /** Rounds, pages, bytes, downtime, when it had been handed over. */
  readonly statistics: MigrationProgress;
  /**
   * Resolves, with the statistics of the end, when all of the guest's memory has arrived: at once, but for post-copy. `onProgress`
   * is called until then.
   * @throws MigrationError PAGES_LOST: some of it never will, since the source has been lost or has given it up
   */
  readonly completed: () => Promise<MigrationProgress>;
}

const send = syscall(
  MigrationService.sendVm,
  (_self: CallingObject, request: SendVmRequestInit) => request,
  (response: SendVmResponse) => response,
);

const receive = syscall(
  MigrationService.receiveVm,
  (_self: CallingObject, request: ReceiveVmRequestInit) => request,
  (response: ReceiveVmResponse) => response,
);

const peerOf = (end: MigrationEnd): { address: string; process: string } =>
  end instanceof Process
    ? { address: end.caller.transport.target, process: end.token }
    : { address: end.address, process: typeof end.process === 'string' ? end.process : end.process.token };

const processOf = (end: MigrationEnd): Process | null => {
  if (end instanceof Process) return end;
  return typeof end.process === 'string' ? null : end.process;
};

/** How to send a guest without waiting for it. */
export interface SendOptions extends SessionOptions {
  /** @default nobody is told: the session waits for whoever comes */
  readonly to?: MigrationEnd;
  /** @default false */
  readonly push?: boolean;
}

/**
 * SendVm: begins to send a VM, and gives the session's number. `migrations.watch` tells how it goes.
 * @throws KvmError EBADF, EINVAL (the guest cannot be sent; `reason` says why), EIO (the VM is dead), EBUSY (it is being sent
 * already), EEXIST (the session is another VM's, or has come to nothing), EACCES (the peer is not on the list), EHOSTUNREACH
 * (nobody answers)
 */
export const sendVm = async (vm: FdObject, { session, to, limits, push }: SendOptions = {}): Promise<string> => {
  const request = { fd: vm.fd, session, to: to === undefined ? undefined : peerOf(to), limits, push };
  return valueOrThrow(await send(vm, request)).session;
};

/** How to receive a guest without waiting for it. */
export interface ReceiveOptions extends SessionOptions {
  /** Where the guest is. @default the session waits for whoever comes */
  readonly from?: MigrationEnd;
  /** The VM in the process of `from`, which is told to send it. @default it has been told */
  readonly vm?: FdObject | number;
}

/**
 * ReceiveVm: begins to receive a VM into `process`, and gives the session's number.
 * @throws KvmError EINVAL, EEXIST (there is such a session, and not from there, or it has come to nothing), EACCES (the peer is
 * not on the list), EHOSTUNREACH
 */
export const receiveVm = async (process: Process, { session, from, vm, limits }: ReceiveOptions = {}): Promise<string> => {
  const request = {
    session,
    from: from === undefined ? undefined : peerOf(from),
    from_fd: typeof vm === 'object' ? vm.fd : vm,
    limits,
  };
  return valueOrThrow(await receive(process, request)).session;
};

/**
 * Whether `migrate` would be allowed, by both hosts where `to` is given, and why not: the verdict is what it would be refused with.
 * It changes nothing, and keeps nothing free for later.
 */
export const validateMigration = async (vm: FdObject, { to, limits, push }: SendOptions = {}): Promise<Verdict> => {
  const request = { fd: vm.fd, to: to === undefined ? undefined : peerOf(to), limits, push, validate_only: true };
  return present(valueOrThrow(await send(vm, request)).verdict, 'verdict');
};

/** Begins the session on both hosts; neither dials. */
const beginRelayed = async (vm: Vm, process: Process, { session: wanted, limits }: MigrateOptions): Promise<string> => {
  const session = await receiveVm(process, { session: wanted });
  try {
    return await sendVm(vm, { session, limits });
  } catch (error) {
    await new Migrations(process.caller).cancel(session).catch(() => {});
    throw error;
  }
};

/**
 * The source's last word: the guest has gone with all of its memory, or has stayed.
 * @param gone told as soon as it runs at the destination: before that, in post-copy
 */
const settled = async (
  source: Migrations,
  session: string,
  { onProgress, signal }: Watched,
  gone: (migration: Migration) => void,
): Promise<Migration> => {
  const cancel = (): void => void source.try.cancel(session).catch(() => {});
  signal?.addEventListener('abort', cancel, { once: true });
  if (signal?.aborted) cancel();
  try {
    for await (const migration of source.watch(session)) {
      onProgress?.(migration);
      const { standing, reason } = migration;
      if (standing === MigrationStanding.MIGRATION_STANDING_SENT && reason !== '') throw new MigrationError(migration);
      if (standing === MigrationStanding.MIGRATION_STANDING_SENT || standing === MigrationStanding.MIGRATION_STANDING_SERVING)
        gone(migration);
      if (standing === MigrationStanding.MIGRATION_STANDING_SENT) return migration;
      if (standing === MigrationStanding.MIGRATION_STANDING_STAYED) throw new MigrationError(migration, signal?.reason);
    }
  } finally {
    signal?.removeEventListener('abort', cancel);
  }
  return present<Migration>(null, 'migration');
};

/** What the destination's process has got. */
const arrived = async (process: Process, session: string): Promise<ReceivedGuest> => {
  for await (const { standing, received } of new Migrations(process.caller).watch(session))
    if (standing === MigrationStanding.MIGRATION_STANDING_COMMITTED && received !== null) return receivedGuest(process, received);
  return present<ReceivedGuest>(null, 'received');
};

/** The destination has fetched all of the guest's memory, or knows that it cannot. */
const fetched = async (process: Process, session: string): Promise<void> => {
  for await (const migration of new Migrations(process.caller).watch(session)) {
    if (migration.phase === 'fetching') continue;
    if (migration.reason === 'PAGES_LOST') throw new MigrationError(migration);
    return;
  }
};

/** A guest that runs at the destination; its memory may follow. */
interface Gone {
  readonly moved: Migrated & { readonly received: ReceivedGuest | null };
  /** All of its memory has arrived. */
  readonly whole: boolean;
}

const migrateBy = async (source: CallingObject, session: string, options: Watched): Promise<Gone> => {
  const { promise: gone, resolve } = promiseOf<Migration>();
  const whole = settled(new Migrations(source.caller), session, options, resolve);
  const { progress, standing } = await Promise.race([gone, whole]);
  // Whoever does not ask for the rest does not hear what has become of it.
  whole.catch(() => {});
  const process = processOf(options.to);
  const received = process === null ? null : await arrived(process, session);
  const completed = async (): Promise<MigrationProgress> => {
    const [last] = await Promise.all([whole, process === null ? null : fetched(process, session)]);
    return present(last.progress, 'progress');
  };
  return {
    moved: { session, statistics: present(progress, 'progress'), received, completed },
    whole: standing === MigrationStanding.MIGRATION_STANDING_SENT,
  };
};

const promiseOf = <T>(): { readonly promise: Promise<T>; readonly resolve: (value: T) => void } => {
  let resolve: (value: T) => void = () => {};
  const promise = new Promise<T>((kept) => {
    resolve = kept;
  });
  return { promise, resolve };
};

/** Resolves when both hosts know how a session has ended, or one of them does not answer. */
const concluded = async (ends: readonly CallingObject[], session: string): Promise<void> => {
  const signal = AbortSignal.timeout(CONCLUSION_MS);
  const ended = async ({ caller }: CallingObject): Promise<void> => {
    for await (const { closed } of new Migrations(caller.with({ signal })).watch(session)) if (closed) return;
  };
  await Promise.allSettled(ends.map(ended));
};

/** A session that both hosts have, and that this program carries. */
interface Carried extends Watched {
  readonly session: string;
  readonly source: CallingObject;
  readonly to: Process;
  readonly streams: number;
}

/** Another program carries the session now: it is not for this one to say how it ends. */
const isTakenOver = (error: unknown): boolean => error instanceof KvmError && error.reason === 'STREAM_REPLACED';

/**
 * The same with this program in between.
 * @param giveUp called where it fails; both hosts are heard for a while then
 */
const carry = async (carried: Carried, giveUp: () => Promise<void>) => {
  const { session, source, to, streams } = carried;
  const over = new AbortController();
  const relay = relayMigration({ session, source, destination: to, streams, signal: over.signal });
  const refused = new Promise<never>((_resolve, reject) => {
    relay.catch(reject);
  });
  const end = async (): Promise<void> => {
    await concluded([source, to], session);
    over.abort();
    await Promise.allSettled([relay]);
  };
  const gone = Promise.race([migrateBy(source, session, carried), refused]).catch(async (error: unknown) => {
    if (isTakenOver(error)) throw error;
    await giveUp();
    await end();
    throw error;
  });
  const { moved, whole } = await gone;
  // In post-copy the rest goes by way of this program too.
  const completed = Promise.race([moved.completed(), refused]).finally(end);
  completed.catch(() => {});
  if (whole) await completed;
  return { ...moved, completed: () => completed };
};

const migrateRelayed = async (vm: Vm, process: Process, options: MigrateOptions) => {
  const session = await beginRelayed(vm, process, options);
  const { onProgress, signal, limits } = options;
  // Where a host has not let the relay in, nobody else ends the session.
  const giveUp = async (): Promise<void> => {
    await Promise.allSettled([vm, process].map(({ caller }) => new Migrations(caller).cancel(session)));
  };
  return carry({ session, source: vm, to: process, streams: limits?.streams ?? 1, onProgress, signal }, giveUp);
};

/** How to take a relay up. */
export interface TakeUpOptions extends Pick<MigrateOptions, 'onProgress' | 'signal'> {
  /** Processes of the two hosts, in either order: those that send and receive, where these are not the callers' own hosts. */
  readonly ends: readonly [Process, Process];
  /**
   * Streams to carry.
   * @default 1, whatever the migration was begun with
   */
  readonly streams?: number;
}

/** @throws KvmError ENOENT; TypeError where not both halves are there */
const orderedEnds = async (session: string, ends: TakeUpOptions['ends']): Promise<{ source: Process; to: Process }> => {
  const halves = await Promise.all(ends.map(({ caller }) => new Migrations(caller).get(session)));
  const of = (half: number): Process | undefined => ends[halves.findIndex((migration) => migration.half === half)];
  const [source, to] = [of(MigrationHalf.MIGRATION_HALF_SOURCE), of(MigrationHalf.MIGRATION_HALF_DESTINATION)];
  if (source === undefined || to === undefined)
    throw new TypeError(`both hosts have the same half of session ${session}: one of them has to be its source`);
  return { source, to };
};

/**
 * Carries a migration on that another program has begun with `relay`, and does not carry any more, and resolves when all of the guest
 * is at the destination: nothing is sent again that has been acknowledged. A program that still carries it is told so
 * (STREAM_REPLACED), and stops. Whatever comes of this, the session is not given up, but by `signal`.
 * @throws MigrationError if the guest has stayed where it was; KvmError ENOENT: a host does not know the session (any more)
 */
export const takeUpRelay = async (
  session: string,
  { ends, streams = 1, onProgress, signal }: TakeUpOptions,
): Promise<Migrated & { readonly received: ReceivedGuest | null }> => {
  const moved = await carry({ session, ...(await orderedEnds(session, ends)), streams, onProgress, signal }, async () => {});
  return { ...moved, statistics: await moved.completed() };
};

/**
 * Moves a running guest to a process of another host, and resolves when it runs there: `received` has its objects in that
 * process. The source is dead then, or what its post-move policy makes of it.
 *
 * With `limits.post_copy` a plain guest may run there before all of its memory has been copied: it waits for each page that it
 * touches and that has not come, and is lost if either host is, until `completed` resolves.
 *
 * The two daemons must have been introduced to each other (`introduce`, `--peer`). Memory is copied while the guest runs; then
 * it is stopped, the rest follows, and the destination becomes its owner. Where the link breaks meanwhile it is dialled
 * again; as long as the source cannot know whose the guest is, it stays paused, and the promise waits.
 * @throws MigrationError if the guest has stayed where it was, with the reason; KvmError if the migration could not begin
 *
 * @example
 * ```ts
 * await introduce(here.migrations, there.migrations);
 * await using process = await there.attach({ name: 'vmm' });
 * const { received, statistics } = await migrate(vm, { to: process, onProgress: ({ progress }) => show(progress) });
 * await received.vcpus[0]?.run();
 * ```
 */
export async function migrate(
  vm: Vm,
  options: MigrateOptions & { readonly to: Process | { readonly process: Process } },
): Promise<Migrated & { readonly received: ReceivedGuest }>;
export async function migrate(vm: Vm, options: MigrateOptions): Promise<Migrated & { readonly received: ReceivedGuest | null }>;
export async function migrate(vm: Vm, options: MigrateOptions): Promise<Migrated & { readonly received: ReceivedGuest | null }> {
  const { to, relay = false } = options;
  options.signal?.throwIfAborted();
  if (!relay) return (await migrateBy(vm, await sendVm(vm, options), options)).moved;
  const process = processOf(to);
  if (process === null) throw new TypeError('a migration is relayed to a Process, which is another connection of this program');
  return migrateRelayed(vm, process, options);
}
