import {
  type MigrationInit,
  OverrideDecision,
  type ReceiveVmRequest,
  type ReceiveVmResponseInit,
  type SendVmRequest,
  type SendVmResponseInit,
  type WatchMigrationRequest,
  type WatchMigrationResponseInit,
} from '../../../gen/messages.js';
import { MigrationService } from '../../../gen/services.js';
import { Failure, failed, type Result } from '../../kernel/failure.js';
import type { Vm } from '../../kernel/kvm/vm.js';
import { VmFile } from '../../kernel/kvm/vm-file.js';
import type { Task } from '../../kernel/sched/task.js';
import type { MightSleep } from '../../kernel/sched/wait.js';
import { describeGuest, whyNotSent } from '../../migration/describe.js';
import { fingerprint } from '../../migration/identity.js';
import { targetOf, whyNotReceived } from '../../migration/local-destination.js';
import { whyNoPostCopy, whyTargetRefused } from '../../migration/local-source.js';
import { because } from '../../migration/reason.js';
import { outcomeOf } from '../await-outcome.js';
import { type Caller, type Host, method, type Reply, refused, reply } from '../call.js';
import { checkAddress, dialable } from '../migration/address.js';
import { askDestination, askSource, summonDestination, summonSource } from '../migration/begin-migration.js';
import { copyLimits } from '../migration/copy-limits.js';
import { guestDescriptionMessage, guestDescriptionOf } from '../migration/description-codec.js';
import { createDestinationHalf } from '../migration/destination-half.js';
import { Exchange } from '../migration/exchange.js';
import type { OverrideChoice } from '../migration/half.js';
import { rememberedView } from '../migration/remembered.js';
import type { Session } from '../migration/session.js';
import { Sessions } from '../migration/sessions.js';
import { createSourceHalf } from '../migration/source-half.js';
import { paginate } from '../pages.js';
import { type Route, unary } from '../route.js';
import { bidiStream, type StreamContext, serverStream } from '../streams.js';
import { migrationView } from '../views/migration.js';
import { verdictOf } from './host.js';

/** Changes that are no change of phase are told so often at most. */
const PROGRESS_MS = 100;
const FINGERPRINT = /^[0-9a-f]{64}$/;

/** What the routes of one server share. */
interface Migrations {
  readonly sessions: Sessions;
  readonly exchange: Exchange;
}
type MigrationsOf = (host: Host) => Migrations;

/** Made with the first call, as routes know no host. */
const shared = (): MigrationsOf => {
  let made: Migrations | null = null;
  return (host) => {
    if (made === null) {
      const sessions = new Sessions(host);
      made = { sessions, exchange: new Exchange(sessions) };
    }
    return made;
  };
};

const vmOf = (current: Task, fd: number): Result<Vm> => {
  const file = current.process.files.get(fd);
  if (failed(file)) return file.with({ field: 'fd' });
  if (file.ops instanceof VmFile) return file.ops.vm;
  return new Failure('EINVAL', 'FD_NOT_VM', 'simkvmd', { field: 'fd', given: file.ops.name, allowed: 'a VM' });
};

/** A session of the caller's own process; on loopback, any. ENOENT, EPERM. */
const visible = (sessions: Sessions, id: string, caller: Caller): Result<Session> => {
  const session = sessions.find(id);
  if (failed(session) || mayUse(session, caller)) return session;
  return new Failure('EPERM', 'SESSION_OF_OTHER_PROCESS', 'simkvmd', { field: 'session', given: id });
};

const mayUse = (session: Session, { onLoopback, process }: Caller): boolean => onLoopback || session.process === process;

/** A session of an earlier start of the daemon; null: there is none, or not for this caller. */
const rememberedOf = ({ remembered, host }: Sessions, id: string, { onLoopback }: Caller): MigrationInit | null => {
  const session = remembered.get(id);
  return session === undefined || !onLoopback ? null : rememberedView(id, session, host.migration.ledger);
};

interface Listed {
  readonly ordinal: number;
  readonly view: () => MigrationInit;
}

/** Oldest first: those of earlier starts come before the others. */
const listed = (sessions: Sessions, caller: Caller): readonly Listed[] => {
  const remembered = [...sessions.remembered].flatMap(([id, { ordinal }]): Listed[] => {
    const view = sessions.get(id) === undefined ? rememberedOf(sessions, id, caller) : null;
    return view === null ? [] : [{ ordinal, view: () => view }];
  });
  const own = sessions.list.filter((session) => mayUse(session, caller));
  return [...remembered, ...own.map((session) => ({ ordinal: session.ordinal, view: () => migrationView(session) }))];
};

