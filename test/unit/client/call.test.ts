import { status } from '@grpc/grpc-js';
import { describe, expect, it } from 'vitest';
import { Caller, ENDLESS } from '../../../client/call.js';
import { KvmVcpu, KvmVm } from '../../../gen/services.js';
import { callerOver, FakeTransport, lost, refusal, zero } from './fake-transport.js';

const createIrqchip = (caller: Caller) => caller.call(KvmVm.createIrqchip, { fd: 4 });

describe('a call', () => {
  it('names its process and thread, and counts its id up', async () => {
    const transport = new FakeTransport();
    const caller = callerOver(transport, { thread: 9 });
    await createIrqchip(caller);
    await createIrqchip(caller);
    expect(transport.sent.map(({ headers }) => headers)).toEqual([
      { process: 'token', thread: 9, requestId: 1, acknowledge: null },
      { process: 'token', thread: 9, requestId: 2, acknowledge: null },
    ]);
  });

  it('has no id in the name of init, which others act as too', async () => {
    const transport = new FakeTransport();
    await createIrqchip(new Caller(transport, { token: null, ids: null }));
    expect(transport.sent[0]?.headers).toEqual({ process: null, thread: null, requestId: null, acknowledge: null });
  });

  it('always has a deadline, but where it lasts as long as what it runs', async () => {
    const transport = new FakeTransport();
    const caller = callerOver(transport);
    await createIrqchip(caller);
    await caller.call(KvmVcpu.run, { fd: 5 }, ENDLESS);
    await caller.with({ timeoutMs: 7 }).call(KvmVcpu.run, { fd: 5 }, ENDLESS);
    await createIrqchip(caller.with({ timeoutMs: null }));
    expect(transport.sent.map(({ limits }) => limits.timeoutMs)).toEqual([30_000, null, 7, null]);
  });
});

describe('a reply that is lost', () => {
  it('is asked for once more, under the same id', async () => {
    const answers = [lost, zero];
    const transport = new FakeTransport(() => answers.shift() ?? lost);
    const { error } = await createIrqchip(callerOver(transport));
    expect(error).toBeNull();
    expect(transport.sent.map(({ headers }) => headers.requestId)).toEqual([1, 1]);
  });

  it('is given up after that', async () => {
    const transport = new FakeTransport(() => lost);
    const { error } = await createIrqchip(callerOver(transport));
    expect(error).toMatchObject({ errno: null, code: status.UNAVAILABLE });
    expect(transport.sent).toHaveLength(2);
  });

  it('is explained by the loss where the process has ended with the connection', async () => {
    const answers = [lost, refusal('ESRCH', 'PROCESS_NOT_FOUND')];
    const transport = new FakeTransport(() => answers.shift() ?? lost);
    expect((await createIrqchip(callerOver(transport))).error?.code).toBe(status.UNAVAILABLE);
  });

  it('is not asked for where nobody can: a call without an id is not repeated', async () => {
    const transport = new FakeTransport(() => lost);
    await createIrqchip(new Caller(transport, { token: null, ids: null }));
    expect(transport.sent).toHaveLength(1);
  });

  it('is not one that the kernel has given: an errno is an answer', async () => {
    const transport = new FakeTransport(() => refusal('EIO', 'VM_DEAD_MOVED'));
    const { error } = await createIrqchip(callerOver(transport));
    expect(error?.errno).toBe('EIO');
    expect(transport.sent).toHaveLength(1);
  });
});

describe('an AbortSignal', () => {
  const run = (transport: FakeTransport, signal: AbortSignal) =>
    callerOver(transport).with({ signal }).call(KvmVcpu.run, { fd: 5 }, ENDLESS);

  it('interrupts the call, whose answer is then asked for by its id', async () => {
    const abort = new AbortController();
    let asked = 0;
    const transport = new FakeTransport(() => (++asked === 1 ? 'silence' : refusal('EINTR', 'SIGNAL_PENDING')));
    const reply = run(transport, abort.signal);
    abort.abort();
    expect((await reply).error?.errno).toBe('EINTR');
    expect(transport.sent.map(({ headers }) => headers.requestId)).toEqual([1, 1]);
  });

  it('interrupts again where asking is what started the call', async () => {
    const abort = new AbortController();
    let asked = 0;
    const transport = new FakeTransport(() => (++asked <= 2 ? 'silence' : refusal('EINTR', 'SIGNAL_PENDING')));
    const reply = run(transport, abort.signal);
    abort.abort();
    expect((await reply).error?.errno).toBe('EINTR');
    expect(transport.sent).toHaveLength(3);
    expect(transport.sent[1]?.limits.timeoutMs).not.toBeNull();
  });

  it('that has gone off before keeps the call from being made', async () => {
    const transport = new FakeTransport();
    const { error } = await run(transport, AbortSignal.abort());
    expect(error).toMatchObject({ errno: null, code: status.CANCELLED });
    expect(transport.sent).toHaveLength(0);
  });

  it('acknowledges the interrupted call afterwards', async () => {
    const abort = new AbortController();
    let asked = 0;
    const transport = new FakeTransport(() => (++asked === 1 ? 'silence' : zero));
    const caller = callerOver(transport);
    const reply = caller.with({ signal: abort.signal }).call(KvmVcpu.run, { fd: 5 }, ENDLESS);
    abort.abort();
    await reply;
    for (let call = 2; call <= 100; call++) await createIrqchip(caller);
    expect(transport.sent.flatMap(({ headers }) => headers.acknowledge ?? [])).toEqual(['64']);
  });
});
