import { describe, expect, it, vi } from 'vitest';
import { ExchangeRequest, MigrationHalf } from '../../../../gen/messages.js';
import { failed } from '../../../../server/kernel/failure.js';
import { createIdentity, fingerprint } from '../../../../server/migration/identity.js';
import { because } from '../../../../server/migration/reason.js';
import { createDestinationHalf } from '../../../../server/rpc/migration/destination-half.js';
import { ATTACH_MS } from '../../../../server/rpc/migration/session.js';
import { SESSIONS_MAX } from '../../../../server/rpc/migration/sessions.js';
import { plainGuest, runOnce, sevGuest } from '../../migration/two-hosts.js';
import {
  attachMessage,
  beginDestination,
  beginSource,
  type Carrier,
  callRaw,
  createDaemon,
  createDaemons,
  dialling,
  must,
  type TestDaemon,
  until,
} from './two-daemons.js';

const SERIAL_EXIT = 2;
const vmsOf = ({ rig }: TestDaemon): number => rig.vmm.process.kernel.vms.size;
const contextsOf = ({ rig }: TestDaemon): number => rig.vmm.process.kernel.amd?.processor.guests().length ?? 0;
const findingsOf = ({ rig }: TestDaemon) => rig.vmm.process.kernel.findings.all.map(({ kind }) => kind);

describe('a session between two daemons', () => {
  it('takes a guest from one to the other, and both know', async () => {
    const { here, there } = createDaemons();
    const guest = sevGuest(here.rig);
    const source = beginSource(here, guest);
    const destination = beginDestination(there);
    expect(await destination.dial(dialling(there, here), 1)).toBeNull();
    await until('both are closed', () => source.closed && destination.closed);
    expect([source.half.standing, destination.half.standing]).toEqual(['sent', 'committed']);
    expect([source.peer, destination.peer]).toEqual([there.fingerprint, here.fingerprint]);
    expect(guest.vm.life).toMatchObject({ kind: 'moved', cause: { kind: 'sent', session: 'session' } });
    expect(destination.half.received()).toMatchObject({ slots: [{ id: 0, guest_phys_addr: 0 }] });
  });

  it('goes over several streams', async () => {
    const { here, there } = createDaemons();
    const source = beginSource(here, plainGuest(here.rig));
    const destination = beginDestination(there);
    await destination.dial(dialling(there, here), 4);
    await until('both are closed', () => source.closed && destination.closed);
    expect([source.half.standing, destination.half.standing]).toEqual(['sent', 'committed']);
  });

  it('goes on where it was when its stream is cut, after whichever message', async () => {
    for (let first = 1; first <= 24; first += 2) {
      const { here, there } = createDaemons();
      const guest = sevGuest(here.rig);
      const source = beginSource(here, guest);
      const destination = beginDestination(there);
      let dials = 0;
      const cutOnce = (): Carrier => {
        const last = dials++ === 0 ? first : Number.POSITIVE_INFINITY;
        return (message, _way, count) => (count > last ? null : [message]);
      };
      void destination.dial(dialling(there, here, cutOnce), 1);
      await until(`cut after ${first}: both are closed`, () => source.closed && destination.closed);
      expect([source.half.standing, destination.half.standing], `cut after ${first}`).toEqual(['sent', 'committed']);
      expect(findingsOf(there)).toEqual([]);
    }
  });

  it('is dialled again where a stream stays and carries nothing any more', async () => {
    const { here, there } = createDaemons();
    const source = beginSource(here, plainGuest(here.rig));
    const destination = beginDestination(there);
    let dials = 0;
    const swallow = (): Carrier => {
      const last = dials++ === 0 ? 8 : Number.POSITIVE_INFINITY;
      return (message, _way, count) => (count > last ? [] : [message]);
    };
    void destination.dial(dialling(there, here, swallow), 1);
    await until('both are closed', () => source.closed && destination.closed, 40_000);
    expect(dials).toBeGreaterThan(1);
    expect([source.half.standing, destination.half.standing]).toEqual(['sent', 'committed']);
  });

  it('is dialled by the side that was called, where the other one does not come back', async () => {
    const { here, there } = createDaemons();
    const source = beginSource(here, plainGuest(here.rig));
    const destination = beginDestination(there);
    // The destination pulls over a stream that is cut, and cannot dial again.
    let dials = 0;
    const cut = (): Carrier => {
      const last = dials++ === 0 ? 6 : 0;
      return (message, _way, count) => (count > last ? null : [message]);
    };
    void destination.dial(dialling(there, here, cut), 1);
    await until('they have met', () => source.met);
    source.dialBack = dialling(here, there);
    await until('both are closed', () => source.closed && destination.closed);
    expect([source.half.standing, destination.half.standing]).toEqual(['sent', 'committed']);
  });
});

