import { setTimeout as delay } from 'node:timers/promises';
import { Failure, failed, type Result } from '../../kernel/failure.js';
import type { Process } from '../../kernel/process/process.js';
import { type ChannelRole, peerIsThisDaemon } from '../../migration/channel.js';
import { fingerprint } from '../../migration/identity.js';
import type { LocalSide, Transmit } from '../../migration/link.js';
import { because, reasonOf } from '../../migration/reason.js';
import type { Host } from '../call.js';
import { DaemonClient } from './daemon-client.js';
import type { Half } from './half.js';
import { PeerStream } from './peer-stream.js';
import { type RememberedSession, rememberedSessions } from './remembered.js';
import { type OpenStream, Session } from './session.js';
import { checkSessionId, newSessionId } from './session-id.js';
import type { Wire } from './wire.js';

/** Sessions that are not over. */
export const SESSIONS_MAX = 1024;
/** Sessions that are, and are still told of. */
const CLOSED_MAX = 256;

/** What a half needs of its session. */
export interface HalfWiring {
  readonly local: LocalSide;
  readonly transmit: Transmit;
  /** Something has happened that nobody has called for. */
  readonly stirred: () => void;
}

/** So long a daemon that ends waits for others to hear of it. */
const FAREWELL_MS = 1000;

const OTHER: Readonly<Record<ChannelRole, ChannelRole>> = { source: 'destination', destination: 'source' };

/** Every migration between this host and others. */
export class Sessions {
  private readonly sessions = new Map<string, Session>();
  private readonly closed: Session[] = [];
  /** What this daemon knows of sessions of its earlier starts. */
  readonly remembered: ReadonlyMap<string, RememberedSession>;
  private nextOrdinal: number;

  constructor(readonly host: Host) {
    this.remembered = rememberedSessions(host.migration.ledger);
    this.nextOrdinal = this.remembered.size + 1;
    host.migration.farewells.push(() => this.end());
    // While there is still something to take back: the process's memory goes first.
    host.processes.onEnd((process) => {
      for (const session of this.sessions.values()) if (session.process === process) session.giveUp(because('PROCESS_EXITED'));
    });
  }

  /** Oldest first. */
  get list(): readonly Session[] {
    return [...this.sessions.values()];
  }

  /** ENOENT. */
  find(id: string): Result<Session> {
    return (
      this.sessions.get(id) ??
      new Failure('ENOENT', 'NO_SUCH_MIGRATION', 'simkvmd', {
        field: 'session',
        given: id,
        allowed: 'as ListMigrations names it',
      })
    );
  }

  get(id: string): Session | undefined {
    return this.sessions.get(id);
  }

  /** EACCES: whoever called this daemon for its half of a session was this daemon, which has the other one. */
  otherHalfIsHere(id: string | null, half: ChannelRole): Failure | null {
    const other = id === null ? undefined : this.sessions.get(id);
    if (other === undefined || other.half.role === half || other.met || other.closed) return null;
    return peerIsThisDaemon(fingerprint(this.host.migration.identity.publicKey));
  }

  /** EINVAL, EEXIST, EAGAIN: no session with this number can begin. */
  refusal(id: string | null): Failure | null {
    if (id !== null) {
      const wrong = checkSessionId(id);
      if (wrong !== null) return wrong;
      if (this.sessions.has(id) || this.host.migration.ledger.hasCommitted(id))
        return new Failure('EEXIST', 'SESSION_EXISTS', 'simkvmd', { field: 'session', given: id, allowed: 'a new number' });
    }
    if (this.sessions.size - this.closed.length < SESSIONS_MAX) return null;
    return new Failure('EAGAIN', 'TOO_MANY_MIGRATIONS', 'simkvmd', { limit: `${SESSIONS_MAX} that are not over` });
  }

  /**
   * Begins a session.
   * @param id its number; null: a new one
   * @param makeHalf may refuse
   */
  begin(id: string | null, process: Process, makeHalf: (wiring: HalfWiring) => Result<Half>): Result<Session> {
    const refused = this.refusal(id);
    if (refused !== null) return refused;
    const number = id ?? newSessionId();
    const { bootId: boot, migration, kernel } = this.host;
    let session: Session | null = null;
    const half = makeHalf({
      local: { session: number, boot, ledger: migration.ledger.id },
      transmit: (frame, stream) => session?.transmit(frame, stream),
      stirred: () => session?.stirred(),
    });
    if (failed(half)) return half;
    const onClosed = (over: Session): void => this.keepClosed(over);
    session = new Session({ id: number, ordinal: this.nextOrdinal++, half, kernel, process, onClosed });
    this.sessions.set(number, session);
    migration.heapRoom?.enter();
    return session;
  }

  /**
   * The daemon is about to end, and its guests with it: what can be given up is, so that those at the other end, who could only wait
   * for it to come back, need not. Resolves when they have heard, or after a second.
   */
  private async end(): Promise<void> {
    const heard = this.list
      .filter(({ closed, connected, half }) => !closed && connected && !half.handedOver)
      .map((session) => {
        session.giveUp(because('DAEMON_STOPPED', `the daemon of the ${session.half.role} has been told to end`));
        return session.parted();
      });
    if (heard.length > 0) await Promise.race([delay(FAREWELL_MS), Promise.all(heard)]);
  }

  /** Gives a session up that has come to nothing, and forgets it unless the other daemon has heard of it. */
  drop(session: Session, failure: Failure): void {
    session.giveUp(reasonOf(failure));
    if (session.met) return;
    this.sessions.delete(session.id);
    const at = this.closed.indexOf(session);
    if (at >= 0) this.closed.splice(at, 1);
  }

  /** How the other half of a session is dialled. */
  dialling(address: string): OpenStream {
    const client = new DaemonClient(this.host.migration, address);
    return (session, index) => {
      const { role } = session.half;
      const { migration: host } = this.host;
      const listen = (wire: Wire): PeerStream => new PeerStream({ role, session: session.id, index, host, wire, owner: session });
      return client.exchange(session.id, OTHER[role], index, listen);
    };
  }

  private keepClosed(session: Session): void {
    this.host.migration.heapRoom?.leave();
    this.closed.push(session);
    const oldest = this.closed.length > CLOSED_MAX ? this.closed.shift() : undefined;
    if (oldest !== undefined) this.sessions.delete(oldest.id);
  }
}
