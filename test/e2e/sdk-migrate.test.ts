import { readFileSync } from 'node:fs';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import {
  introduce,
  type Migrated,
  type Migration,
  MigrationError,
  MigrationStanding,
  migrate,
  type Process,
  type ReceivedGuest,
  SimKvm,
  startDaemon,
  validateMigration,
} from '../../client/index.js';
import { Authority, type Certified } from '../certificates.js';
import { MEDDLERS, type Meddler, MeddlingTransport, recording, replaying } from './meddling-transport.js';
import { type CountingGuest, largeGuest, plainGuest, runWhile, sevGuest, startHosts, upTo } from './migrating-guest.js';

const GUESTS = { plain: plainGuest, SEV: sevGuest } as const;
const NAMES = ['plain', 'SEV'] as const;
/** KVM_DEV_TYPE_VFIO. */
const VFIO = 4;

type Hosts = Awaited<ReturnType<typeof startHosts>>;
type Moved = Migrated & { readonly received: ReceivedGuest };

/** Runs a guest here while it moves, and then where it has arrived: what it has said. */
const serialOf = async (guest: CountingGuest, move: () => Promise<Moved>): Promise<number[]> => {
  const serial: number[] = [];
  const running = runWhile(guest, serial, () => true);
  const { vm, vcpus } = (await move()).received;
  expect(await running).toBe('EIO');
  const [vcpu] = vcpus;
  if (vcpu === undefined) throw new Error('a VM without a vCPU has arrived');
  const before = serial.length;
  await runWhile({ vm, vcpu }, serial, () => serial.length < before + 20);
  return serial;
};

/** The guest goes on where it was. */
const goesOn = async (guest: CountingGuest): Promise<void> => {
  const serial: number[] = [];
  expect(await runWhile(guest, serial, () => serial.length < 10)).toBeNull();
  expect(serial).toEqual(upTo(10));
};

const nothingLeft = async (...ends: readonly Vmm[]): Promise<void> => {
  for (const { process, simkvm } of ends) {
    await process[Symbol.asyncDispose]();
    const { vms, kmem, sev, findings } = await simkvm.host.getHost();
    expect({ vms, kmem, contexts: sev?.guest_count, findings }).toEqual({ vms: 0, kmem: [], contexts: 0, findings: 0n });
  }
};

let hosts: Hosts;
beforeAll(async () => {
  hosts = await startHosts();
});
afterAll(() => hosts[Symbol.asyncDispose]());

/** A VMM on each host, by way of `SimKvm`s of their own. They end with the test. */
const vmms: Vmm[] = [];
afterEach(async () => {
  for (const { process, simkvm } of vmms.splice(0)) {
    await process[Symbol.asyncDispose]();
    await simkvm[Symbol.asyncDispose]();
  }
});

interface Vmm {
  readonly transport: MeddlingTransport;
  readonly simkvm: SimKvm;
  readonly process: Process;
}

const vmmOn = async (target: string): Promise<Vmm> => {
  const transport = await MeddlingTransport.connect(target);
  const simkvm = new SimKvm(transport);
  const vmm = { transport, simkvm, process: await simkvm.attach({ name: 'vmm' }) };
  vmms.push(vmm);
  return vmm;
};

const twoVmms = async (): Promise<{ readonly here: Vmm; readonly there: Vmm }> => ({
  here: await vmmOn(hosts.here.daemon.target),
  there: await vmmOn(hosts.there.daemon.target),
});

describe.each(NAMES)('a %s guest that migrate() moves', (name) => {
  it('goes by way of this program, where the daemons do not dial', async () => {
    const { here, there } = await twoVmms();
    const guest = await GUESTS[name](here);
    const serial = await serialOf(guest, () => migrate(guest.vm, { to: there.process, relay: true }));
    expect(serial).toEqual(upTo(serial.length));
    await nothingLeft(here, there);
  });

  it('goes over several streams, directly and by way of this program', async () => {
    const { here, there } = await twoVmms();
    for (const relay of [false, true]) {
      const guest = await GUESTS[name](here);
      const seen: Migration[] = [];
      const limits = { downtime_ms: 1000, rounds: 3, streams: 3 };
      const onProgress = (migration: Migration): void => void seen.push(migration);
      const serial = await serialOf(guest, () => migrate(guest.vm, { to: there.process, relay, limits, onProgress }));
      expect(serial).toEqual(upTo(serial.length));
      expect(seen.at(-1)).toMatchObject({ standing: MigrationStanding.MIGRATION_STANDING_SENT, connected: true });
      expect(seen.at(-1)?.progress?.pages_sent).toBeGreaterThan(0n);
    }
    await nothingLeft(here, there);
  });

  it('says by its death where it has gone', async () => {
    const { here, there } = await twoVmms();
    const { vm } = await GUESTS[name](here);
    const { session } = await migrate(vm, { to: there.process, session: `to-there-${name}` });
    expect(session).toBe(`to-there-${name}`);
    const { errno, error } = await vm.try.checkExtension(9);
    expect([errno, error?.deathCause]).toEqual(['EIO', { kind: 'sent', session: `to-there-${name}` }]);
  });
});