describe('a daemon that is told to end', () => {
  const end = async ({ host }: TestDaemon): Promise<void> => {
    await Promise.all(host.migration.farewells.map((farewell) => farewell()));
  };

  it.each(['source', 'destination'] as const)(
    'as the %s, after whichever message: both know whose the guest is',
    async (side) => {
      const ends = new Set<string>();
      for (let last = 8; last <= 26; last += 2) {
        const { here, there } = createDaemons();
        const guest = sevGuest(here.rig);
        const source = beginSource(here, guest);
        const destination = beginDestination(there);
        let told = false;
        const carrier: Carrier = (message, _way, count) => {
          told ||= count === last;
          return [message];
        };
        void destination.dial(
          dialling(there, here, () => carrier),
          1,
        );
        await until('it has been told, or is over', () => told || (source.closed && destination.closed));
        await end(side === 'source' ? here : there);
        const stands = [source.half.standing, destination.half.standing].join();
        ends.add(stands);
        expect(stands, `after ${last}`).toMatch(/^(stayed,aborted|sent,committed)$/);
        if (stands === 'sent,committed') continue;
        expect([source.half.reason, destination.half.reason]).toEqual(['DAEMON_STOPPED', 'DAEMON_STOPPED']);
        expect(runOnce(guest, [])).toBe(SERIAL_EXIT);
        await until('the copy is gone', () => vmsOf(there) === 0 && contextsOf(there) === 0);
      }
      expect([...ends].sort()).toEqual(['sent,committed', 'stayed,aborted']);
    },
  );

  it('does not wait for who is away', async () => {
    const { here } = createDaemons();
    const source = beginSource(here, plainGuest(here.rig));
    await end(here);
    expect(source.half.standing).toBe('sending');
  });
});

describe('a session whose other half never comes', () => {
  it('ends after a minute, and leaves the guest where it is', () => {
    vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval', 'performance'] });
    try {
      const { here, there } = createDaemons();
      const guest = sevGuest(here.rig);
      const source = beginSource(here, guest);
      const destination = beginDestination(there);
      vi.advanceTimersByTime(ATTACH_MS - 1000);
      expect([source.half.phase, destination.half.phase]).toEqual(['negotiating', 'expecting']);
      expect(source.waitsFor).toBe('the daemon of the other half, which has not come yet');
      vi.advanceTimersByTime(2000);
      expect([source.waitsFor, destination.waitsFor]).toEqual(['', '']);
      expect(source).toMatchObject({ closed: true, half: { phase: 'stayed', reason: 'PEER_NEVER_CAME' } });
      expect(destination).toMatchObject({ closed: true, half: { phase: 'aborted', reason: 'PEER_NEVER_CAME' } });
      expect(runOnce(guest, [])).toBe(SERIAL_EXIT);
    } finally {
      vi.useRealTimers();
    }
  });

  it('is not one that has come and gone: that is asked for, for as long as the guest runs here', async () => {
    const { here, there } = createDaemons();
    const source = beginSource(here, plainGuest(here.rig));
    const destination = beginDestination(there);
    vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval', 'performance'] });
    try {
      const stopsAtOnce = (): Carrier => (message, _way, count) => (count > 6 ? null : [message]);
      await destination.dial(dialling(there, here, stopsAtOnce), 1);
      while (source.connected || !source.met) await new Promise((resolve) => setImmediate(resolve));
      vi.advanceTimersByTime(2 * ATTACH_MS);
      expect(source).toMatchObject({ closed: false, half: { standing: 'sending' } });
    } finally {
      vi.useRealTimers();
    }
  });
});

