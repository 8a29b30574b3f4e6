import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  introduce,
  type Migration,
  MigrationStanding,
  migrate,
  PostCopy,
  type ReceivedGuest,
  validateMigration,
} from '../../client/index.js';
import { startCutProxy } from './cut-proxy.js';
import { type CountingGuest, type Host, plainGuest, runWhile, sevGuest, startHost, startHosts, upTo } from './migrating-guest.js';

const PAGE = 0x1000n;
const SIGUSR1 = 10;
/** So slow that nothing arrives for a while that nobody waits for. */
const SLOWLY = { bandwidth: 4096, post_copy: PostCopy.POST_COPY_AT_ONCE };
/** Pages that the guest of `readingGuest` looks at, one after the other. */
const LOOKED_AT = 13;

const vcpuOf = ({ vm, vcpus: [vcpu] }: ReceivedGuest): CountingGuest => {
  if (vcpu === undefined) throw new Error('no vCPU');
  return { vm, vcpu };
};

/** Each page of the guest's memory, but for the first three, has its number in it. */
const fillMemory = async ({ process }: Host, { vm }: CountingGuest): Promise<void> => {
  const [slot] = (await vm.inspect()).memslots;
  if (slot === undefined) throw new Error('no memory');
  for (let page = 3n; page * PAGE < slot.memory_size; page++)
    await process.memory.write(slot.userspace_addr + page * PAGE, Uint8Array.of(Number(page), 1, 2, 3));
};

/** `mov si,0x3000; l: mov al,[si]; out 0xe9,al; add si,0x1000; jnz l; hlt` */
const LOOK = Uint8Array.of(0xbe, 0x00, 0x30, 0x8a, 0x04, 0xe6, 0xe9, 0x81, 0xc6, 0x00, 0x10, 0x75, 0xf6, 0xf4);

/** A guest that says on its serial port what it finds in its memory. */
const readingGuest = async (host: Host): Promise<CountingGuest> => {
  const guest = await plainGuest(host);
  await fillMemory(host, guest);
  const [slot] = (await guest.vm.inspect()).memslots;
  await host.process.memory.write((slot?.userspace_addr ?? 0n) + PAGE, LOOK);
  return guest;
};

/** All the guest's memory as the process at the destination has it, by the first bytes of each page. */
const memoryOf = async (host: Host, { slots: [slot] }: ReceivedGuest): Promise<number[][]> => {
  if (slot === undefined) throw new Error('no memory');
  const data = await host.process.memory.read(slot.userspace_addr, Number(slot.memory_size));
  return Array.from({ length: data.length / Number(PAGE) }, (_, page) => [...data.subarray(page * 4096, page * 4096 + 4)]).slice(
    3,
  );
};

const FILLED = Array.from({ length: 61 }, (_, index) => [index + 3, 1, 2, 3]);

/** Runs a guest until KVM_RUN fails: what it says meanwhile it says of memory that is there. @returns how it failed */
const runUntilFailure = async ({ vcpu }: CountingGuest, serial: number[]) => {
  for (;;) {
    const outcome = await vcpu.try.run();
    if (outcome.errno !== null) return outcome;
    if (outcome.value.reason !== 'KVM_EXIT_IO') throw new Error(outcome.value.reason);
    serial.push(outcome.value.io.data[0] ?? -1);
  }
};

/** What a host holds, in all. */
const holdings = async ({ simkvm }: Host) => {
  const { vms, kmem, memory, findings } = await simkvm.host.getHost();
  return { vms, kmem, memory: memory?.allocated_bytes, findings };
};

/** @param before what they held before they had guests */
const nothingLeft = async (before: Awaited<ReturnType<typeof holdings>>, ...hosts: readonly Host[]): Promise<void> => {
  for (const host of hosts) {
    await host.process[Symbol.asyncDispose]();
    await expect.poll(() => holdings(host)).toEqual(before);
  }
};

