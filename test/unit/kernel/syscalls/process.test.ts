import { describe, expect, it } from 'vitest';
import { DEFAULT_HOST_CONFIG } from '../../../../server/kernel/config.js';
import { failed } from '../../../../server/kernel/failure.js';
import { createHost } from '../../../../server/kernel/kvm/host.js';
import type { Process } from '../../../../server/kernel/process/process.js';
import type { Thread } from '../../../../server/kernel/process/thread.js';
import type { Task } from '../../../../server/kernel/sched/task.js';
import { type MightSleep, stepsOf } from '../../../../server/kernel/sched/wait.js';
import { close, open } from '../../../../server/kernel/syscalls/descriptors.js';
import { eventfd } from '../../../../server/kernel/syscalls/events.js';
import { read } from '../../../../server/kernel/syscalls/io.js';
import { mmap, readMemory, writeMemory } from '../../../../server/kernel/syscalls/memory.js';
import { fork, kill, SIG, sigprocmask } from '../../../../server/kernel/syscalls/process.js';
import { MAP, PROT } from '../../../../server/kernel/uapi/mman.js';
import { atOnce, errnoOf } from '../run-task.js';

const SIGKILL = 9;
const SIGUSR2 = 12;

const setUp = () => {
  const kernel = createHost(DEFAULT_HOST_CONFIG, { clock: { now: () => 0n } });
  const process = kernel.spawn(null);
  const start = <T>(body: (current: Task) => MightSleep<T>, thread?: Thread, of: Process = process) => {
    const outcome: { result?: T } = {};
    kernel.scheduler.start(
      of,
      'test',
      body,
      (result) => {
        outcome.result = result;
      },
      thread,
    );
    kernel.scheduler.run();
    return { result: () => errnoOf(outcome.result) };
  };
  const call = <T>(body: (current: Task) => MightSleep<T>, of: Process = process) => start(body, undefined, of).result();
  const number = (body: (current: Task) => MightSleep<unknown>): number => {
    const result = call(body);
    if (typeof result !== 'number') throw new Error(String(result));
    return result;
  };
  const forked = (): Process => {
    const child = call(atOnce((current) => fork(kernel, current)));
    if (child === undefined || typeof child === 'string' || failed(child)) throw new Error('no child');
    return child;
  };
  return { kernel, process, start, call, number, forked };
};

describe('open', () => {
  it('knows the devices of the host by their paths, and no other file', () => {
    const { kernel, call } = setUp();
    expect(call((current) => open(kernel, current, '/dev/kvm', 2))).toBe(3);
    expect(call((current) => open(kernel, current, '/dev/null', 0))).toBe(4);
    expect(call((current) => open(kernel, current, '/etc/passwd', 0))).toBe('ENOENT');
    expect(call((current) => open(kernel, current, '/dev/kvm', 3))).toBe('EINVAL');
  });
});

describe('fork', () => {
  it('copies the descriptors, which go on sharing their files', () => {
    const { call, number, forked, process } = setUp();
    const fd = number((current) => eventfd(current, 7, 0));
    const child = forked();
    expect(child.files.lookup(fd)).toBe(process.files.lookup(fd));
    expect(call((current) => read(current, fd, 8), child)).toEqual(Uint8Array.of(7, 0, 0, 0, 0, 0, 0, 0));
    call((current) => close(current, fd), child);
    expect(process.files.lookup(fd)).toBeDefined();
  });

  it('shares shared memory, and copies private memory when either side writes', () => {
    const { call, number, forked } = setUp();
    const map = (flags: number) =>
      BigInt(
        number(
          atOnce((current) =>
            mmap(current, {
              address: 0n,
              length: 4096n,
              prot: PROT.READ | PROT.WRITE,
              flags: flags | MAP.ANONYMOUS,
              fd: -1,
              offset: 0n,
            }),
          ),
        ),
      );
    const shared = map(MAP.SHARED);
    const own = map(MAP.PRIVATE);
    const store = (address: bigint, byte: number, of?: Process) =>
      call(
        atOnce((current) => writeMemory(current, address, Uint8Array.of(byte)) ?? 0),
        of,
      );
    const load = (address: bigint, of?: Process) => call((current) => stepsOf(readMemory(current, address, 1)), of);
    store(own, 1);
    const child = forked();
    store(shared, 5, child);
    store(own, 6, child);
    expect([load(shared), load(own), load(own, child)]).toEqual([Uint8Array.of(5), Uint8Array.of(1), Uint8Array.of(6)]);
  });
});

describe('kill', () => {
  it('refuses numbers that are no signal, and threads that there are not', () => {
    const { kernel, process } = setUp();
    for (const signo of [-1, 65, 1.5]) expect(errnoOf(kill(kernel, process, signo))).toBe('EINVAL');
    expect(errnoOf(kill(kernel, process, SIGUSR2, 99))).toBe('ESRCH');
    process.thread(99);
    expect(errnoOf(kill(kernel, process, SIGUSR2, 99))).toBe(0);
    expect(errnoOf(kill(kernel, process, 0))).toBe(0);
  });

  it('SIGKILL ends the process, with all that it holds', () => {
    const { kernel, process, start, number } = setUp();
    const fd = number((current) => eventfd(current, 0, 0));
    const reader = start((current) => read(current, fd, 8));
    kill(kernel, process, SIGKILL);
    kernel.scheduler.run();
    expect(reader.result()).toBe('EINTR');
    expect(process.state.kind).toBe('exited');
    expect(process.files.size).toBe(0);
    expect(errnoOf(kill(kernel, process, 0))).toBe('ESRCH');
  });

  it('interrupts the one thread it is meant for', () => {
    const { kernel, process, start, number } = setUp();
    const fd = number((current) => eventfd(current, 0, 0));
    const first = start((current) => read(current, fd, 8), process.thread(1));
    const second = start((current) => read(current, fd, 8), process.thread(2));
    kill(kernel, process, SIGUSR2, 2);
    kernel.scheduler.run();
    expect(first.result()).toBeUndefined();
    expect(second.result()).toBe('EINTR');
  });
});

describe('sigprocmask', () => {
  it('holds a signal back until it is unblocked', () => {
    const { kernel, process, start, number } = setUp();
    const fd = number((current) => eventfd(current, 0, 0));
    const thread = process.thread(1);
    const mask = (how: number, signals: number[]) =>
      start(
        atOnce((current) => sigprocmask(current, how, signals)),
        thread,
      ).result();
    expect(mask(SIG.BLOCK, [SIGUSR2])).toBe(0);
    kill(kernel, process, SIGUSR2, 1);
    const reader = start((current) => read(current, fd, 8), thread);
    expect(reader.result()).toBeUndefined();
    expect([...thread.pending]).toEqual([SIGUSR2]);
    mask(SIG.UNBLOCK, [SIGUSR2]);
    expect([...thread.pending]).toEqual([]);
  });

  it('cannot block SIGKILL, and refuses what is no signal or no way to change a mask', () => {
    const { process, start } = setUp();
    const thread = process.thread(1);
    const mask = (how: number, signals: number[]) =>
      start(
        atOnce((current) => sigprocmask(current, how, signals)),
        thread,
      ).result();
    mask(SIG.SETMASK, [SIGKILL, SIGUSR2]);
    expect([...thread.blocked]).toEqual([SIGUSR2]);
    expect(mask(SIG.BLOCK, [0])).toBe('EINVAL');
    expect(mask(SIG.BLOCK, [65])).toBe('EINVAL');
    expect(mask(3, [SIGUSR2])).toBe('EINVAL');
  });
});
