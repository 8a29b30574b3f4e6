import { describe, expect, it } from 'vitest';
import { Caller } from '../../../client/call.js';
import { Descriptor } from '../../../client/handle.js';
import { migrate, receiveVm, sendVm, validateMigration } from '../../../client/migrate.js';
import { MigrationError } from '../../../client/migration-error.js';
import { Process } from '../../../client/process.js';
import { RequestIds } from '../../../client/request-ids.js';
import { Vm } from '../../../client/vm.js';
import {
  type Migration,
  type MigrationInit,
  MigrationStanding,
  PostCopy,
  type ReceiveVmRequest,
  type SendVmRequest,
} from '../../../gen/messages.js';
import { MigrationService } from '../../../gen/services.js';
import { callerOver, type FakeAnswer, FakeTransport, refusal, type SentCall, zero } from './fake-transport.js';

const {
  MIGRATION_STANDING_SENDING: SENDING,
  MIGRATION_STANDING_SERVING: SERVING,
  MIGRATION_STANDING_SENT: SENT,
  MIGRATION_STANDING_STAYED: STAYED,
  MIGRATION_STANDING_PREPARED: PREPARED,
  MIGRATION_STANDING_COMMITTED: COMMITTED,
} = MigrationStanding;

const watched = (...migrations: MigrationInit[]): FakeAnswer => ({
  responses: migrations.map((migration, index) =>
    MigrationService.watchMigration.responseSerialize({
      sequence: index + 1,
      migration: { session: 'm1', progress: {}, ...migration },
    }),
  ),
});

const method = ({ path }: SentCall): string => path.slice(path.lastIndexOf('/') + 1);

/** A host whose answers are given by the name of the RPC. */
const hostOf = (answers: Record<string, FakeAnswer>): FakeTransport => new FakeTransport((call) => answers[method(call)] ?? zero);

const SEND: FakeAnswer = { response: MigrationService.sendVm.responseSerialize({ session: 'm1' }) };
const RECEIVE: FakeAnswer = { response: MigrationService.receiveVm.responseSerialize({ session: 'm1' }) };

const RECEIVED: MigrationInit = {
  received: {
    vm_fd: 5,
    vcpu_fds: [6, 7],
    other_fds: [8],
    slots: [{ id: 0, guest_phys_addr: 0, memory_size: 0x1000, userspace_addr: 0x7000 }],
    ioeventfds: [{ address: 0xfe00_1000, length: 4, datamatch: 1 }],
    irqfds: [{ gsi: 5, count: 2 }],
  },
};

const vmOver = (transport: FakeTransport): Vm => new Vm(callerOver(transport), new Descriptor(4));

const processOver = (transport: FakeTransport): Process =>
  new Process(new Caller(transport, { token: 'there', ids: new RequestIds() }), 2, 'there', null);

const sendRequest = ({ sent }: FakeTransport): SendVmRequest | undefined => {
  const call = sent.find((each) => method(each) === 'SendVm');
  return call && MigrationService.sendVm.requestDeserialize(call.request);
};

const receiveRequest = ({ sent }: FakeTransport): ReceiveVmRequest | undefined => {
  const call = sent.find((each) => method(each) === 'ReceiveVm');
  return call && MigrationService.receiveVm.requestDeserialize(call.request);
};