describe('a plain guest that goes before its memory', () => {
  let hosts: Awaited<ReturnType<typeof startHosts>>;
  let idle: Awaited<ReturnType<typeof holdings>>;
  beforeAll(async () => {
    hosts = await startHosts();
    idle = await holdings(hosts.here);
  });
  afterAll(() => hosts[Symbol.asyncDispose]());

  it.each([
    ['pulled by the destination', {}],
    ['pushed by the source', { push: true }],
    ['over three streams, with pages made smaller', { limits: { ...SLOWLY, streams: 3, compress: true } }],
    ['by way of this program', { relay: true }],
  ])('%s, counts on with no gap and no repetition while its memory follows', async (_how, options) => {
    const { here, there } = hosts;
    const guest = await plainGuest(here);
    await fillMemory(here, guest);
    const serial: number[] = [];
    await runWhile(guest, serial, () => serial.length < 20);
    const running = runWhile(guest, serial, () => true);
    const { received, statistics, completed } = await migrate(guest.vm, { to: there.process, limits: SLOWLY, ...options });
    expect(await running).toBe('EIO');
    expect(statistics.pages_left).toBeGreaterThan(0n);
    const left = serial.length;
    await runWhile(vcpuOf(received), serial, () => serial.length < left + 20);
    expect(serial).toEqual(upTo(serial.length));
    // Who looks at all of it does not wait until it is pushed.
    expect(await memoryOf(there, received)).toEqual(FILLED);
    const { pages_left, faults_served, downtime_ms } = await completed();
    expect(pages_left).toBe(0n);
    expect(faults_served).toBeGreaterThan(10n);
    expect(downtime_ms).toBeGreaterThan(0);
  });

  it('finds its memory as it left it, through its own eyes, and each page when it looks', async () => {
    const { here, there } = hosts;
    const guest = await readingGuest(here);
    const { received, completed, session } = await migrate(guest.vm, { to: there.process, limits: SLOWLY });
    const serial: number[] = [];
    expect(await runWhile(vcpuOf(received), serial, () => true)).toBe('KVM_EXIT_HLT');
    expect(serial).toEqual(Array.from({ length: LOOKED_AT }, (_, index) => index + 3));
    const { phase, progress } = await there.simkvm.migrations.get(session);
    expect(phase).toBe('fetching');
    expect(progress?.faults_served).toBeGreaterThanOrEqual(BigInt(LOOKED_AT));
    await memoryOf(there, received);
    await completed();
    expect(await there.simkvm.migrations.get(session)).toMatchObject({ phase: 'committed', reason: '' });
  });

  it('goes when it is asked to, in the middle of copying, and is not asked in vain', async () => {
    const { here, there } = hosts;
    const guest = await plainGuest(here);
    await fillMemory(here, guest);
    const limits = { bandwidth: 4096, post_copy: PostCopy.POST_COPY_ON_REQUEST };
    const phases = new Set<string>();
    let asked: Promise<unknown> | null = null;
    const onProgress = ({ phase, session, progress }: Migration): void => {
      phases.add(phase);
      if (phase === 'copying' && (progress?.pages_sent ?? 0n) > 0n) asked ??= here.simkvm.migrations.startPostCopy(session);
    };
    const { received, statistics, session, completed } = await migrate(guest.vm, { to: there.process, limits, onProgress });
    await asked;
    expect([...phases]).toEqual(expect.arrayContaining(['copying', 'serving']));
    expect(statistics.pages_left).toBeGreaterThan(0n);
    await expect(there.simkvm.migrations.startPostCopy(session)).rejects.toMatchObject({ reason: 'SESSION_IS_DESTINATION' });
    expect(await memoryOf(there, received)).toEqual(FILLED);
    await completed();
  });

  it('cannot be called back, and cannot be sent on, before all of it is there', async () => {
    const { here, there } = hosts;
    const guest = await plainGuest(here);
    await fillMemory(here, guest);
    const { received, session, completed } = await migrate(guest.vm, { to: there.process, limits: SLOWLY });
    for (const { simkvm } of [here, there])
      await expect(simkvm.migrations.cancel(session)).rejects.toMatchObject({ errno: 'EBUSY', reason: 'GUEST_HANDED_OVER' });
    await expect(here.simkvm.migrations.override(session, 'run')).rejects.toMatchObject({ errno: 'EBUSY' });
    await expect(migrate(received.vm, { to: here.process })).rejects.toMatchObject({ reason: 'PAGES_STILL_OWED' });
    await memoryOf(there, received);
    await completed();
    const back = await migrate(received.vm, { to: here.process });
    expect(back.received.vcpus).toHaveLength(1);
  });

  it('is refused for an encrypted one, also beforehand, by the name of the limit', async () => {
    const { here, there } = hosts;
    const { vm } = await sevGuest(here);
    const wrong = { errno: 'EINVAL', reason: 'POST_COPY_NOT_FOR_ENCRYPTED', details: { field: 'limits.post_copy' } };
    await expect(migrate(vm, { to: there.process, limits: SLOWLY })).rejects.toMatchObject(wrong);
    expect(await validateMigration(vm, { to: there.process, limits: SLOWLY })).toMatchObject({
      allowed: false,
      reason: 'POST_COPY_NOT_FOR_ENCRYPTED',
    });
    expect(await validateMigration(vm, { to: there.process })).toMatchObject({ allowed: true });
  });

  it('is refused where it was not wanted when the migration began', async () => {
    const { here, there } = hosts;
    const guest = await plainGuest(here);
    await fillMemory(here, guest);
    let asked: Promise<unknown> | null = null;
    const onProgress = ({ session }: Migration): void => {
      asked ??= here.simkvm.migrations.startPostCopy(session).catch((error: unknown) => error);
    };
    await migrate(guest.vm, { to: there.process, onProgress });
    expect(await asked).toMatchObject({ errno: 'EINVAL', reason: 'POST_COPY_NOT_ALLOWED' });
  });

  it('gets the rest of its memory also when the VMM that it came from has ended', async () => {
    const { here, there } = hosts;
    const process = await here.simkvm.attach({ name: 'short-lived' });
    const guest = await readingGuest({ ...here, process });
    const { received, session } = await migrate(guest.vm, { to: there.process, limits: SLOWLY });
    await process[Symbol.asyncDispose]();
    const serial: number[] = [];
    expect(await runWhile(vcpuOf(received), serial, () => true)).toBe('KVM_EXIT_HLT');
    expect(serial).toHaveLength(LOOKED_AT);
    expect(await memoryOf(there, received)).toEqual(FILLED);
    await expect.poll(async () => (await here.simkvm.migrations.get(session)).phase).toBe('sent');
  });

  it('leaves nothing behind on either host once it is closed', async () => {
    await nothingLeft(idle, hosts.here, hosts.there);
  });
});