describe('a migration that does not come about', () => {
  it.each([
    ['directly', false],
    ['by way of this program', true],
  ])('%s, says that the daemons do not know each other', async (_how, relay) => {
    const { here } = await twoVmms();
    await using stranger = await startDaemon();
    await using simkvm = await SimKvm.connect(stranger.target);
    await using process = await simkvm.attach();
    const guest = await plainGuest(here);
    await expect(migrate(guest.vm, { to: process, relay })).rejects.toMatchObject({
      errno: 'EACCES',
      reason: 'PEER_NOT_ALLOWED',
    });
    await goesOn(guest);
  });

  it('leaves the guest where it is when it is given up', async () => {
    const { here, there } = await twoVmms();
    const guest = await largeGuest(here);
    const abort = new AbortController();
    let left = 0n;
    const moved = migrate(guest.vm, {
      to: there.process,
      limits: { bandwidth: 4096 },
      signal: abort.signal,
      onProgress: ({ phase, progress }) => {
        if (phase !== 'copying' || abort.signal.aborted) return;
        left = progress?.pages_left ?? 0n;
        abort.abort(new Error('enough'));
      },
    });
    await expect(moved).rejects.toBeInstanceOf(MigrationError);
    await expect(moved).rejects.toMatchObject({ reason: 'CANCELLED', cause: { message: 'enough' } });
    expect(left).toBeGreaterThan(0n);
    await goesOn(guest);
  });

  it('is foreseen, with the reason, before anything is changed', async () => {
    const { here, there } = await twoVmms();
    const sessions = async () => (await here.simkvm.migrations.list()).map(({ session }) => session);
    const before = await sessions();
    const { vm } = await plainGuest(here);
    expect(await validateMigration(vm, { to: there.process })).toMatchObject({ allowed: true });
    await using kvm = await here.process.openKvm();
    await using withDevice = await kvm.createVm();
    await using _device = await withDevice.createDevice(VFIO);
    expect(await validateMigration(withDevice, { to: there.process })).toMatchObject({
      allowed: false,
      errno_name: 'EINVAL',
      reason: 'DEVICE_NOT_CARRIED',
    });
    expect(await sessions()).toEqual(before);
  });

  it('does not wait for a VMM that has been told of a write, and says what it waits for where its answer counts', async () => {
    const { here, there } = await twoVmms();
    const guest = await plainGuest(here);
    const serial: number[] = [];
    await runWhile(guest, serial, () => serial.length < 1);
    const { received } = await migrate(guest.vm, { to: there.process });
    const [vcpu] = received.vcpus;
    if (vcpu === undefined) throw new Error('no vCPU has arrived');
    await runWhile({ vm: received.vm, vcpu }, serial, () => serial.length < 3);
    expect(serial).toEqual(upTo(3));

    const [slot] = received.slots;
    // `in al, 0x60; jmp` back.
    await there.process.memory.write((slot?.userspace_addr ?? 0n) + 0x1000n, Uint8Array.of(0xe4, 0x60, 0xeb, 0xfc));
    await vcpu.setRegs({ rip: 0x1000n, rflags: 2n });
    expect((await vcpu.run()).reason).toBe('KVM_EXIT_IO');
    const abort = new AbortController();
    const told: string[] = [];
    const back = migrate(received.vm, {
      to: here.process,
      // So long it waits for that answer.
      limits: { downtime_ms: 600_000 },
      signal: abort.signal,
      onProgress: ({ waits_for }) => {
        if (waits_for === '') return;
        told.push(waits_for);
        abort.abort();
      },
    });
    await expect(back).rejects.toMatchObject({ reason: 'CANCELLED' });
    expect(told[0]).toContain('vcpu 0');
  });
});

describe('a relay that does not leave the frames alone', () => {
  /** Migrates by way of a relay that meddles with what the host on `side` says. */
  const attempt = async (name: (typeof NAMES)[number], side: 'here' | 'there', meddler: Meddler) => {
    const { here, there } = await twoVmms();
    const guest = await GUESTS[name](here);
    (side === 'here' ? here : there).transport.meddler = meddler;
    const moved = migrate(guest.vm, { to: there.process, relay: true, limits: { downtime_ms: 1000 } });
    moved.catch(() => {});
    return { here, there, guest, moved };
  };

  /** It was seen before the guest ran at the destination, which has nothing of it; it runs where it was. */
  const detected = async (name: (typeof NAMES)[number], side: 'here' | 'there', meddler: Meddler): Promise<void> => {
    const { here, there, guest, moved } = await attempt(name, side, meddler);
    await expect(moved).rejects.toMatchObject({ reason: expect.stringMatching(/^FRAME_(NOT_AUTHENTIC|OUT_OF_ORDER)$/) });
    await goesOn(guest);
    expect(await there.process.listFds()).toEqual([]);
    await nothingLeft(here, there);
  };

  const cases = Object.keys(MEDDLERS).flatMap((what) => [
    { what, name: 'plain', side: 'here', ordinals: [1, 3, 6] } as const,
    { what, name: 'plain', side: 'there', ordinals: [1, 3] } as const,
    { what, name: 'SEV', side: 'here', ordinals: [4] } as const,
  ]);

  it.each(cases)(
    'and $what one that the daemon $side says, of a $name guest, is detected',
    async ({ what, name, side, ordinals }) => {
      for (const ordinal of ordinals) {
        const meddler = MEDDLERS[what]?.(ordinal);
        if (meddler !== undefined) await detected(name, side, meddler);
      }
    },
  );

  it.each(NAMES)('and replays those of an old session, of a %s guest, is detected', async (name) => {
    const frames: Buffer[] = [];
    const { here, there, moved } = await attempt(name, 'here', recording(frames));
    await moved;
    await nothingLeft(here, there);
    expect(frames.length).toBeGreaterThan(4);
    for (const ordinal of [2, 4]) await detected(name, 'here', replaying(frames, ordinal));
  });
});

