import { status } from '@grpc/grpc-js';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { AttachResponse } from '../../gen/messages.js';
import { EventFdService, FileService, KvmSystem, KvmVm, MemoryService, ProcessService } from '../../gen/services.js';
import { startTestDaemon, type TestDaemon } from '../helpers/daemon.js';
import { type Outcome, RawClient } from '../helpers/raw-client.js';

const EFD_NONBLOCK = 0x800;
const SIGUSR1 = 10;
const SIGKILL = 9;
const GUEST_BYTES = 65_536n;

let daemon: TestDaemon;
let client: RawClient;
beforeAll(async () => {
  daemon = await startTestDaemon();
  client = new RawClient(daemon.address);
});
afterAll(async () => {
  client[Symbol.dispose]();
  await daemon[Symbol.asyncDispose]();
});
afterEach(async () => {
  await expect.poll(() => client.leftovers()).toEqual({ kmem: 0n, vms: 0, contexts: 0, findings: 0n });
});

const ret = ({ response, message }: Outcome<{ ret: bigint }>): number => {
  if (response === null) throw new Error(message);
  return Number(response.ret);
};

/** Attaches: the pid and the token, what comes later, and the end of the lease. */
const attach = async (token: string | null = null) => {
  const stream = client.stream(ProcessService.attach, { name: 'test', token });
  const events: AttachResponse[] = [];
  stream.on('error', () => {});
  const hello = await new Promise<AttachResponse>((resolve) => {
    stream.on('data', (message: AttachResponse) => {
      events.push(message);
      resolve(message);
    });
  });
  const { pid, token: own } = hello.hello ?? { pid: 0, token: '' };
  return { pid, token: own, headers: { 'simkvm-process': own }, events, end: () => stream.cancel() };
};

describe('a process that dies with everything open', () => {
  it('leaves nothing behind: VMs, memory, a launched SEV guest', async () => {
    const { headers, end } = await attach();
    const call = client.call.bind(client);
    const kvm = ret(await call(FileService.open, { path: '/dev/kvm', flags: 2 }, headers));
    const sev = ret(await call(FileService.open, { path: '/dev/sev', flags: 2 }, headers));
    const vm = ret(await call(KvmSystem.createVm, { fd: kvm, type: 0 }, headers));
    const addr = BigInt(ret(await call(MemoryService.mmap, { length: GUEST_BYTES, prot: 3, flags: 0x22 }, headers)));
    const region = { slot: 0, guest_phys_addr: 0n, memory_size: GUEST_BYTES, userspace_addr: addr };
    ret(await call(KvmVm.setUserMemoryRegion, { fd: vm, region }, headers));
    ret(await call(KvmVm.sevInit, { fd: vm }, headers));
    ret(await call(KvmVm.sevLaunchStart, { fd: vm, launch_start: { policy: 0 }, sev_fd: sev }, headers));
    ret(await call(KvmVm.memoryEncryptRegRegion, { fd: vm, region: { addr, size: GUEST_BYTES } }, headers));
    ret(await call(KvmVm.sevLaunchUpdateData, { fd: vm, launch_update_data: { uaddr: addr, len: 4096 } }, headers));
    ret(await call(KvmVm.createVcpu, { fd: vm, id: 0n }, headers));
    const eventfd = ret(await call(EventFdService.create, {}, headers));
    ret(await call(KvmVm.ioeventfd, { fd: vm, ioeventfd: { addr: 0x1000n, len: 4, fd: eventfd } }, headers));
    expect((await client.leftovers()).contexts).toBe(1);
    end();
  });

  it('takes the child that has not attached itself with it, and leaves the one that has', async () => {
    const parent = await attach();
    const lives = await client.call(ProcessService.fork, {}, parent.headers);
    const dies = await client.call(ProcessService.fork, {}, parent.headers);
    const attached = await attach(lives.response?.token ?? null);
    parent.end();
    await expect
      .poll(async () => (await client.call(ProcessService.listFds, {}, { 'simkvm-process': dies.response?.token ?? '' })).reason)
      .toBe('PROCESS_NOT_FOUND');
    expect((await client.call(ProcessService.listFds, {}, attached.headers)).code).toBe(status.OK);
    attached.end();
  });

  it('tells the holder of its lease when it is killed', async () => {
    const victim = await attach();
    const killer = await attach();
    ret(await client.call(ProcessService.signal, { pid: victim.pid, signo: SIGKILL }, killer.headers));
    await expect.poll(() => victim.events.at(-1)?.exited?.status).toBe(128 + SIGKILL);
    killer.end();
  });
});

