import { describe, expect, it } from 'vitest';
import { DEFAULT_HOST_CONFIG } from '../../../server/kernel/config.js';
import { Failure } from '../../../server/kernel/failure.js';
import { createHost } from '../../../server/kernel/kvm/host.js';
import { WaitQueue } from '../../../server/kernel/sched/wait.js';
import { type Host, type Reply, refused, reply, type UnaryMethod } from '../../../server/rpc/call.js';
import { CALLS_MAX, type CallHeaders, Dispatch } from '../../../server/rpc/dispatch.js';
import { createVolatileMigrationHost } from '../../../server/rpc/migration/migration-host.js';
import { ProcessRegistry } from '../../../server/rpc/process-registry.js';

const LOCAL: CallHeaders = {
  process: undefined,
  thread: undefined,
  requestId: undefined,
  acknowledge: undefined,
  onLoopback: true,
  peer: '127.0.0.1:1',
};

const setUp = (validate: (path: string, request: object) => Failure | null = () => null) => {
  const kernel = createHost(DEFAULT_HOST_CONFIG, { clock: { now: () => 0n } });
  const migration = createVolatileMigrationHost();
  const host: Host = { kernel, processes: new ProcessRegistry(kernel), version: 'test', bootId: 'test', migration, log: null };
  const dispatch = new Dispatch(host, validate);
  const call = <Res>(
    method: Partial<UnaryMethod<object, Res>> & Pick<UnaryMethod<object, Res>, 'handle'>,
    headers: Partial<CallHeaders> = {},
  ) => {
    const replies: Reply<Res>[] = [];
    const cancel = dispatch.call({
      path: '/test/Call',
      method: { role: 'process', mutates: true, syscall: 'test', ...method },
      headers: { ...LOCAL, ...headers },
      request: {},
      deliver: (answer: Reply<Res>) => replies.push(answer),
    });
    return { replies, cancel };
  };
  return { kernel, host, dispatch, call };
};

describe('the dispatch', () => {
  it('answers at once what never waits', () => {
    const { call } = setUp();
    expect(call({ handle: () => reply({ ret: 7 }) }).replies).toEqual([{ failure: null, response: { ret: 7 } }]);
  });

  it('ends only the call whose handler throws, with EIO and a kernel finding', () => {
    const { kernel, call } = setUp();
    const thrown = call({
      handle: () => {
        throw new Error('invariant');
      },
    });
    expect(thrown.replies[0]?.failure).toMatchObject({ errno: 'EIO', reason: 'KERNEL_OOPS', details: { message: 'invariant' } });
    expect(kernel.findings.all).toMatchObject([{ domain: 'kernel', kind: 'KERNEL_OOPS' }]);
    expect(call({ handle: () => reply({}) }).replies).toHaveLength(1);
    expect(kernel.init.tasks.length).toBe(0);
  });

  it('refuses what does not pass validation before any handler runs', () => {
    const { call } = setUp((path) => new Failure('EINVAL', 'FIELD_MISSING', 'simkvmd', { field: path }));
    let ran = false;
    const { replies } = call({
      handle: () => {
        ran = true;
        return reply({});
      },
    });
    expect(replies[0]?.failure?.reason).toBe('FIELD_MISSING');
    expect(ran).toBe(false);
  });

  it.each([
    ['operator', false, 'METHOD_NOT_ALLOWED'],
    ['operator', true, undefined],
    ['process', true, undefined],
  ] as const)('a method for role %s, called %s on loopback: %s', (role, onLoopback, reason) => {
    const { host, call } = setUp();
    const holder = host.processes.create('attached');
    if (holder instanceof Failure) throw new Error(holder.reason);
    const { replies } = call({ role, handle: () => reply({}) }, { onLoopback, process: holder.token });
    expect(replies[0]?.failure?.reason).toBe(reason);
  });

  it('lets nobody beyond loopback act without a token', () => {
    const { call } = setUp();
    for (const process of [undefined, '1', 'guessed'])
      expect(call({ handle: () => reply({}) }, { onLoopback: false, process }).replies[0]?.failure).not.toBeNull();
  });

  it('lets those beyond loopback who have no token yet call what anyone may', () => {
    const { call } = setUp();
    const stranger = { onLoopback: false, process: undefined };
    expect(call({ role: 'anyone', handle: () => reply({}) }, stranger).replies[0]?.failure).toBeNull();
  });

  it('bounds the calls that a process has under way', () => {
    const { call } = setUp();
    const queue = new WaitQueue();
    const sleep = () =>
      call({
        *handle() {
          yield { kind: 'interruptible', queue, site: 'test' };
          return reply({});
        },
      });
    const waiting = Array.from({ length: CALLS_MAX }, sleep);
    expect(sleep().replies[0]?.failure?.reason).toBe('TOO_MANY_CALLS');
    for (const { cancel } of waiting) cancel.cancel();
  });

  it('interrupts a call that is cancelled while it waits', () => {
    const { kernel, call } = setUp();
    const { replies, cancel } = call({
      *handle() {
        const wake = yield { kind: 'interruptible', queue: new WaitQueue(), site: 'test' };
        return wake === 'signal' ? refused(new Failure('EINTR', 'SIGNAL', 'test')) : reply({});
      },
    });
    cancel.cancel();
    kernel.scheduler.run();
    expect(replies[0]?.failure?.errno).toBe('EINTR');
  });
});