describe('hosts that speak TLS', () => {
  const connect = (target: string, { cert, key, ca }: Certified): Promise<SimKvm> => {
    const tls = { cert: readFileSync(cert), key: readFileSync(key), ca: readFileSync(ca) };
    return SimKvm.connect(target, { tls });
  };

  it('let in nobody without a certificate of their authority', async () => {
    using authority = new Authority();
    using elsewhere = new Authority();
    await using daemon = await startDaemon({ args: authority.certify('daemon').args });
    await expect(
      SimKvm.connect(daemon.target, { timeoutMs: 2000 }).then((simkvm) => simkvm.host.getHost()),
    ).rejects.toMatchObject({
      errno: null,
      reason: 'UNAVAILABLE',
    });
    const stranger = { ...elsewhere.certify('stranger'), ca: authority.certify('friend').ca };
    await expect(connect(daemon.target, stranger).then((simkvm) => simkvm.host.getHost())).rejects.toMatchObject({ errno: null });
    await using simkvm = await connect(daemon.target, authority.certify('friend'));
    expect((await simkvm.host.getHost()).cpus).toBeGreaterThan(0);
  });

  it.each([
    { here: 'one', there: null, refusal: { errno: 'EHOSTUNREACH', reason: 'DAEMON_SPEAKS_NO_TLS' } },
    { here: null, there: 'one', refusal: { errno: 'EHOSTUNREACH', reason: 'DAEMON_SPEAKS_TLS' } },
    { here: 'one', there: 'elsewhere', refusal: { errno: 'EACCES', reason: 'TLS_CERTIFICATE_REFUSED' } },
  ])(
    'say so where they do not speak the same way, or do not trust each other: $refusal.reason',
    async ({ here, there, refusal }) => {
      using authority = new Authority();
      using elsewhere = new Authority();
      const certified = { one: authority.certify('one'), elsewhere: elsewhere.certify('elsewhere') };
      const argsOf = (name: string | null): readonly string[] =>
        name === 'one' || name === 'elsewhere' ? certified[name].args : [];
      await using daemon = await startDaemon({ args: argsOf(here) });
      await using other = await startDaemon({ args: argsOf(there) });
      await using simkvm =
        here === null ? await SimKvm.connect(daemon.target) : await connect(daemon.target, authority.certify('vmm'));
      await using process = await simkvm.attach();
      const { vm } = await plainGuest({ process });
      const to = { address: other.target, process: '1' };
      for (const push of [false, true]) await expect(migrate(vm, { to, push })).rejects.toMatchObject(refusal);
      const foreseen = await validateMigration(vm, { to }).catch((error: unknown) => error);
      expect(foreseen).toMatchObject({ reason: refusal.reason });
    },
  );

  it.each([
    { how: 'pulled', push: false },
    { how: 'pushed', push: true },
  ])('move guests between them ($how), to and from those on the list only', async ({ push }) => {
    using authority = new Authority();
    const [one, other, vmm] = [authority.certify('one'), authority.certify('other'), authority.certify('vmm')];
    await using here = await startDaemon({ args: [...one.args, '--tls-peer', other.fingerprint] });
    await using there = await startDaemon({ args: [...other.args, '--tls-peer', one.fingerprint] });
    await using unlisted = await startDaemon({ args: authority.certify('third').args });
    await using simkvm = await connect(here.target, vmm);
    await using far = await connect(there.target, vmm);
    await using third = await connect(unlisted.target, vmm);
    for (const peer of [far, third]) await introduce(simkvm.migrations, peer.migrations);
    await using process = await simkvm.attach();
    await using to = await far.attach();
    await using toThird = await third.attach();
    const guest = await plainGuest({ process });
    await expect(migrate(guest.vm, { to: toThird, push })).rejects.toMatchObject({
      errno: 'EACCES',
      reason: 'TLS_PEER_NOT_ALLOWED',
    });
    const serial = await serialOf(guest, () => migrate(guest.vm, { to, push }));
    expect(serial).toEqual(upTo(serial.length));
  });
});