describe('a session in doubt', () => {
  /** Commit does not arrive, and nothing passes any more. */
  const doubtful = async () => {
    const { here, there } = createDaemons();
    const guest = plainGuest(here.rig);
    const source = beginSource(here, guest);
    const destination = beginDestination(there);
    let dials = 0;
    const carry = (): Carrier => {
      dials++;
      return (message) => (source.half.standing === 'in-doubt' ? null : [message]);
    };
    void destination.dial(dialling(there, here, carry), 1);
    await until('they dial in vain', () => dials > 1 && !source.connected);
    expect([source.half.standing, destination.half.standing]).toEqual(['in-doubt', 'prepared']);
    return { guest, source, destination };
  };

  it('runs where an operator says that it does', async () => {
    const { guest, source, destination } = await doubtful();
    expect(runOnce(guest, [])).toBeNull();
    expect(source.waitsFor).toMatch(/^the destination: it alone can say/);
    expect(destination.waitsFor).toMatch(/^the source: it alone can say/);
    expect(destination.half.override('discard')).toBe(true);
    expect(destination.half).toMatchObject({ standing: 'aborted', reason: 'OPERATOR_OVERRIDE' });
    expect(source.half.override('run')).toBe(true);
    expect(source.half).toMatchObject({ standing: 'stayed', reason: 'OPERATOR_OVERRIDE' });
    expect(source.half.override('run')).toBe(false);
  });

  it('or there, and not here', async () => {
    const { guest, source, destination } = await doubtful();
    expect(destination.half.override('run')).toBe(true);
    expect(destination.half.standing).toBe('committed');
    expect(source.half.override('discard')).toBe(true);
    expect(source.half.standing).toBe('sent');
    expect(runOnce(guest, [])).toBe('EIO');
  });

  it('is not given up by whoever breaks its frames', async () => {
    const { source } = await doubtful();
    source.half.giveUpIfSafe(because('FRAME_NOT_AUTHENTIC'));
    expect(source.half).toMatchObject({ standing: 'in-doubt', phase: 'committing' });
    source.half.override('run');
  });
});

describe('somebody between two daemons', () => {
  /** Of a migration that is left alone: those of the handshake, and all. */
  const HANDSHAKE = 4;
  const MESSAGES = 24;
  const attempt = async (tamper: (message: Buffer) => Buffer[], at: number) => {
    const { here, there } = createDaemons();
    const guest = sevGuest(here.rig);
    const source = beginSource(here, guest);
    const destination = beginDestination(there);
    let dials = 0;
    const carry = (): Carrier => {
      const first = dials++ === 0;
      return (message, _way, count) => (first && count === at ? tamper(message) : [message]);
    };
    void destination.dial(dialling(there, here, carry), 1);
    await until(`message ${at}: both have ended`, () => source.half.ended && destination.half.ended);
    return { here, there, guest, source, destination };
  };

  it.each([
    [
      'flips a bit',
      (message: Buffer) => {
        const changed = Buffer.from(message);
        const index = changed.length >> 1;
        changed[index] = (changed[index] ?? 0) ^ 1;
        return [changed];
      },
    ],
    ['repeats a message', (message: Buffer) => [message, message]],
    ['leaves a message out', () => []],
  ])('who %s is noticed before the guest runs there: it has arrived whole, or has stayed', async (_what, tamper) => {
    let refused = 0;
    for (let at = HANDSHAKE + 1; at <= MESSAGES; at += 3) {
      const { there, guest, source, destination } = await attempt(tamper, at);
      expect(source.half.standing === 'stayed' && destination.half.standing === 'committed').toBe(false);
      if (source.half.standing === 'stayed') {
        refused++;
        expect(`${source.half.reason} ${destination.half.reason}`).toMatch(/FRAME_/);
        expect(runOnce(guest, [])).toBe(SERIAL_EXIT);
        await until('the copy is gone', () => vmsOf(there) === 0 && contextsOf(there) === 0);
      }
    }
    expect(refused).toBeGreaterThan(0);
  });
});