describe('a guest whose memory is still at its source', () => {
  /** Two hosts with a wire between them, and a guest that has gone without its memory. */
  const tornApart = async (...args: string[]) => {
    const proxy = await startCutProxy();
    const here = await startHost('--advertise', proxy.target, ...args);
    const there = await startHost('--advertise', '127.0.0.1:1');
    proxy.to = here.daemon.target;
    const idle = await holdings(here);
    await introduce(here.simkvm.migrations, there.simkvm.migrations);
    const guest = await readingGuest(here);
    const moved = await migrate(guest.vm, { to: there.process, limits: SLOWLY });
    const end = async (): Promise<void> => {
      await Promise.all([here[Symbol.asyncDispose](), there[Symbol.asyncDispose]()]);
      await proxy[Symbol.asyncDispose]();
    };
    return { proxy, here, there, idle, ...moved, [Symbol.asyncDispose]: end };
  };

  const phaseOf = async ({ simkvm }: Host, session: string): Promise<string> => (await simkvm.migrations.get(session)).phase;

  it('waits for it while the link is cut, goes on when it is healed, and lets a signal through meanwhile', async () => {
    await using torn = await tornApart();
    const { proxy, here, there, idle, received, session, completed } = torn;
    proxy.to = null;
    proxy.cut();
    const serial: number[] = [];
    const waiting = runUntilFailure(vcpuOf(received), serial);
    await expect.poll(async () => (await there.simkvm.migrations.get(session)).connected).toBe(false);
    await there.process.signal(SIGUSR1);
    expect(await waiting).toMatchObject({ errno: 'EINTR' });
    const running = runWhile(vcpuOf(received), serial, () => true);
    proxy.to = here.daemon.target;
    expect(await running).toBe('KVM_EXIT_HLT');
    expect(serial).toEqual(Array.from({ length: LOOKED_AT }, (_, index) => index + 3));
    await memoryOf(there, received);
    await completed();
    await nothingLeft(idle, here, there);
  });

  it('fails when its source has lost its power: at once where that says so, and where an operator does', async () => {
    const stateDir = await mkdtemp(join(tmpdir(), 'simkvm-post-copy-'));
    for (const comesBack of [true, false]) {
      await using torn = await tornApart('--state-dir', stateDir);
      const { proxy, here, there, idle, received, session } = torn;
      proxy.to = null;
      process.kill(here.daemon.pid, 'SIGKILL');
      const waiting = runUntilFailure(vcpuOf(received), []);
      await expect.poll(async () => (await there.simkvm.migrations.get(session)).connected).toBe(false);
      expect(await phaseOf(there, session)).toBe('fetching');
      await using again = comesBack ? await startHost('--state-dir', stateDir) : null;
      if (again === null) await there.simkvm.migrations.override(session, 'discard');
      else {
        await introduce(again.simkvm.migrations, there.simkvm.migrations);
        proxy.to = again.daemon.target;
      }
      const { errno, error, value } = await waiting;
      expect([errno, error?.reason, value?.reason]).toEqual(['EFAULT', 'PAGE_LOST', 'KVM_EXIT_MEMORY_FAULT']);
      expect(await there.simkvm.migrations.get(session)).toMatchObject({
        standing: MigrationStanding.MIGRATION_STANDING_COMMITTED,
        phase: 'committed',
        reason: 'PAGES_LOST',
      });
      await expect(torn.completed()).rejects.toBeInstanceOf(Error);
      // An operator's decision is a finding in any case.
      await nothingLeft({ ...idle, findings: comesBack ? 0n : 1n }, there);
    }
    await rm(stateDir, { recursive: true });
  });

  it('is not waited for by its source when its destination has lost its power', async () => {
    await using torn = await tornApart();
    const { here, there, idle, session } = torn;
    process.kill(there.daemon.pid, 'SIGKILL');
    await expect.poll(async () => (await here.simkvm.migrations.get(session)).connected).toBe(false);
    expect(await phaseOf(here, session)).toBe('serving');
    expect(await here.simkvm.migrations.override(session, 'discard')).toMatchObject({ phase: 'sent' });
    await nothingLeft({ ...idle, findings: 1n }, here);
  });
});
