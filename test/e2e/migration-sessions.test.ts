import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  introduce,
  MigrationHalf,
  MigrationStanding,
  migrate,
  receivedGuest,
  receiveVm,
  SimKvm,
  sendVm,
  validateMigration,
} from '../../client/index.js';
import { startCutProxy } from './cut-proxy.js';
import {
  type CountingGuest,
  type Host,
  largeGuest,
  plainGuest,
  runWhile,
  startHost,
  startHosts,
  upTo,
} from './migrating-guest.js';

/** So slow that the migration of a large guest does not end by itself while a test looks at it. */
const SLOW = { bandwidth: 4096 };

const goesOn = async (guest: CountingGuest): Promise<void> => {
  const serial: number[] = [];
  expect(await runWhile(guest, serial, () => serial.length < 10)).toBeNull();
  expect(serial).toEqual(upTo(10));
};

const nothingLeft = async (...hosts: readonly Host[]): Promise<void> => {
  for (const { process, simkvm } of hosts) {
    await process[Symbol.asyncDispose]();
    const left = async () => {
      const { vms, kmem, findings } = await simkvm.host.getHost();
      return { vms, kmem, findings };
    };
    await expect.poll(left).toEqual({ vms: 0, kmem: [], findings: 0n });
  }
};

describe('the daemons of a migration', () => {
  it('both begin by one call of the destination', async () => {
    await using hosts = await startHosts();
    const { here, there } = hosts;
    const { vm } = await plainGuest(here);
    const session = await receiveVm(there.process, { session: 'by-destination', from: here.process, vm });
    expect(session).toBe('by-destination');
    for await (const { standing, closed, received } of there.simkvm.migrations.watch(session)) {
      if (!closed) continue;
      expect(standing).toBe(MigrationStanding.MIGRATION_STANDING_COMMITTED);
      if (received === null) throw new Error('nothing has arrived');
      const [vcpu] = receivedGuest(there.process, received).vcpus;
      if (vcpu === undefined) throw new Error('no vCPU');
      await goesOn({ vm, vcpu });
    }
    await nothingLeft(here, there);
  });

  it('both begin by one call of the destination, also where the source’s answer is lost', async () => {
    await using proxy = await startCutProxy();
    await using hosts = await startHosts();
    const { here, there } = hosts;
    proxy.to = here.daemon.target;
    proxy.losesAnswer = true;
    const { vm } = await plainGuest(here);
    const from = { address: proxy.target, process: here.process.token };
    const session = await receiveVm(there.process, { session: 'told-twice', from, vm: vm.fd });
    await expect.poll(async () => (await there.simkvm.migrations.get(session)).closed).toBe(true);
    expect(await there.simkvm.migrations.list()).toMatchObject([{ phase: 'committed' }]);
    expect(await here.simkvm.migrations.list()).toMatchObject([{ session, phase: 'sent' }]);
    expect(proxy.losesAnswer).toBe(false);
    await nothingLeft(here, there);
  });

  it('push where the destination cannot reach the source', async () => {
    await using here = await startHost('--advertise', '127.0.0.1:1');
    await using there = await startHost();
    await introduce(here.simkvm.migrations, there.simkvm.migrations);
    const { vm } = await plainGuest(here);
    const { received } = await migrate(vm, { to: there.process });
    expect(received.vcpus).toHaveLength(1);
    await nothingLeft(here, there);
  });

  it('are both needed: nobody answers, and the guest runs on', async () => {
    await using here = await startHost();
    const guest = await plainGuest(here);
    const nobody = { address: '127.0.0.1:1', process: 'a process' };
    await expect(migrate(guest.vm, { to: nobody })).rejects.toMatchObject({ errno: 'EHOSTUNREACH' });
    await expect(receiveVm(here.process, { from: nobody, vm: 3 })).rejects.toMatchObject({ errno: 'EHOSTUNREACH' });
    await goesOn(guest);
    expect(await here.simkvm.migrations.list()).toEqual([]);
    await nothingLeft(here);
  });

  it('dial again when their connection is cut, and go on where they were', async () => {
    await using proxy = await startCutProxy();
    await using here = await startHost('--advertise', proxy.target);
    await using there = await startHost();
    proxy.to = here.daemon.target;
    await introduce(here.simkvm.migrations, there.simkvm.migrations);
    const guest = await plainGuest(here);
    const serial: number[] = [];
    const running = runWhile(guest, serial, () => true);
    const phases = new Set<string>();
    // The memory of the guest's program alone takes more.
    proxy.bytesOf(1, 2048);
    proxy.bytesOf(2, 4096);
    const { received } = await migrate(guest.vm, {
      to: there.process,
      limits: { bandwidth: 16_384 },
      onProgress: ({ phase, connected }) => {
        if (connected && !phases.has(phase)) proxy.cut();
        phases.add(phase);
      },
    });
    expect(await running).toBe('EIO');
    const [vcpu] = received.vcpus;
    if (vcpu === undefined) throw new Error('no vCPU');
    const left = serial.length;
    await runWhile({ vm: received.vm, vcpu }, serial, () => serial.length < left + 10);
    expect(serial).toEqual(upTo(serial.length));
    expect(proxy.connections).toBeGreaterThan(2);
    await nothingLeft(here, there);
  });
});