function* validateSend(
  sessions: Sessions,
  vm: Vm,
  unfit: Failure | null,
  { to, push }: SendVmRequest,
): MightSleep<Reply<SendVmResponseInit>> {
  const refusal = whyNotSent(vm) ?? unfit ?? whyTargetRefused(vm, null);
  if (refusal !== null || to === null) return reply({ verdict: verdictOf(refusal) });
  const description = describeGuest(vm);
  if (failed(description)) return reply({ verdict: verdictOf(description) });
  const answer = yield* outcomeOf('SendVm', askDestination(sessions, to, guestDescriptionMessage(description), push));
  if (failed(answer)) return reply({ verdict: verdictOf(answer) });
  const { verdict, target } = answer;
  // Much may have happened to the VM since.
  return reply({ verdict: verdict?.allowed ? verdictOf(whyNotSent(vm) ?? whyTargetRefused(vm, target)) : verdict });
}

function* sendVm(sessions: Sessions, current: Task, request: SendVmRequest): MightSleep<Reply<SendVmResponseInit>> {
  const { fd, session: id, to, limits, validate_only, push } = request;
  const vm = vmOf(current, fd ?? -1);
  if (failed(vm)) return refused(vm);
  const wanted = copyLimits(limits);
  if (failed(wanted)) return refused(wanted);
  const earlier = id === null || validate_only ? undefined : sessions.get(id);
  if (earlier?.half.role === 'source' && earlier.half.vm === vm && earlier.process === current.process)
    return cameToNothing(earlier) ?? (yield* sendAnswer(earlier));
  const here = sessions.otherHalfIsHere(id, 'source');
  const refusal = here ?? sessions.refusal(id) ?? (to === null ? null : checkAddress('to.address', to.address));
  if (refusal !== null) return refused(refusal);
  const unfit = wanted.postCopy === 'never' ? null : whyNoPostCopy(vm);
  if (validate_only) return yield* validateSend(sessions, vm, unfit, request);
  if (unfit !== null) return refused(unfit);
  const { ledger } = sessions.host.migration;
  const session = sessions.begin(id, current.process, (wiring) => createSourceHalf({ ...wiring, vm, ledger, limits: wanted }));
  if (failed(session)) return refused(session.with({ field: 'fd' }));
  if (to === null) return reply({ session: session.id });
  const options = { sessions, session, peer: to, limits, streams: wanted.streams };
  session.answer = summonDestination(options, push);
  const answer = yield* sendAnswer(session);
  if (answer.failure !== null) sessions.drop(session, answer.failure);
  return answer;
}

/** Whoever tries once more, under the same number, is not to take what came of it then for what comes of it now. EEXIST. */
const cameToNothing = ({ id, closed, half }: Session): ReturnType<typeof refused> | null => {
  const { standing, reason } = half;
  if (!closed || (standing !== 'stayed' && standing !== 'aborted')) return null;
  const details = { field: 'session', given: id, state: standing, ended: reason, allowed: 'a new number' };
  return refused(new Failure('EEXIST', 'SESSION_IS_OVER', 'simkvmd', details));
};

/** The answer to a SendVm, however often it is asked for. */
function* sendAnswer({ id, answer }: Session): MightSleep<Reply<SendVmResponseInit>> {
  const failure = yield* outcomeOf('SendVm', answer);
  return failure === null ? reply({ session: id }) : refused(failure);
}

function* validateReceive(
  sessions: Sessions,
  { process }: Task,
  message: NonNullable<ReceiveVmRequest['validate']>,
  from: string | null,
): MightSleep<Reply<ReceiveVmResponseInit>> {
  const description = guestDescriptionOf(message);
  if (failed(description)) return refused(description);
  const { kernel, migration } = sessions.host;
  if (migration.ledger.unwritable !== null) return refused(migration.ledger.unwritable);
  const unreached = from === null ? null : yield* outcomeOf('ReceiveVm', askSource(sessions, from));
  if (unreached !== null) return refused(unreached);
  const refusal = whyNotReceived(kernel, process, description) ?? targetOf(kernel, description);
  return failed(refusal) ? reply({ verdict: verdictOf(refusal) }) : reply({ verdict: verdictOf(null), target: refusal });
}

