import { type ChildProcess, execFile } from 'node:child_process';
import { once } from 'node:events';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { introduce, type Migration, MigrationStanding, Vcpu, Vm } from '../../client/index.js';
import { startTapProxy, type TapProxy } from '../helpers/tap-proxy.js';
import { type Host, largeGuest, plainGuest, runWhile, sevGuest, startHost, upTo } from './migrating-guest.js';

const PROGRAM = 'dist/client/cli/main.js';
/** Of a guest's policy. */
const NOSEND = 1 << 3;
/** A page a second: no test waits for that. */
const SLOWLY = ['--bandwidth', '4096'];

interface Ended {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the program as a person would; `begun` gets the process while it runs. */
const simkvm = (args: readonly string[], begun: (child: ChildProcess) => void = () => {}): Promise<Ended> =>
  new Promise((resolve) => {
    const child = execFile(process.execPath, [PROGRAM, ...args], (_error, stdout, stderr) =>
      resolve({ code: child.exitCode ?? -1, stdout, stderr }),
    );
    begun(child);
  });

let here: Host;
let there: Host;

beforeAll(async () => {
  [here, there] = await Promise.all([startHost(), startHost()]);
  await introduce(here.simkvm.migrations, there.simkvm.migrations);
});

afterAll(async () => {
  await here[Symbol.asyncDispose]();
  await there[Symbol.asyncDispose]();
});

const on = ({ daemon }: Host, ...args: string[]): Promise<Ended> => simkvm([...args, '--target', daemon.target]);

const fingerprintOf = async (host: Host): Promise<string> => {
  const { stdout } = await on(host, 'migrations', 'identity', '--json');
  const { fingerprint }: { fingerprint: string } = JSON.parse(stdout);
  return fingerprint;
};

/** Options that name the guest `fd` here, and the process there. */
const journey = (fd: number, to: Host = there): string[] => [
  ...['--fd', String(fd), '--process', here.process.token],
  ...['--to', to.daemon.target, '--to-process', to.process.token],
];

/** The session at one end, as soon as it is there. */
const seen = async (host: Host, session: string, is: (migration: Migration) => boolean): Promise<Migration> => {
  for (;;) {
    const migration = (await host.simkvm.migrations.list()).find((each) => each.session === session && is(each));
    if (migration !== undefined) return migration;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};

describe('simkvm, for guests that go to another host', () => {
  it('refuses while the daemons do not know each other, and introduces them', async () => {
    await using other = await startHost();
    const { vm } = await plainGuest(here);
    const refused = await on(here, 'migrate', ...journey(vm.fd, other));
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain('PEER_NOT_ALLOWED');
    const [own, theirs] = [await fingerprintOf(here), await fingerprintOf(other)];
    expect((await on(here, 'migrations', 'allow', theirs)).stdout.split('\n')).toContain(theirs);
    expect((await on(other, 'migrations', 'allow', own)).stdout).toBe(`${own}\n`);
    expect((await on(other, 'migrations', 'identity')).stdout).toContain(own);
    expect((await on(here, 'migrate', ...journey(vm.fd, other), '--session', 'introduced')).code).toBe(0);
  });

  it.each([
    ['directly', []],
    ['by way of this program', ['--relay']],
  ])('migrates one %s, which goes on there', async (how, options) => {
    const guest = await plainGuest(here);
    const serial: number[] = [];
    const running = runWhile(guest, serial, () => true);
    const session = `cli-${options.length}`;
    const { code, stdout, stderr } = await on(here, 'migrate', ...journey(guest.vm.fd), '--session', session, ...options);
    expect({ how, code, stderr }).toEqual({ how, code: 0, stderr: '' });
    expect(stdout).toMatch(
      new RegExp(`^moved in session ${session}: \\d+ pages in \\d+ rounds? .*, stopped for [\\d.]+ ms$`, 'm'),
    );
    expect(await running).toBe('EIO');
    const { received } = await there.simkvm.migrations.get(session);
    const [fd = -1] = received?.vcpu_fds ?? [];
    const arrived = { vm: there.process.adopt(Vm, received?.vm_fd ?? -1), vcpu: there.process.adopt(Vcpu, fd) };
    const left = serial.length;
    await runWhile(arrived, serial, () => serial.length < left + 10);
    expect(serial).toEqual(upTo(serial.length));
  });

  it('lists and shows what has come and gone', async () => {
    expect((await on(here, 'migrations')).stdout).toMatch(/^cli-0 +source +sent +sent +/m);
    const { stdout } = await on(there, 'migrations', 'show', 'cli-0');
    expect(stdout).toMatch(/^standing +committed \(committed\)$/m);
    expect(stdout).toMatch(/^ *0 +0x0 +256.0 KiB +0x/m);
    expect(JSON.parse((await on(there, 'migrations', 'list', '--json')).stdout)).toMatchObject([
      { session: 'cli-0', half: 2 },
      { session: 'cli-1', half: 2 },
    ]);
  });

  it('finds the VM by its number, and prints JSON', async () => {
    const { vm } = await plainGuest(here);
    const { vm_id } = await vm.inspect();
    const [, , ...rest] = journey(0);
    const { stdout } = await on(here, 'migrate', '--vm', String(vm_id), ...rest, '--session', 'json', '--json');
    expect(JSON.parse(stdout)).toMatchObject({ session: 'json', statistics: { pages_sent: expect.stringMatching(/^\d+$/) } });
  });

  it('says beforehand whether it would be allowed', async () => {
    const { vm } = await plainGuest(here);
    expect(await on(here, 'migrate', ...journey(vm.fd), '--dry-run')).toMatchObject({ code: 0, stdout: 'it would be allowed\n' });
  });

  it('says beforehand what the firmware and the other daemon would say, and leaves nothing behind', async () => {
    const sent = await sevGuest(here, NOSEND);
    const refused = await on(here, 'migrate', ...journey(sent.vm.fd), '--dry-run');
    expect(refused).toMatchObject({ code: 1, stderr: '' });
    expect(refused.stdout).toMatch(/^it would be refused: EIO \(FIRMWARE_POLICY_FAILURE\)\n/);
    expect(refused.stdout).toMatch(/^ {2}firmware: +0x7$/m);

    await using stranger = await startHost();
    const { vm } = await plainGuest(here);
    const one = await on(here, 'migrate', ...journey(vm.fd, stranger), '--dry-run');
    expect(one).toMatchObject({ code: 1, stdout: expect.stringContaining('EACCES (PEER_NOT_ALLOWED)') });
    expect(one.stdout).toMatch(new RegExp(`^  daemon: +${stranger.daemon.target}$`, 'm'));
    await on(here, 'migrations', 'allow', await fingerprintOf(stranger));
    const other = await on(here, 'migrate', ...journey(vm.fd, stranger), '--dry-run');
    expect(other.stdout).toMatch(new RegExp(`^  daemon: +${stranger.daemon.target}$`, 'm'));
    expect(await stranger.simkvm.migrations.list()).toEqual([]);
  });

  it('does not leave a guest without its memory on the first Ctrl-C, where that comes by way of the program', async () => {
    const { vm } = await largeGuest(here);
    const session = 'carried';
    const args = [...journey(vm.fd), '--session', session, '--relay', '--post-copy', 'at-once', ...SLOWLY];
    let interrupt = (): void => {};
    let warned: Promise<unknown> = Promise.resolve();
    const ended = simkvm(['migrate', ...args, '--target', here.daemon.target], (child) => {
      interrupt = () => void child.kill('SIGINT');
      if (child.stderr) warned = once(child.stderr, 'data');
    });
    // Here the guest has gone already; whether the program has heard of that is left to chance.
    await seen(there, session, ({ phase }) => phase === 'fetching');
    interrupt();
    expect(String(await warned)).toContain('memory that comes by way of this program');
    const { progress } = await there.simkvm.migrations.get(session);
    await seen(there, session, (now) => (now.progress?.pages_left ?? 0n) < (progress?.pages_left ?? 0n));
    interrupt();
    expect((await ended).code).toBe(-1);
    for (const host of [here, there]) await host.simkvm.migrations.override(session, 'discard');
  });

  describe('what has been carried by a program that is gone', () => {
    const PAGES = 1024;
    const BYTES = PAGES * 4096;
    const limits = ['--bandwidth', '2M'];

    /** A guest with much memory, of which each page has its number in it. */
    const numberedGuest = async () => {
      const { vm } = await plainGuest(here);
      const userspace_addr = await here.process.memory.mmap({ length: BYTES });
      const memory = new Uint8Array(BYTES);
      for (let page = 0; page < PAGES; page++) new DataView(memory.buffer).setUint32(4096 * page, page + 1);
      await here.process.memory.load(userspace_addr, memory);
      await vm.setUserMemoryRegion({ slot: 1, guest_phys_addr: 2 ** 30, memory_size: BYTES, userspace_addr, flags: 0 });
      return { vm, memory };
    };

    /** Begins to carry it, and is killed when half of it is there. */
    const carryHalf = async (session: string, fd: number, proxy: TapProxy, options: readonly string[]): Promise<void> => {
      // More than that does not come, however late the program is killed.
      proxy.stallAfter(0.6 * BYTES);
      let kill = (): void => {};
      const args = ['migrate', ...journey(fd), '--session', session, '--relay', ...limits, ...options, '--target', proxy.target];
      const ended = simkvm(args, (child) => {
        kill = () => void child.kill('SIGKILL');
      });
      await seen(there, session, ({ progress }) => (progress?.pages_sent ?? 0n) > BigInt(PAGES / 2));
      kill();
      await ended;
      proxy.goOn();
    };

    it.each([
      ['before the guest has gone', 'pre', [], 'copying'],
      ['while its memory is owed', 'post', ['--post-copy', 'at-once'], 'serving'],
    ])('is taken up %s, and nothing is sent again that had arrived', async (_when, name, options, phase) => {
      await using proxy = await startTapProxy(here.daemon.target);
      const { vm, memory } = await numberedGuest();
      const session = `taken-up-${name}`;
      await carryHalf(session, vm.fd, proxy, options);
      await seen(here, session, (migration) => migration.phase === phase && !migration.connected);
      const ends = ['--process', here.process.token, '--to', there.daemon.target, '--to-process', there.process.token];
      const taken = await simkvm(['migrations', 'relay', session, ...ends, '--target', proxy.target, '--json']);
      expect(taken).toMatchObject({ code: 0, stderr: '' });
      const { statistics }: { statistics: { pages_sent: string } } = JSON.parse(taken.stdout);
      const sent = Number(statistics.pages_sent) * 4096;
      expect(sent).toBeGreaterThanOrEqual(BYTES);
      // What was under way when the program ended, and what was said of how it goes.
      expect(proxy.take().length).toBeLessThan(sent + BYTES / 4);
      const { received, phase: end } = await there.simkvm.migrations.get(session);
      expect(end).toBe('committed');
      const slot = received?.slots.find(({ id }) => id === 1);
      for (let at = 0; at < BYTES; at += 2 ** 20) {
        const arrived = await there.process.memory.read((slot?.userspace_addr ?? 0n) + BigInt(at), 2 ** 20);
        expect(Buffer.compare(arrived, memory.subarray(at, at + 2 ** 20))).toBe(0);
      }
    });

    it('is taken from a program that still carries it, by whichever host is named first', async () => {
      await using proxy = await startTapProxy(here.daemon.target);
      proxy.stallAfter(0.3 * BYTES);
      const { vm } = await numberedGuest();
      const session = 'taken-over';
      const first = simkvm(['migrate', ...journey(vm.fd), '--session', session, '--relay', ...limits, '--target', proxy.target]);
      await seen(there, session, ({ progress }) => (progress?.pages_sent ?? 0n) > 0n);
      const ends = ['--process', there.process.token, '--to', here.daemon.target, '--to-process', here.process.token];
      const second = on(there, 'migrations', 'relay', session, ...ends);
      await seen(there, session, ({ progress }) => (progress?.pages_sent ?? 0n) > BigInt(PAGES / 2));
      proxy.goOn();
      expect(await first).toMatchObject({ code: 1, stderr: expect.stringContaining('STREAM_REPLACED') });
      expect(await second).toMatchObject({
        code: 0,
        stderr: '',
        stdout: expect.stringMatching(/^moved in session taken-over: /),
      });
    });

    it('cannot be taken up where a host does not know it, and is not spoilt by the attempt', async () => {
      const { code, stderr } = await on(here, 'migrations', 'relay', 'nowhere', '--to', there.daemon.target);
      expect({ code, stderr }).toMatchObject({ code: 1, stderr: expect.stringContaining('NO_SUCH_MIGRATION') });
      const same = await on(here, 'migrations', 'relay', 'taken-over', '--to', here.daemon.target);
      expect(same).toMatchObject({ code: 1, stderr: expect.stringContaining('the same half') });
    });
  });

  it('gives one up on Ctrl-C, and on `migrations cancel`', async () => {
    for (const [session, giveUp] of [
      ['ctrl-c', (child: ChildProcess) => void child.kill('SIGINT')],
      ['cancel', () => on(here, 'migrations', 'cancel', 'cancel')],
    ] as const) {
      const guest = await largeGuest(here);
      let child: ChildProcess | null = null;
      const args = ['migrate', ...journey(guest.vm.fd), '--session', session, ...SLOWLY, '--target', here.daemon.target];
      const ended = simkvm(args, (begun) => {
        child = begun;
      });
      await seen(here, session, ({ phase }) => phase === 'copying');
      if (child !== null) await giveUp(child);
      const { code, stderr } = await ended;
      expect({ session, code }).toEqual({ session, code: 1 });
      expect(stderr).toContain('the guest has stayed where it was: CANCELLED');
      const serial: number[] = [];
      await runWhile(guest, serial, () => serial.length < 5);
      expect(serial).toEqual(upTo(5));
      await seen(here, session, ({ standing }) => standing === MigrationStanding.MIGRATION_STANDING_STAYED);
    }
  });

  it('hands one over before its memory, which `migrations` shows until all of it is there', async () => {
    const { vm } = await largeGuest(here);
    const args = [...journey(vm.fd), '--session', 'post-copy', '--post-copy', 'on-request', ...SLOWLY];
    const ended = on(here, 'migrate', ...args);
    await seen(here, 'post-copy', ({ phase }) => phase === 'copying');
    expect((await on(here, 'migrations', 'post-copy', 'post-copy')).code).toBe(0);
    const { received } = await seen(there, 'post-copy', ({ phase }) => phase === 'fetching');
    // Who looks at all of it does not wait until it is pushed.
    for (const { userspace_addr, memory_size } of received?.slots ?? [])
      await there.process.memory.read(userspace_addr, Number(memory_size));
    const { code, stdout, stderr } = await ended;
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(/^moved in session post-copy: /);
    expect((await on(there, 'migrations', 'show', 'post-copy')).stdout).toMatch(/^pages missing +0$/m);
    expect((await on(here, 'migrations', 'post-copy', 'cli-0')).stderr).toContain('POST_COPY_NOT_ALLOWED');
    expect((await on(here, 'migrate', ...journey(vm.fd), '--post-copy', 'never')).code).toBe(2);
  });

  it('asks twice before it decides what the protocol cannot, and does not where nothing is in doubt', async () => {
    expect((await on(here, 'migrations', 'override', 'cli-0', 'run')).code).toBe(2);
    const { code, stderr } = await on(here, 'migrations', 'override', 'cli-0', 'run', '--dangerous');
    expect(code).toBe(1);
    expect(stderr).toContain('MIGRATION_NOT_IN_DOUBT');
  });

  it.each([
    ['no VM', ['migrate', '--to', '127.0.0.1:1']],
    ['two VMs', ['migrate', '--to', '127.0.0.1:1', '--fd', '3', '--vm', '1']],
    ['no destination', ['migrate', '--fd', '3']],
    ['a decision that is none', ['migrations', 'override', 's', 'maybe', '--dangerous']],
  ])('ends with 2 where it is given %s', async (_what, args) => {
    expect((await simkvm(args)).code).toBe(2);
  });
});
