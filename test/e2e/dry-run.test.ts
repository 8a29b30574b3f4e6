import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import {
  introduce,
  KvmError,
  MigrationError,
  migrate,
  type Process,
  SimKvm,
  startDaemon,
  type Verdict,
  type Vm,
  validateMigration,
} from '../../client/index.js';
import { Authority, type Certified } from '../certificates.js';
import { type Host, plainGuest, sevGuest, startHost } from './migrating-guest.js';

interface Journey {
  readonly to: Process | { readonly address: string; readonly process: string };
  readonly push: boolean;
}

/** What is left of a refusal that was heard by another way: a session's has no errno, and its details are for people. */
const detailOf = ({ details }: Verdict): string =>
  Object.entries(details)
    .map(([name, value]) => `${name}: ${value}`)
    .join('; ');

/** The dry run says what the migration is refused with, and neither leaves anything at the destination. */
const foretold = async (vm: Vm, journey: Journey): Promise<string> => {
  const verdict = await validateMigration(vm, journey);
  const error: unknown = await migrate(vm, journey).then(
    () => null,
    (refusal: unknown) => refusal,
  );
  if (!(error instanceof KvmError)) throw new Error(`the migration came about: ${verdict.reason}`);
  expect(verdict).toMatchObject({ allowed: false, reason: error.reason });
  if (error instanceof MigrationError) expect(detailOf(verdict)).toBe(error.migration.detail);
  else {
    expect(verdict.errno_name).toBe(error.errno);
    expect(error.details).toMatchObject({ ...verdict.details });
  }
  return `${verdict.errno_name} ${verdict.reason}`;
};

const MIB = 2 ** 20;

const WAYS = [
  { how: 'pulled', push: false },
  { how: 'pushed', push: true },
];

const fingerprintOf = async ({ simkvm }: Pick<Host, 'simkvm'>): Promise<string> =>
  (await simkvm.migrations.identity()).fingerprint;

describe.each(WAYS)('a dry run of a migration that would be $how', ({ push }) => {
  it('tells which daemon does not know the other one', async () => {
    await using here = await startHost();
    await using there = await startHost();
    const { vm } = await plainGuest(here);
    const journey = { to: there.process, push };
    expect(await foretold(vm, journey)).toBe('EACCES PEER_NOT_ALLOWED');
    await here.simkvm.migrations.allowPeer(await fingerprintOf(there));
    expect(await foretold(vm, journey)).toBe('EACCES PEER_NOT_ALLOWED');
    expect((await validateMigration(vm, journey)).details).toMatchObject({
      daemon: there.daemon.target,
      peer: await fingerprintOf(here),
    });
    await there.simkvm.migrations.allowPeer(await fingerprintOf(here));
    expect(await validateMigration(vm, journey)).toMatchObject({ allowed: true });
    await migrate(vm, journey);
  });

  it('tells that the source does not know the destination, where that knows it', async () => {
    await using here = await startHost();
    await using there = await startHost();
    await there.simkvm.migrations.allowPeer(await fingerprintOf(here));
    const { vm } = await plainGuest(here);
    expect(await foretold(vm, { to: there.process, push })).toBe('EACCES PEER_NOT_ALLOWED');
    const { details } = await validateMigration(vm, { to: there.process, push });
    expect(details.peer).toBe(await fingerprintOf(there));
    expect((await there.simkvm.migrations.list()).filter(({ closed }) => !closed)).toEqual([]);
  });

  it('tells that the destination has no ASID, and that there is no such process or daemon', async () => {
    await using here = await startHost();
    await using there = await startHost('--sev-asids', '9', '--min-sev-asid', '10');
    await introduce(here.simkvm.migrations, there.simkvm.migrations);
    const { vm } = await sevGuest(here);
    expect(await foretold(vm, { to: there.process, push })).toBe('ENOTTY NO_ASIDS_OF_CLASS');
    const nobody = { address: there.daemon.target, process: 'nobody' };
    expect(await foretold(vm, { to: nobody, push })).toBe('ESRCH PROCESS_NOT_FOUND');
    expect(await foretold(vm, { to: { ...nobody, address: '127.0.0.1:1' }, push })).toBe('EHOSTUNREACH DAEMON_UNREACHABLE');
  });

  it('tells that a guest has more memory than the destination has left', async () => {
    await using here = await startHost();
    await using there = await startHost('--memory', '8M');
    await introduce(here.simkvm.migrations, there.simkvm.migrations);
    const { vm } = await plainGuest(here);
    const memory_size = 8 * MIB;
    const userspace_addr = await here.process.memory.mmap({ length: memory_size });
    for (let at = 0; at < memory_size; at += MIB) await here.process.memory.fill(userspace_addr + BigInt(at), 1, MIB);
    await vm.setUserMemoryRegion({ slot: 1, guest_phys_addr: 2 ** 30, memory_size, userspace_addr, flags: 0 });
    expect(await foretold(vm, { to: there.process, push })).toBe('ENOMEM HOST_MEMORY_EXHAUSTED');
  });
});

describe.each(WAYS)('a dry run between hosts that speak TLS, of a migration that would be $how', ({ push }) => {
  const connect = (target: string, { cert, key, ca }: Certified): Promise<SimKvm> => {
    const tls = { cert: readFileSync(cert), key: readFileSync(key), ca: readFileSync(ca) };
    return SimKvm.connect(target, { tls });
  };

  it.each(['source', 'destination'] as const)('tells that the other one is no --tls-peer of the %s', async (strict) => {
    using authority = new Authority();
    const [one, other, vmm] = [authority.certify('one'), authority.certify('other'), authority.certify('vmm')];
    const onlyThird = ['--tls-peer', authority.certify('third').fingerprint];
    await using here = await startDaemon({ args: [...one.args, ...(strict === 'source' ? onlyThird : [])] });
    await using there = await startDaemon({ args: [...other.args, ...(strict === 'destination' ? onlyThird : [])] });
    await using simkvm = await connect(here.target, vmm);
    await using far = await connect(there.target, vmm);
    await introduce(simkvm.migrations, far.migrations);
    await using process = await simkvm.attach();
    await using to = await far.attach();
    const { vm } = await plainGuest({ process });
    expect(await foretold(vm, { to, push })).toBe('EACCES TLS_PEER_NOT_ALLOWED');
  });
});