function* receiveVm(
  sessions: Sessions,
  current: Task,
  request: ReceiveVmRequest,
  caller: Caller,
): MightSleep<Reply<ReceiveVmResponseInit>> {
  const { session: id, from, from_fd, limits, validate } = request;
  const { kernel, migration } = sessions.host;
  const wanted = copyLimits(limits);
  if (failed(wanted)) return refused(wanted);
  const address = from === null ? '' : dialable('from.address', from.address, caller.peer);
  if (failed(address)) return refused(address);
  if (validate !== null) return yield* validateReceive(sessions, current, validate, from === null ? null : address);
  if (from === null && from_fd !== null) return refused(noSource(from_fd));
  const { process } = current;
  const { ledger } = migration;
  const origin = from === null ? null : [address, from.process, from_fd].join(' ');
  const earlier = id === null ? undefined : sessions.get(id);
  if (earlier?.half.role === 'destination' && earlier.process === process && (origin === null || earlier.origin === origin))
    return cameToNothing(earlier) ?? (yield* receiveAnswer(earlier));
  const here = sessions.otherHalfIsHere(id, 'destination');
  if (here !== null) return refused(here);
  // Else it would be found out when all of the guest has been copied.
  if (ledger.unwritable !== null) return refused(ledger.unwritable);
  const session = sessions.begin(id, process, (wiring) => createDestinationHalf({ ...wiring, kernel, process, ledger }));
  if (failed(session)) return refused(session);
  if (from === null) return reply({ session: session.id });
  const options = { sessions, session, peer: { ...from, address }, limits, streams: wanted.streams };
  session.origin = origin;
  session.answer = summonSource(options, from_fd);
  const answer = yield* receiveAnswer(session);
  if (answer.failure !== null) sessions.drop(session, answer.failure);
  return answer;
}

/** The answer to a ReceiveVm, however often it is asked for. */
function* receiveAnswer({ id, answer }: Session): MightSleep<Reply<ReceiveVmResponseInit>> {
  const failure = yield* outcomeOf('ReceiveVm', answer);
  return failure === null ? reply({ session: id }) : refused(failure);
}

const noSource = (fd: number): Failure =>
  new Failure('EINVAL', 'SOURCE_MISSING', 'simkvmd', { field: 'from_fd', given: String(fd), allowed: 'with `from`' });

const handedOver = ({ id, half }: Session): Failure =>
  new Failure('EBUSY', 'GUEST_HANDED_OVER', 'simkvmd', {
    field: 'session',
    given: id,
    state: half.phase,
    allowed: 'to wait for the rest of its memory, or OverrideMigration if the other host is gone for good',
  });

/** What is told at once when it changes. */
const landmark = ({ half, connected, closed, peer, waitsFor }: Session): string =>
  [half.phase, half.standing, connected, closed, peer, half.vm === null, waitsFor].join();

/** Resolves when there is something to tell that was not told with `told`. */
const nextChange = (session: Session, told: string, signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    const begun = performance.now();
    let timer: NodeJS.Timeout | null = null;
    const finish = (): void => {
      if (timer !== null) clearTimeout(timer);
      stop();
      signal.removeEventListener('abort', finish);
      resolve();
    };
    const changed = (): void => {
      if (landmark(session) !== told) finish();
      else timer ??= setTimeout(finish, Math.max(0, PROGRESS_MS - (performance.now() - begun)));
    };
    const stop = session.watch(changed);
    signal.addEventListener('abort', finish, { once: true });
    if (landmark(session) !== told || signal.aborted) finish();
  });

const watchMigration =
  (of: MigrationsOf) =>
  async (
    { session: id }: WatchMigrationRequest,
    { dispatch, caller, send, signal }: StreamContext<WatchMigrationResponseInit>,
  ): Promise<Failure | null> => {
    const { sessions } = of(dispatch.host);
    const remembered = sessions.get(id) === undefined ? rememberedOf(sessions, id, caller) : null;
    if (remembered !== null) {
      await send({ sequence: 1, migration: remembered });
      return null;
    }
    const session = visible(sessions, id, caller);
    if (failed(session)) return session;
    for (let sequence = 1; !signal.aborted; sequence++) {
      const told = landmark(session);
      const { closed } = session;
      await send({ sequence, migration: migrationView(session) });
      if (closed) break;
      await nextChange(session, told, signal);
    }
    return null;
  };

const CHOICE: Readonly<Record<number, OverrideChoice>> = {
  [OverrideDecision.OVERRIDE_DECISION_RUN]: 'run',
  [OverrideDecision.OVERRIDE_DECISION_DISCARD]: 'discard',
};