describe('a call that waits', () => {
  const waiting = async (headers: Record<string, string>) => {
    const eventfd = ret(await client.call(EventFdService.create, {}, headers));
    return { eventfd, read: client.start(EventFdService.read, { fd: eventfd }, headers) };
  };

  it('answers EINTR when its thread is signalled', async () => {
    const { pid, headers, end } = await attach();
    const { read } = await waiting({ ...headers, 'simkvm-thread': '7' });
    await expect
      .poll(async () => (await client.call(ProcessService.signal, { pid, tid: 7, signo: SIGUSR1 }, headers)).code)
      .toBe(status.OK);
    expect((await read.outcome).errno).toBe('EINTR');
    end();
  });

  it('is interrupted when it is cancelled, and its reply is to be had by its request id', async () => {
    const { headers, end } = await attach();
    const own = { ...headers, 'simkvm-request-id': '41' };
    const eventfd = ret(await client.call(EventFdService.create, {}, headers));
    const read = client.start(EventFdService.read, { fd: eventfd }, own);
    await client.call(ProcessService.listFds, {}, headers);
    read.cancel();
    expect((await read.outcome).code).toBe(status.CANCELLED);
    expect((await client.call(EventFdService.read, { fd: eventfd }, own)).errno).toBe('EINTR');
    end();
  });
});

describe('a request id', () => {
  it('makes a call that is repeated execute once', async () => {
    const { headers, end } = await attach();
    const own = { ...headers, 'simkvm-request-id': '1' };
    const first = ret(await client.call(EventFdService.create, { flags: EFD_NONBLOCK }, own));
    const again = ret(await client.call(EventFdService.create, { flags: EFD_NONBLOCK }, own));
    expect(again).toBe(first);
    expect((await client.call(ProcessService.listFds, {}, headers)).response?.fds).toHaveLength(1);
    end();
  });

  it('is refused for another method, and once it has been acknowledged', async () => {
    const { headers, end } = await attach();
    const own = { ...headers, 'simkvm-request-id': '5' };
    ret(await client.call(EventFdService.create, {}, own));
    expect((await client.call(MemoryService.memfdCreate, { name: 'm' }, own)).reason).toBe('REQUEST_ID_REUSED');
    await client.call(ProcessService.listFds, {}, { ...headers, 'simkvm-acknowledge': '5' });
    expect((await client.call(EventFdService.create, {}, own)).reason).toBe('REQUEST_ACKNOWLEDGED');
    end();
  });
});

describe('a descriptor goes to another process', () => {
  it('with its token, or to its pid if it has accepted', async () => {
    const [from, to] = [await attach(), await attach()];
    const eventfd = ret(await client.call(EventFdService.create, { initval: 3, flags: EFD_NONBLOCK }, from.headers));
    const sent = ret(await client.call(ProcessService.sendFd, { fd: eventfd, token: to.token }, from.headers));
    expect((await client.call(EventFdService.read, { fd: sent }, to.headers)).response?.value).toBe(3n);
    expect((await client.call(ProcessService.sendFd, { fd: eventfd, pid: to.pid }, from.headers)).reason).toBe(
      'RECEIVER_HAS_NOT_ACCEPTED',
    );
    ret(await client.call(ProcessService.acceptFds, { from_pid: from.pid, limit: 1 }, to.headers));
    ret(await client.call(ProcessService.sendFd, { fd: eventfd, pid: to.pid }, from.headers));
    expect((await client.call(ProcessService.sendFd, { fd: eventfd, pid: to.pid }, from.headers)).errno).toBe('EPERM');
    await expect.poll(() => to.events.filter(({ fd_received }) => fd_received !== null).length).toBe(2);
    from.end();
    to.end();
  });
});

describe('a process', () => {
  it('is named by its token, by nothing else', async () => {
    const { pid, end } = await attach();
    for (const name of [String(pid), 'no token', '2'])
      expect((await client.call(ProcessService.listFds, {}, { 'simkvm-process': name })).code).toBe(status.UNAUTHENTICATED);
    end();
  });

  it('that was spawned lives without a lease, and is named by its pid on loopback', async () => {
    const { response } = await client.call(ProcessService.spawn, { name: 'person' });
    const headers = { 'simkvm-process': String(response?.ret) };
    ret(await client.call(FileService.open, { path: '/dev/kvm', flags: 2 }, headers));
    ret(await client.call(ProcessService.exit, { status: 0 }, headers));
  });
});