describe('whoever calls Exchange', () => {
  const attach = attachMessage({ session: 'session', half: MigrationHalf.MIGRATION_HALF_SOURCE });
  const hello = (bytes: Uint8Array) => ExchangeRequest.encode({ hello: bytes }).finish();
  const sealed = (bytes: Uint8Array) => ExchangeRequest.encode({ sealed: bytes }).finish();

  it.each([
    ['says nothing of a session', [hello(new Uint8Array(64))], 'ATTACH_INVALID'],
    ['names no half', [attachMessage({ session: 'session' })], 'ATTACH_INVALID'],
    ['names no session', [attachMessage({ session: '', half: 1 })], 'SESSION_NUMBER'],
    ['wants a seventeenth stream', [attachMessage({ session: 'session', half: 1, stream: 16 })], 'ATTACH_INVALID'],
    ['has no address', [attachMessage({ session: 'session', half: 1, caller_address: '\0' })], 'ADDRESS'],
    ['sends frames before it has proved itself', [attach, sealed(new Uint8Array(100))], 'MESSAGE_OUT_OF_TURN'],
    ['attaches twice', [attach, attach], 'MESSAGE_OUT_OF_TURN'],
    ['has half a key', [attach, hello(new Uint8Array(63))], 'HELLO_LENGTH'],
    ['is none of the peers', [attach, hello(new Uint8Array(64).fill(7))], 'PEER_NOT_ALLOWED'],
  ])('and %s, ends its own stream alone', async (_what, messages, reason) => {
    const { here, there } = createDaemons();
    const source = beginSource(here, plainGuest(here.rig));
    const call = callRaw(here);
    for (const message of messages) call.say(message);
    expect(call.ended).toMatchObject({ reason });
    expect(source.half.phase).toBe('negotiating');
    const destination = beginDestination(there);
    void destination.dial(dialling(there, here), 1);
    await until('the guest has arrived', () => source.closed && destination.closed);
    expect(source.half.standing).toBe('sent');
  });

  it('and pretends to be a peer, cannot prove it', () => {
    const { here, there } = createDaemons();
    beginSource(here, plainGuest(here.rig));
    const call = callRaw(here);
    call.say(attach);
    const stolen = Buffer.concat([createIdentity(new Uint8Array(32).fill(1)).publicKey, there.host.migration.identity.publicKey]);
    call.say(hello(stolen));
    call.say(ExchangeRequest.encode({ proof: new Uint8Array(64) }).finish());
    expect(call.ended).toMatchObject({ reason: expect.stringMatching(/^PEER_PROOF_WRONG|^PEER_KEY_UNUSABLE/) });
  });

  it('is not let in where this daemon is none of its peers', async () => {
    const { here, there } = createDaemons();
    there.host.migration.peers.clear();
    beginSource(here, plainGuest(here.rig));
    const destination = beginDestination(there);
    expect(await destination.dial(dialling(there, here), 1)).toMatchObject({ errno: 'EACCES', reason: 'PEER_NOT_ALLOWED' });
  });

  it('gets no session that belongs to another peer, though it is one itself', async () => {
    const { here, there } = createDaemons();
    const third = createDaemon('third');
    here.host.migration.peers.add(third.fingerprint);
    third.host.migration.peers.add(here.fingerprint);
    const source = beginSource(here, plainGuest(here.rig));
    // It never answers the offer, so that the session stays open.
    const mute = (): Carrier => (message, way, count) => (way === 'to-called' && count > 6 ? [] : [message]);
    const destination = beginDestination(there);
    await destination.dial(dialling(there, here, mute), 1);
    await until('they have met', () => source.met);
    const thief = beginDestination(third);
    expect(await thief.dial(dialling(third, here), 1)).toMatchObject({ reason: 'SESSION_HAS_OTHER_PEER' });
    expect(source.peer).toBe(there.fingerprint);
  });

  it('asks for a session that nobody has, and hears so: its copy is given up', async () => {
    const { here, there } = createDaemons();
    const destination = beginDestination(there);
    await destination.dial(dialling(there, here), 1);
    await until('it is closed', () => destination.closed);
    expect(destination.half).toMatchObject({ standing: 'aborted', reason: 'SOURCE_FORGOT' });
  });

  it('asks for a session that has been committed before a restart, and hears that', async () => {
    const { here, there } = createDaemons();
    const guest = plainGuest(here.rig);
    const source = beginSource(here, guest);
    there.host.migration.ledger.record({ kind: 'committed', session: 'session' });
    await source.dial(dialling(here, there), 1);
    // It owns the guest, and nothing that this side sends reaches anybody.
    await until('it has asked', () => source.connected);
    expect(source.half.standing).toBe('sending');
  });
});