describe('a session', () => {
  it('is begun once, however often its process says so, and belongs to that VM', async () => {
    await using hosts = await startHosts();
    const { here, there } = hosts;
    const [guest, other] = [await largeGuest(here), await plainGuest(here)];
    const send = () => sendVm(guest.vm, { session: 'one', to: there.process, limits: SLOW });
    expect(await Promise.all([send(), send()])).toEqual(['one', 'one']);
    expect(await send()).toBe('one');
    expect(await here.simkvm.migrations.list()).toHaveLength(1);
    await expect(sendVm(other.vm, { session: 'one', to: there.process })).rejects.toMatchObject({ errno: 'EEXIST' });
    await here.simkvm.migrations.cancel('one');
    await expect.poll(async () => (await here.simkvm.migrations.get('one')).closed).toBe(true);
    const over = { errno: 'EEXIST', reason: 'SESSION_IS_OVER', details: { state: 'stayed', ended: 'CANCELLED' } };
    await expect(send()).rejects.toMatchObject(over);
    await goesOn(guest);
    await expect.poll(async () => (await there.simkvm.migrations.get('one')).closed).toBe(true);
    await nothingLeft(here, there);
  });

  it('is the only one of its VM, whichever others are begun at the same time', async () => {
    await using hosts = await startHosts();
    await using elsewhere = await startHost();
    const { here, there } = hosts;
    await introduce(here.simkvm.migrations, elsewhere.simkvm.migrations);
    const { vm } = await plainGuest(here);
    const begun = [there, elsewhere, there].map(({ process }) => migrate(vm, { to: process }));
    const ends = await Promise.allSettled(begun);
    expect(ends.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
    for (const end of ends)
      if (end.status === 'rejected') expect(end.reason).toMatchObject({ errno: 'EBUSY', reason: 'MIGRATION_UNDER_WAY' });
    await nothingLeft(here, there, elsewhere);
  });

  it('has two daemons: the one that calls is no other', async () => {
    await using here = await startHost();
    const guest = await plainGuest(here);
    const itself = { errno: 'EACCES', reason: 'PEER_IS_THIS_DAEMON' };
    for (const how of [{}, { push: true }, { relay: true }])
      await expect(migrate(guest.vm, { to: here.process, ...how })).rejects.toMatchObject(itself);
    await expect(receiveVm(here.process, { from: here.process, vm: guest.vm })).rejects.toMatchObject(itself);
    for (const push of [false, true])
      expect(await validateMigration(guest.vm, { to: here.process, push })).toMatchObject({ reason: itself.reason });
    await goesOn(guest);
    await nothingLeft(here);
  });

  it.each([
    { limits: { streams: 0 }, allowed: '1 to 16' },
    { limits: { rounds: 1001 }, allowed: '1 to 1000' },
    { limits: { bandwidth: 0 }, allowed: '4096 to 2^53-1 bytes a second' },
    { limits: { switchover_bandwidth: 1 }, allowed: '4096 to 2^53-1 bytes a second' },
    { limits: { downtime_ms: -1 }, allowed: '0 to 2000000' },
  ])('does not begin with $limits', async ({ limits, allowed }) => {
    await using here = await startHost();
    const { vm } = await plainGuest(here);
    const [field] = Object.keys(limits);
    const refusal = { errno: 'EINVAL', reason: 'FIELD_OUT_OF_RANGE', details: { field: `limits.${field}`, allowed } };
    await expect(sendVm(vm, { limits })).rejects.toMatchObject(refusal);
    await expect(receiveVm(here.process, { limits })).rejects.toMatchObject(refusal);
    expect(await here.simkvm.migrations.list()).toEqual([]);
  });

  it('is received once, however often its process says so, and from one place', async () => {
    await using hosts = await startHosts();
    const { here, there } = hosts;
    const guest = await plainGuest(here);
    const request = { session: 'received', from: here.process, vm: guest.vm };
    const answers = [receiveVm(there.process, request), receiveVm(there.process, request)];
    expect(await Promise.all(answers)).toEqual(['received', 'received']);
    expect(await receiveVm(there.process, request)).toBe('received');
    expect(await receiveVm(there.process, { session: 'received' })).toBe('received');
    await using other = await there.simkvm.attach();
    const exists = { errno: 'EEXIST', reason: 'SESSION_EXISTS' };
    await expect(receiveVm(other, request)).rejects.toMatchObject(exists);
    await expect(receiveVm(there.process, { ...request, from: { address: '127.0.0.1:1', process: '1' } })).rejects.toMatchObject(
      exists,
    );
    for await (const { closed } of there.simkvm.migrations.watch('received')) if (closed) break;
    expect((await there.simkvm.migrations.list()).map(({ session }) => session)).toEqual(['received']);
    expect(await receiveVm(there.process, request)).toBe('received');
  });

  it('is listed and watched on both hosts', async () => {
    await using hosts = await startHosts();
    const { here, there } = hosts;
    const session = await sendVm((await largeGuest(here)).vm, { to: there.process, limits: SLOW });
    const listed = async () => (await here.simkvm.migrations.list())[0];
    // The destination has yet to accept when SendVm answers.
    const copying = { session, half: MigrationHalf.MIGRATION_HALF_SOURCE, phase: 'copying', connected: true };
    await expect.poll(listed).toMatchObject(copying);
    expect(await there.simkvm.migrations.get(session)).toMatchObject({ half: MigrationHalf.MIGRATION_HALF_DESTINATION });
    await expect(here.simkvm.migrations.get('another')).rejects.toMatchObject({ errno: 'ENOENT' });
    await here.simkvm.migrations.cancel(session);
    await expect.poll(async () => (await there.simkvm.migrations.get(session)).closed).toBe(true);
    await nothingLeft(here, there);
  });

  it('is not in doubt, so that nobody may decide it', async () => {
    await using hosts = await startHosts();
    const { here, there } = hosts;
    const guest = await largeGuest(here);
    const session = await sendVm(guest.vm, { to: there.process, limits: SLOW });
    for (const { simkvm } of [here, there])
      await expect(simkvm.migrations.override(session, 'run')).rejects.toMatchObject({ errno: 'EBUSY' });
    await here.simkvm.migrations.cancel(session);
    await goesOn(guest);
  });

  it.each(['source', 'destination'] as const)('ends with the process of its %s, and the other side hears of it', async (side) => {
    await using hosts = await startHosts();
    const { here, there } = hosts;
    const guest = await largeGuest(here);
    const session = await sendVm(guest.vm, { to: there.process, limits: SLOW });
    const [dying, other] = side === 'source' ? [here, there] : [there, here];
    await dying.process[Symbol.asyncDispose]();
    await expect
      .poll(async () => (await other.simkvm.migrations.get(session)).reason)
      .toMatch(/PROCESS_EXITED|DESTINATION_ABORTED/);
    if (side === 'destination') await goesOn(guest);
    await nothingLeft(here, there);
  });

  it.each(['source', 'destination'] as const)('is given up when the daemon of its %s is told to end', async (side) => {
    await using here = await startHost();
    await using there = await startHost();
    await introduce(here.simkvm.migrations, there.simkvm.migrations);
    const guest = await plainGuest(here);
    const session = await sendVm(guest.vm, { to: there.process, limits: SLOW });
    await expect.poll(async () => (await here.simkvm.migrations.get(session)).phase).toBe('copying');
    const [ending, other] = side === 'source' ? [here, there] : [there, here];
    await ending.daemon.stop();
    const { phase, reason, detail } = await other.simkvm.migrations.get(session);
    expect({ phase, reason }).toEqual({ phase: side === 'source' ? 'aborted' : 'stayed', reason: 'DAEMON_STOPPED' });
    expect(detail).toContain(side);
    if (side === 'destination') await goesOn(guest);
    await nothingLeft(other);
  });

  it('goes on when its destination has lost its power before Commit, until it is cancelled', async () => {
    await using here = await startHost();
    await using there = await startHost();
    await introduce(here.simkvm.migrations, there.simkvm.migrations);
    const guest = await largeGuest(here);
    const session = await sendVm(guest.vm, { to: there.process, limits: SLOW });
    process.kill(there.daemon.pid, 'SIGKILL');
    await expect.poll(async () => (await here.simkvm.migrations.get(session)).connected).toBe(false);
    const { standing } = await here.simkvm.migrations.get(session);
    expect(standing).toBe(MigrationStanding.MIGRATION_STANDING_SENDING);
    await goesOn(guest);
    expect(await here.simkvm.migrations.cancel(session)).toMatchObject({ phase: 'stayed', reason: 'CANCELLED' });
    await nothingLeft(here);
  });
});

describe('a daemon that has been started again', () => {
  it('lists what its ledger remembers, to those on its own machine', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'simkvm-remembered-'));
    const lines = [
      { kind: 'store', id: 'store' },
      { kind: 'overridden', session: 'decided', decision: 'run' },
      { kind: 'committed', session: 'had-come' },
      { kind: 'committed', session: 'settled' },
      { kind: 'forgotten', session: 'settled' },
    ];
    writeFileSync(join(directory, 'ledger'), lines.map((line) => `${JSON.stringify(line)}\n`).join(''), { mode: 0o600 });
    await using hosts = await startHosts();
    await using again = await startHost('--state-dir', directory);
    const { here } = hosts;
    const guest = await plainGuest(here);
    await introduce(here.simkvm.migrations, again.simkvm.migrations);
    await migrate(guest.vm, { to: again.process, session: 'has-come' });
    const { migrations } = again.simkvm;
    expect(await migrations.list()).toMatchObject([
      {
        session: 'decided',
        phase: 'overridden',
        reason: 'OPERATOR_OVERRIDE',
        detail: expect.stringMatching(/: run$/),
        closed: true,
      },
      {
        ...{ session: 'had-come', half: MigrationHalf.MIGRATION_HALF_DESTINATION, reason: 'DAEMON_RESTARTED', closed: false },
        standing: MigrationStanding.MIGRATION_STANDING_COMMITTED,
      },
      { session: 'has-come', reason: '' },
    ]);
    expect(await migrations.get('had-come')).toMatchObject({ reason: 'DAEMON_RESTARTED' });
    await expect(migrations.get('settled')).rejects.toMatchObject({ errno: 'ENOENT' });
    await expect(receiveVm(again.process, { session: 'had-come' })).rejects.toMatchObject({ errno: 'EEXIST' });
    rmSync(directory, { recursive: true });
  });
});

describe('a daemon', () => {
  it('tells who it is, and lets nobody in that it has not been told of', async () => {
    await using here = await startHost();
    await using client = await SimKvm.connect(here.daemon.target);
    const { fingerprint, public_key, peers } = await client.migrations.identity();
    expect(fingerprint).toMatch(/^[0-9a-f]{64}$/);
    expect(public_key).toHaveLength(32);
    expect(peers).toEqual([]);
    expect(await client.migrations.allowPeer('A'.repeat(64))).toEqual(['a'.repeat(64)]);
    await expect(client.migrations.allowPeer('short')).rejects.toMatchObject({ errno: 'EINVAL', reason: 'FINGERPRINT' });
  });
});