/** An operator knows better. If he does not, the guest runs twice, or not at all: so it is a finding in any case. */
const override = ({ kernel }: Host, session: Session, decision: number): Failure | null => {
  const choice = CHOICE[decision];
  if (choice === undefined)
    return new Failure('EINVAL', 'OVERRIDE_DECISION', 'simkvmd', {
      field: 'decision',
      given: String(decision),
      allowed: 'OVERRIDE_DECISION_RUN or OVERRIDE_DECISION_DISCARD',
    });
  const { half, id } = session;
  const { vm, standing } = half;
  const decided = half.override(choice);
  if (failed(decided)) return decided;
  if (!decided)
    return new Failure('EBUSY', 'MIGRATION_NOT_IN_DOUBT', 'simkvmd', {
      field: 'session',
      given: id,
      state: standing,
      allowed: 'a source in doubt, or a destination that is prepared; DISCARD also where the guest waits for its memory',
    });
  const message = `an operator has decided for migration ${id}, which was ${standing} as ${half.role}: ${choice}`;
  kernel.findings.report('guest', 'MIGRATION_OVERRIDDEN', message, vm?.id ?? null);
  session.stirred();
  return null;
};

const allowPeer = ({ migration: { peers } }: Host, given: string): Failure | null => {
  const fingerprint = given.toLowerCase();
  if (!FINGERPRINT.test(fingerprint))
    return new Failure('EINVAL', 'FINGERPRINT', 'simkvmd', { field: 'fingerprint', given, allowed: '64 hex digits' });
  if (peers.size >= PEERS_MAX && !peers.has(fingerprint))
    return new Failure('ENOSPC', 'TOO_MANY_PEERS', 'simkvmd', { field: 'fingerprint', allowed: `at most ${PEERS_MAX} peers` });
  peers.add(fingerprint);
  return null;
};

const PEERS_MAX = 1024;

/** Migrations between hosts. */
export const migrationSessionRoutes = (): readonly Route[] => {
  const of = shared();
  return [
    unary(
      MigrationService.sendVm,
      method('SendVm', true, (current, host, request) => sendVm(of(host).sessions, current, request)),
    ),
    unary(
      MigrationService.receiveVm,
      method('ReceiveVm', true, (current, host, request, caller) => receiveVm(of(host).sessions, current, request, caller)),
    ),
    bidiStream(MigrationService.exchange, { syscall: 'Exchange' }, (call, { host }) => of(host).exchange.accept(call)),
    serverStream(MigrationService.watchMigration, { role: 'process', syscall: 'WatchMigration' }, watchMigration(of)),
    unary(
      MigrationService.listMigrations,
      method('ListMigrations', false, (_current, host, request, caller) => {
        const page = paginate(listed(of(host).sessions, caller), request, ({ ordinal }) => ordinal);
        if (failed(page)) return refused(page);
        return reply({ migrations: page.items.map(({ view }) => view()), next_page_token: page.next_page_token });
      }),
    ),
    unary(
      MigrationService.cancelMigration,
      method('CancelMigration', true, (_current, host, { session: id }, caller) => {
        const session = visible(of(host).sessions, id, caller);
        if (failed(session)) return refused(session);
        if (session.half.handedOver) return refused(handedOver(session));
        session.giveUp(because('CANCELLED'));
        return reply({ migration: migrationView(session) });
      }),
    ),
    unary(
      MigrationService.startPostCopy,
      method('StartPostCopy', true, (_current, host, { session: id }, caller) => {
        const session = visible(of(host).sessions, id, caller);
        if (failed(session)) return refused(session);
        const failure = session.half.startPostCopy();
        if (failure !== null) return refused(failure);
        session.stirred();
        return reply({ migration: migrationView(session) });
      }),
    ),
    unary(MigrationService.overrideMigration, {
      role: 'operator',
      mutates: true,
      syscall: 'OverrideMigration',
      handle: (_current, host, { session: id, decision }) => {
        const session = of(host).sessions.find(id);
        if (failed(session)) return refused(session);
        const failure = override(host, session, decision);
        return failure === null ? reply({ migration: migrationView(session) }) : refused(failure);
      },
    }),
    unary(
      MigrationService.getIdentity,
      method('GetIdentity', false, (_current, { migration, bootId }) => {
        const { publicKey } = migration.identity;
        const peers = [...migration.peers];
        return reply({ public_key: publicKey, fingerprint: fingerprint(publicKey), boot_id: bootId, peers });
      }),
    ),
    unary(MigrationService.allowPeer, {
      role: 'operator',
      mutates: true,
      syscall: 'AllowPeer',
      handle: (_current, host, { fingerprint: given }) => {
        const failure = allowPeer(host, given);
        return failure === null ? reply({ peers: [...host.migration.peers] }) : refused(failure);
      },
    }),
  ];
};
