import type {
  GuestDescriptionInit,
  MigrationLimits,
  MigrationPeer,
  ReceiveVmResponse,
  VerdictInit,
} from '../../../gen/messages.js';
import { MigrationService } from '../../../gen/services.js';
import { type Failure, failed, type Result } from '../../kernel/failure.js';
import { DaemonClient } from './daemon-client.js';
import type { MigrationHost } from './migration-host.js';
import { probe } from './probe.js';
import type { Session } from './session.js';
import type { Sessions } from './sessions.js';
import { explained } from './unreachable.js';

/**
 * How one call on either side makes both halves of a session: the daemon that is called calls the other one. Bulk bytes flow
 * faster towards a client of gRPC, so a destination that can reach the source dials and pulls.
 */

export interface BeginOptions {
  readonly sessions: Sessions;
  readonly session: Session;
  /** The other daemon, and the process there. */
  readonly peer: MigrationPeer;
  /** As the request has them, for the other daemon. */
  readonly limits: MigrationLimits | null;
  readonly streams: number;
}

/** What is wrong with the address that was given, where it is that. */
const located = async ({ tls }: MigrationHost, failure: Failure, field: string): Promise<Failure> => {
  const why = await explained(failure, tls !== null);
  return why.errno === 'EHOSTUNREACH' ? why.with({ field }) : why;
};

/** Dials the other half; if that fails, the other daemon need not wait. */
const dial = async ({ sessions, session, peer, streams }: BeginOptions): Promise<Failure | null> => {
  const failure = await session.dial(sessions.dialling(peer.address), streams);
  if (failure === null) return null;
  const { migration } = sessions.host;
  await new DaemonClient(migration, peer.address).call(MigrationService.cancelMigration, peer.process, { session: session.id });
  return failure;
};

/** Has the destination receive, by pulling if it may and can. @returns null once both daemons have proved themselves */
export const summonDestination = async (options: BeginOptions, push: boolean): Promise<Failure | null> => {
  const { sessions, session, peer, limits } = options;
  const { migration } = sessions.host;
  const daemon = new DaemonClient(migration, peer.address);
  if (!push && migration.advertise !== null) {
    const from = { address: migration.advertise };
    const pulls = await daemon.call(MigrationService.receiveVm, peer.process, { session: session.id, from, limits });
    if (!failed(pulls)) return null;
    if (pulls.errno !== 'EHOSTUNREACH') return pulls;
  }
  const waits = await daemon.call(MigrationService.receiveVm, peer.process, { session: session.id });
  // It has begun, and only its answer was lost: the session goes its own way.
  if (session.met) return null;
  const failure = failed(waits) ? waits : await dial(options);
  return failure === null ? null : located(migration, failure, 'to.address');
};

/**
 * Tells the source to send a VM. It answers the same however often it is told, so it is told again where an answer may have been
 * lost; one that has begun and is not heard again gives up by itself.
 */
const tellSource = async ({ sessions, session, peer, limits }: BeginOptions, fd: number): Promise<Failure | null> => {
  const daemon = new DaemonClient(sessions.host.migration, peer.address);
  const tell = () => daemon.call(MigrationService.sendVm, peer.process, { fd, session: session.id, limits });
  const first = await tell();
  const sends = failed(first) && first.errno === 'EHOSTUNREACH' ? await tell() : first;
  return failed(sends) ? sends : null;
};

/** Dials the source and pulls; with `fd` it is first told to send that VM of the process. */
export const summonSource = async (options: BeginOptions, fd: number | null): Promise<Failure | null> => {
  const { sessions, session, peer } = options;
  const { migration } = sessions.host;
  const refused = fd === null ? null : await tellSource(options, fd);
  if (refused !== null) return located(migration, refused, 'from.address');
  const failure = fd === null ? await session.dial(sessions.dialling(peer.address), options.streams) : await dial(options);
  return failure === null ? null : located(migration, failure, 'from.address');
};

/** What the other daemon says of a guest that is described to it. */
export interface DestinationAnswer {
  readonly verdict: VerdictInit | null;
  /** What the guest's platform has to know of the other one. */
  readonly target: Uint8Array;
}

const answerOf = ({ verdict, target }: ReceiveVmResponse): DestinationAnswer => ({ verdict, target: new Uint8Array(target) });

/**
 * Whether the other daemon would receive such a guest from this one, found out as `summonDestination` goes about it: it is asked to
 * look whether it could pull; where it cannot reach this one, this one looks whether it could push. EACCES, EHOSTUNREACH and
 * whatever the call would be refused with.
 */
export const askDestination = async (
  { host }: Sessions,
  { address, process }: MigrationPeer,
  validate: GuestDescriptionInit,
  push: boolean,
): Promise<Result<DestinationAnswer>> => {
  const { migration } = host;
  const daemon = new DaemonClient(migration, address);
  if (!push && migration.advertise !== null) {
    const from = { address: migration.advertise };
    const pulls = await daemon.call(MigrationService.receiveVm, process, { validate, from });
    if (!failed(pulls)) return answerOf(pulls);
    if (pulls.errno !== 'EHOSTUNREACH') return pulls;
  }
  const answer = await daemon.call(MigrationService.receiveVm, process, { validate });
  const failure = failed(answer) ? answer : await probe(host, address, 'destination');
  if (failure !== null) return located(migration, failure, 'to.address');
  return failed(answer) ? answer : answerOf(answer);
};

/** Whether this daemon could pull a guest from the other one, as far as it can be said without a session. */
export const askSource = async ({ host }: Sessions, address: string): Promise<Failure | null> => {
  const failure = await probe(host, address, 'source');
  return failure === null ? null : located(host.migration, failure, 'from.address');
};
