import { type ExchangeAttachInit, ExchangeRequest, ExchangeResponse } from '../../../../gen/messages.js';
import { type Failure, failed } from '../../../../server/kernel/failure.js';
import { fingerprint } from '../../../../server/migration/identity.js';
import { DEFAULT_LIMITS } from '../../../../server/migration/limits.js';
import { because } from '../../../../server/migration/reason.js';
import type { Host } from '../../../../server/rpc/call.js';
import { HALF_OF } from '../../../../server/rpc/migration/daemon-client.js';
import { createDestinationHalf } from '../../../../server/rpc/migration/destination-half.js';
import { Exchange } from '../../../../server/rpc/migration/exchange.js';
import { createVolatileMigrationHost } from '../../../../server/rpc/migration/migration-host.js';
import { PeerStream } from '../../../../server/rpc/migration/peer-stream.js';
import type { OpenStream, Session } from '../../../../server/rpc/migration/session.js';
import { Sessions } from '../../../../server/rpc/migration/sessions.js';
import { createSourceHalf } from '../../../../server/rpc/migration/source-half.js';
import { exchangeMessageOf, type Wire } from '../../../../server/rpc/migration/wire.js';
import { ProcessRegistry } from '../../../../server/rpc/process-registry.js';
import { startPump } from '../../../../server/rpc/pump.js';
import type { BidiCall } from '../../../../server/rpc/streams.js';
import { releaseAfterTest } from '../../../helpers/leftovers.js';
import { createSevRig, type SevRig } from '../../kernel/kvm/svm/sev-rig.js';
import type { CountingGuest } from '../../migration/two-hosts.js';

/** A daemon without sockets: what there is of it for migrations. */
export interface TestDaemon {
  readonly rig: SevRig;
  readonly host: Host;
  readonly sessions: Sessions;
  readonly exchange: Exchange;
  readonly fingerprint: string;
}

export const createDaemon = (name: string): TestDaemon => {
  const rig = createSevRig({ seed: name });
  const { kernel } = rig.vmm.process;
  startPump(kernel);
  const migration = createVolatileMigrationHost();
  const host: Host = { kernel, processes: new ProcessRegistry(kernel), version: 'test', bootId: name, migration, log: null };
  const sessions = new Sessions(host);
  releaseAfterTest(() => {
    for (const session of sessions.list) session.giveUp(because('END_OF_TEST'));
    kernel.scheduler.run();
  });
  return { rig, host, sessions, exchange: new Exchange(sessions), fingerprint: fingerprint(migration.identity.publicKey) };
};

/** Two daemons that know each other. */
export const createDaemons = (): { readonly here: TestDaemon; readonly there: TestDaemon } => {
  const [here, there] = [createDaemon('here'), createDaemon('there')];
  here.host.migration.peers.add(there.fingerprint);
  there.host.migration.peers.add(here.fingerprint);
  return { here, there };
};

export const must = <T>(result: T | Failure): T => {
  if (failed(result)) throw new Error(`${result.reason} ${JSON.stringify(result.details)}`);
  return result;
};

export const beginSource = ({ sessions, host }: TestDaemon, guest: CountingGuest, id: string | null = 'session'): Session =>
  must(
    sessions.begin(id, guest.vmm.process.process, (wiring) =>
      createSourceHalf({ ...wiring, vm: guest.vm, ledger: host.migration.ledger, limits: DEFAULT_LIMITS }),
    ),
  );

export const beginDestination = ({ sessions, host, rig }: TestDaemon, id: string | null = 'session'): Session => {
  const { kernel, migration } = host;
  const { process } = rig.vmm.process;
  return must(
    sessions.begin(id, process, (wiring) => createDestinationHalf({ ...wiring, kernel, process, ledger: migration.ledger })),
  );
};

/** What becomes of the messages of a stream; null: it is cut. */
export type Carrier = (message: Buffer, way: 'to-called' | 'to-caller', count: number) => Buffer[] | null;

const carryAll: Carrier = (message) => [message];

/** A call of Exchange on a daemon, as somebody makes it who may say anything. */
export interface RawCall {
  /** Of ExchangeRequest. */
  say(message: Uint8Array): void;
  readonly answers: ExchangeResponse[];
  hangUp(): void;
  /** Why the daemon has ended it; null: without a reason; undefined: it has not. */
  ended: Failure | null | undefined;
}

export const callRaw = ({ exchange }: TestDaemon, heard: (message: Buffer) => void = () => {}, over = () => {}): RawCall => {
  const call: BidiCall = {
    write: (pieces, sent) => {
      const message = Buffer.concat(pieces);
      raw.answers.push(ExchangeResponse.decode(message));
      heard(message);
      if (sent !== undefined) setImmediate(sent);
      return true;
    },
    end: (failure) => {
      if (raw.ended === undefined) raw.ended = failure;
      over();
    },
    peer: '127.0.0.1:4711',
    certificate: undefined,
  };
  const answers: ExchangeResponse[] = [];
  const raw: RawCall = { say: () => {}, answers, hangUp: () => {}, ended: undefined };
  const listener = exchange.accept(call);
  raw.say = (message) => {
    if (raw.ended === undefined) listener.received(ExchangeRequest.decode(message));
  };
  raw.hangUp = () => listener.ended();
  return raw;
};

export const attachMessage = (attach: ExchangeAttachInit): Buffer => Buffer.from(ExchangeRequest.encode({ attach }).finish());

/** Dials a daemon in this process, over a carrier. */
export const dialling =
  (from: TestDaemon, to: TestDaemon, carry: () => Carrier = () => carryAll): OpenStream =>
  (session, index) => {
    const carrier = carry();
    let count = 0;
    let up = true;
    const carryTo = (way: 'to-called' | 'to-caller', message: Buffer, deliver: (message: Buffer) => void): void => {
      const carried = up ? carrier(message, way, ++count) : [];
      if (carried === null) cut();
      else for (const each of carried) setImmediate(() => up && deliver(each));
    };
    const cut = (): void => {
      if (!up) return;
      up = false;
      setImmediate(() => {
        raw.hangUp();
        stream.ended(null);
      });
    };
    const raw = callRaw(
      to,
      (message) => carryTo('to-caller', message, (each) => stream.received(exchangeMessageOf(ExchangeResponse.decode(each)))),
      () => setImmediate(() => stream.ended(raw.ended ?? null)),
    );
    const wire: Wire = {
      write: (message, sent) => {
        carryTo('to-called', Buffer.concat(message), raw.say);
        if (sent !== undefined) setImmediate(sent);
        return true;
      },
      end: cut,
    };
    const { role } = session.half;
    const half = HALF_OF[role === 'source' ? 'destination' : 'source'];
    raw.say(attachMessage({ session: session.id, half, stream: index, caller_address: '' }));
    const stream = new PeerStream({ role, session: session.id, index, host: from.host.migration, wire, owner: session });
    return stream;
  };

/** Lets the event loop run until something is so. */
export const until = async (what: string, condition: () => boolean, patienceMs = 10_000): Promise<void> => {
  for (let waited = 0; !condition(); waited++) {
    if (5 * waited > patienceMs) throw new Error(`${what}: does not come`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
};