describe('migrate', () => {
  it('has the source tell the other daemon, and gives what has arrived in its process', async () => {
    const here = hostOf({
      SendVm: SEND,
      WatchMigration: watched({ standing: SENDING }, { standing: SENT, progress: { round: 3 } }),
    });
    const there = hostOf({ WatchMigration: watched({ standing: PREPARED, ...RECEIVED }, { standing: COMMITTED, ...RECEIVED }) });
    const seen: Migration[] = [];
    const { session, statistics, received } = await migrate(vmOver(here), {
      to: processOver(there),
      limits: { downtime_ms: 50, streams: 2 },
      push: true,
      onProgress: (migration) => seen.push(migration),
    });
    expect(sendRequest(here)).toMatchObject({
      fd: 4,
      to: { address: 'fake:1', process: 'there' },
      limits: { downtime_ms: 50, streams: 2 },
      push: true,
      validate_only: false,
    });
    expect([session, statistics.round]).toEqual(['m1', 3]);
    expect(seen.map(({ standing }) => standing)).toEqual([SENDING, SENT]);
    expect([received.vm.fd, ...received.vcpus.map(({ fd }) => fd), received.sev?.fd]).toEqual([5, 6, 7, 8]);
    expect(received.slots).toMatchObject([{ userspace_addr: 0x7000n }]);
    expect(received.ioeventfds).toMatchObject([{ address: 0xfe00_1000n, datamatch: 1n }]);
    expect(received.irqfds).toMatchObject([{ gsi: 5, count: 2n }]);
    await received.vm.createIrqchip();
    expect(there.sent.at(-1)?.headers.process).toBe('there');
  });

  it('resolves in post-copy when the guest runs, and tells later that all of its memory has arrived', async () => {
    const here = hostOf({
      SendVm: SEND,
      WatchMigration: watched({ standing: SERVING, progress: { pages_left: 9 } }, { standing: SENT, progress: { round: 2 } }),
    });
    const there = hostOf({
      WatchMigration: watched(
        { standing: COMMITTED, phase: 'fetching', ...RECEIVED },
        { standing: COMMITTED, phase: 'committed', ...RECEIVED },
      ),
    });
    const limits = { post_copy: PostCopy.POST_COPY_AFTER_ROUNDS };
    const { statistics, received, completed } = await migrate(vmOver(here), { to: processOver(there), limits });
    expect(sendRequest(here)?.limits).toMatchObject({ post_copy: PostCopy.POST_COPY_AFTER_ROUNDS });
    expect([statistics.pages_left, received.vcpus.length]).toEqual([9n, 2]);
    expect(await completed()).toMatchObject({ round: 2, pages_left: 0n });
  });

  it('says in the end that memory has been lost which was still at the source', async () => {
    const here = hostOf({ SendVm: SEND, WatchMigration: watched({ standing: SERVING }, { standing: SENT }) });
    const lost = { standing: COMMITTED, phase: 'committed', reason: 'PAGES_LOST', ...RECEIVED };
    const there = hostOf({ WatchMigration: watched({ standing: COMMITTED, phase: 'fetching', ...RECEIVED }, lost) });
    const { completed } = await migrate(vmOver(here), { to: processOver(there) });
    await expect(completed()).rejects.toBeInstanceOf(MigrationError);
    await expect(completed()).rejects.toThrow('the guest runs without memory that nobody has any more');
  });

  it('goes to a daemon that the source sees elsewhere, and to a process of which only the token is known', async () => {
    const here = hostOf({ SendVm: SEND, WatchMigration: watched({ standing: SENT }) });
    const { received } = await migrate(vmOver(here), { to: { address: '10.0.0.2:7341', process: 'token' } });
    expect(sendRequest(here)?.to).toEqual({ address: '10.0.0.2:7341', process: 'token' });
    expect(received).toBeNull();
  });

  it('throws why the guest has stayed', async () => {
    const here = hostOf({ SendVm: SEND, WatchMigration: watched({ standing: STAYED, reason: 'CPUID_NOT_SUPPORTED' }) });
    const moved = migrate(vmOver(here), { to: { address: 'a:1', process: 'b' } });
    await expect(moved).rejects.toBeInstanceOf(MigrationError);
    await expect(moved).rejects.toMatchObject({ reason: 'CPUID_NOT_SUPPORTED', migration: { session: 'm1' } });
    await expect(moved).rejects.toThrow('the guest has stayed where it was: CPUID_NOT_SUPPORTED');
  });

  it('throws what the source says before it begins', async () => {
    const here = hostOf({ SendVm: refusal('EACCES', 'PEER_NOT_ALLOWED') });
    await expect(migrate(vmOver(here), { to: { address: 'a:1', process: 'b' } })).rejects.toMatchObject({
      errno: 'EACCES',
      reason: 'PEER_NOT_ALLOWED',
    });
  });

  it('gives up where it is told to, and says so once the guest has stayed for certain', async () => {
    const abort = new AbortController();
    const here = hostOf({
      SendVm: SEND,
      WatchMigration: watched({ standing: SENDING }, { standing: STAYED, reason: 'CANCELLED' }),
    });
    const moved = migrate(vmOver(here), {
      to: { address: 'a:1', process: 'b' },
      signal: abort.signal,
      onProgress: ({ standing }) => standing === SENDING && abort.abort(new Error('enough')),
    });
    await expect(moved).rejects.toMatchObject({ reason: 'CANCELLED', cause: { message: 'enough' } });
    expect(here.sent.map(method)).toEqual(['SendVm', 'WatchMigration', 'CancelMigration']);
  });

  it('has moved the guest where it was told too late', async () => {
    const abort = new AbortController();
    const here = hostOf({ SendVm: SEND, WatchMigration: watched({ standing: SENT }) });
    const moved = migrate(vmOver(here), {
      to: { address: 'a:1', process: 'b' },
      signal: abort.signal,
      onProgress: () => abort.abort(),
    });
    await expect(moved).resolves.toMatchObject({ session: 'm1' });
  });

  it('does not begin where it has been given up before', async () => {
    const here = hostOf({});
    const moved = migrate(vmOver(here), { to: { address: 'a:1', process: 'b' }, signal: AbortSignal.abort(new Error('no')) });
    await expect(moved).rejects.toThrow('no');
    expect(here.sent).toEqual([]);
  });

  it('relays between hosts of which neither dials', async () => {
    const here = hostOf({ SendVm: SEND, WatchMigration: watched({ standing: SENT, closed: true }) });
    const there = hostOf({ ReceiveVm: RECEIVE, WatchMigration: watched({ standing: COMMITTED, closed: true, ...RECEIVED }) });
    const { received } = await migrate(vmOver(here), { to: processOver(there), relay: true });
    expect(received.vm.fd).toBe(5);
    expect(receiveRequest(there)).toMatchObject({ session: null, from: null });
    expect(sendRequest(here)).toMatchObject({ session: 'm1', to: null });
    expect(here.sent.map(method)).toContain('Exchange');
    expect(there.sent.map(method)).toContain('Exchange');
  });

  it('leaves no session behind at the destination where the source refuses', async () => {
    const here = hostOf({ SendVm: refusal('EBUSY', 'MIGRATION_UNDER_WAY') });
    const there = hostOf({ ReceiveVm: RECEIVE });
    await expect(migrate(vmOver(here), { to: processOver(there), relay: true })).rejects.toMatchObject({ errno: 'EBUSY' });
    expect(there.sent.map(method)).toEqual(['ReceiveVm', 'CancelMigration']);
  });

  it('relays to nobody but a process of another connection', async () => {
    const moved = migrate(vmOver(hostOf({})), { to: { address: 'a:1', process: 'b' }, relay: true });
    await expect(moved).rejects.toThrow('relayed to a Process');
  });
});

describe('the calls beneath it', () => {
  it('begin each half by itself', async () => {
    const [here, there] = [hostOf({ SendVm: SEND }), hostOf({ ReceiveVm: RECEIVE })];
    expect(await sendVm(vmOver(here), { session: 'm1' })).toBe('m1');
    expect(sendRequest(here)).toMatchObject({ fd: 4, session: 'm1', to: null });
    expect(await receiveVm(processOver(there), { from: { address: 'a:1', process: 't' }, vm: 9 })).toBe('m1');
    expect(receiveRequest(there)).toMatchObject({ from: { address: 'a:1', process: 't' }, from_fd: 9 });
  });

  it('ask whether it would be allowed', async () => {
    const verdict = { allowed: false, reason: 'SNP_NEEDS_MIGRATION_AGENT' };
    const here = hostOf({ SendVm: { response: MigrationService.sendVm.responseSerialize({ verdict }) } });
    expect(await validateMigration(vmOver(here))).toMatchObject(verdict);
    expect(sendRequest(here)).toMatchObject({ validate_only: true, to: null });
  });
});