describe('the sessions of a daemon', () => {
  it('have one number each, also after their end', () => {
    const { here } = createDaemons();
    const session = beginDestination(here, 'one');
    expect(here.sessions.refusal('one')).toMatchObject({ errno: 'EEXIST', details: { field: 'session' } });
    session.giveUp(because('END_OF_TEST'));
    expect(session.closed).toBe(true);
    expect(here.sessions.refusal('one')).toMatchObject({ errno: 'EEXIST' });
    here.host.migration.ledger.record({ kind: 'committed', session: 'before the restart' });
    expect(here.sessions.refusal('committed-before')).toBeNull();
  });

  it('are bounded, and those that are over are forgotten one by one', () => {
    const { here } = createDaemons();
    const open = Array.from({ length: SESSIONS_MAX }, () => beginDestination(here, null));
    expect(here.sessions.refusal(null)).toMatchObject({ errno: 'EAGAIN', reason: 'TOO_MANY_MIGRATIONS' });
    for (const session of open) session.giveUp(because('END_OF_TEST'));
    expect(here.sessions.refusal(null)).toBeNull();
    expect(here.sessions.list).toHaveLength(256);
    expect(here.sessions.list.at(-1)).toBe(open.at(-1));
  });

  it('end with the process that they are of', () => {
    const { here } = createDaemons();
    const { processes, kernel, migration } = here.host;
    const { process } = must(processes.create('attached'));
    const guest = plainGuest(here.rig);
    const source = beginSource(here, guest);
    const destination = must(
      here.sessions.begin('mine', process, (wiring) =>
        createDestinationHalf({ ...wiring, kernel, process, ledger: migration.ledger }),
      ),
    );
    processes.end(process, 0);
    expect(destination.half).toMatchObject({ standing: 'aborted', reason: 'PROCESS_EXITED' });
    expect(source.half.standing).toBe('sending');
    source.giveUp(because('END_OF_TEST'));
    expect(runOnce(guest, [])).toBe(SERIAL_EXIT);
  });

  it('refuse a guest that cannot be sent, and do not count it', () => {
    const { here } = createDaemons();
    const guest = plainGuest(here.rig);
    beginSource(here, guest, 'first').giveUp(because('END_OF_TEST'));
    guest.vmm.process.close(guest.vcpuFd);
    expect(here.sessions.list).toHaveLength(1);
    expect(failed(here.sessions.find('second'))).toBe(true);
    expect(fingerprint(here.host.migration.identity.publicKey)).toBe(here.fingerprint);
  });
});
