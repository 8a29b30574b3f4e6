import { describe, expect, it } from 'vitest';
import { createEventFd } from '../../../../server/kernel/fs/eventfd.js';
import { File, OPEN, SEEK } from '../../../../server/kernel/fs/file.js';
import { createMemFd } from '../../../../server/kernel/fs/memfd.js';
import { createPipe } from '../../../../server/kernel/fs/pipe.js';
import { Process } from '../../../../server/kernel/process/process.js';
import type { Task } from '../../../../server/kernel/sched/task.js';
import type { MightSleep } from '../../../../server/kernel/sched/wait.js';
import { fallocate, ftruncate } from '../../../../server/kernel/syscalls/allocate.js';
import { close, describeFd, dup, fcntl, fstat, sendFd } from '../../../../server/kernel/syscalls/descriptors.js';
import { lseek, pread, pwrite, read, write } from '../../../../server/kernel/syscalls/io.js';
import { ioctl } from '../../../../server/kernel/syscalls/ioctl.js';
import { F, FD_CLOEXEC, FIOCLEX, FIONBIO } from '../../../../server/kernel/uapi/fcntl.js';
import { atOnce, createTestProcess, errnoOf } from '../run-task.js';

const CLOSED = 50;

const setUp = () => {
  const test = createTestProcess();
  const install = (file: unknown): number => {
    const fd = file instanceof File ? test.process.files.install(file, true) : null;
    if (typeof fd !== 'number') throw new Error('no descriptor');
    return fd;
  };
  const run = <T>(body: (current: Task) => MightSleep<T>) => errnoOf(test.call(body));
  const now = <T>(body: (current: Task) => T) => errnoOf(test.call(atOnce(body)));
  return {
    ...test,
    run,
    now,
    install,
    event: install(createEventFd(0, OPEN.NONBLOCK)),
    memfd: install(createMemFd('ram', 0, 3, test.pages)),
    pipe: install(createPipe(4, OPEN.NONBLOCK).reader),
  };
};

describe('a descriptor that is not open', () => {
  it.each<[string, (current: Task) => unknown]>([
    ['pread', (current) => pread(current, CLOSED, 1, 0n)],
    ['pwrite', (current) => pwrite(current, CLOSED, new Uint8Array(1), 0n)],
    ['lseek', (current) => lseek(current, CLOSED, 0n, 99)],
    ['ftruncate', (current) => ftruncate(current, CLOSED, 0n)],
    ['fstat', (current) => fstat(current, CLOSED)],
    ['readlink', (current) => describeFd(current, CLOSED)],
  ])('is EBADF to %s', (_name, body) => {
    expect(setUp().now(body)).toBe('EBADF');
  });

  it.each<[string, (current: Task) => MightSleep<unknown>]>([
    ['read', (current) => read(current, CLOSED, 8)],
    ['write', (current) => write(current, CLOSED, new Uint8Array(8))],
    ['close', (current) => close(current, CLOSED)],
    ['dup', (current) => dup(current, CLOSED)],
    ['fcntl', (current) => fcntl(current, CLOSED, F.GETFL, 0)],
    ['fallocate', (current) => fallocate(current, CLOSED, 0, 0n, 1n)],
    [
      'ioctl',
      (current) => ioctl(current, CLOSED, 0, { value: 0n, user: { copyIn: () => new Uint8Array(0), copyOut: () => null } }),
    ],
  ])('is EBADF to %s', (_name, body) => {
    expect(setUp().run(body)).toBe('EBADF');
  });
});

describe('positions', () => {
  it('are nothing to a pipe, stand still in an eventfd, and move in a memfd', () => {
    const { now, event, memfd, pipe } = setUp();
    expect(now((current) => lseek(current, pipe, 0n, SEEK.SET))).toBe('ESPIPE');
    expect(now((current) => lseek(current, event, 5n, SEEK.SET))).toBe(0);
    expect(now((current) => lseek(current, memfd, 5n, SEEK.SET))).toBe(5);
    expect(now((current) => lseek(current, memfd, 0n, 5))).toBe('EINVAL');
  });

  it('cannot be negative', () => {
    const { now, event } = setUp();
    expect(now((current) => pread(current, event, 8, -1n))).toBe('EINVAL');
    expect(now((current) => pwrite(current, CLOSED, new Uint8Array(1), -1n))).toBe('EINVAL');
    expect(now((current) => ftruncate(current, CLOSED, -1n))).toBe('EINVAL');
  });

  it('of an eventfd cannot be given: ESPIPE', () => {
    const { now, event } = setUp();
    expect(now((current) => pread(current, event, 8, 0n))).toBe('ESPIPE');
    expect(now((current) => pwrite(current, event, new Uint8Array(8), 0n))).toBe('ESPIPE');
  });

  it('advance with plain reads and writes', () => {
    const { now, run, memfd } = setUp();
    run((current) => write(current, memfd, Uint8Array.of(1, 2, 3)));
    now((current) => lseek(current, memfd, 1n, SEEK.SET));
    expect(run((current) => read(current, memfd, 8))).toEqual(Uint8Array.of(2, 3));
    expect(run((current) => read(current, memfd, 8))).toEqual(new Uint8Array(0));
  });
});

describe('fallocate and ftruncate', () => {
  it('are for regular files', () => {
    const { run, now, event, pipe, memfd } = setUp();
    expect(run((current) => fallocate(current, event, 0, 0n, 1n))).toBe('ENODEV');
    expect(run((current) => fallocate(current, pipe, 0, 0n, 1n))).toBe('EBADF');
    expect(now((current) => ftruncate(current, event, 0n))).toBe('EINVAL');
    expect(now((current) => ftruncate(current, memfd, 10n))).toBe(0);
    expect(now((current) => fstat(current, memfd))).toMatchObject({ size: 10 });
  });

  it('look at the range before the mode, and at the mode before the file', () => {
    const { run, event } = setUp();
    expect(run((current) => fallocate(current, event, 2, 0n, 0n))).toBe('EINVAL');
    expect(run((current) => fallocate(current, event, 2, 0n, 1n))).toBe('EOPNOTSUPP');
    expect(run((current) => fallocate(current, event, 3, -1n, 1n))).toBe('EINVAL');
  });

  it('know a limit', () => {
    const { run, now, memfd } = setUp();
    expect(run((current) => fallocate(current, memfd, 0, 2n ** 62n, 1n))).toBe('EFBIG');
    expect(now((current) => ftruncate(current, memfd, 2n ** 62n))).toBe('EFBIG');
  });
});

describe('descriptors', () => {
  it('are the lowest free number, and dup does not inherit close-on-exec', () => {
    const { run, event } = setUp();
    const copy = run((current) => dup(current, event));
    expect(copy).toBe(event + 3);
    expect(run((current) => fcntl(current, event, F.GETFD, 0))).toBe(FD_CLOEXEC);
    expect(run((current) => fcntl(current, event + 3, F.GETFD, 0))).toBe(0);
    run((current) => close(current, event));
    expect(run((current) => dup(current, event + 3))).toBe(event);
  });

  it('can be asked for from a number on', () => {
    const { run, event } = setUp();
    expect(run((current) => fcntl(current, event, F.DUPFD_CLOEXEC, 100))).toBe(100);
    expect(run((current) => fcntl(current, event, F.DUPFD, 100))).toBe(101);
    expect(run((current) => fcntl(current, event, F.DUPFD, -1))).toBe('EINVAL');
    expect(run((current) => fcntl(current, event, F.DUPFD, 1_000_000))).toBe('EINVAL');
    expect(run((current) => fcntl(current, event, 12345, 0))).toBe('EINVAL');
  });

  it('share the file: its flags and its release', () => {
    const { run, process, event } = setUp();
    run((current) => dup(current, event));
    run((current) => fcntl(current, event, F.SETFL, 0));
    expect(run((current) => fcntl(current, event + 3, F.GETFL, 0))).toBe(OPEN.RDWR);
    const file = process.files.lookup(event);
    run((current) => close(current, event));
    expect(file?.get()).toBe(file);
  });

  it('reach another process by sendFd, unless it is gone', () => {
    const { run, event, process } = setUp();
    const receiver = new Process(101, null);
    const fd = run((current) => sendFd(current, event, receiver));
    expect(fd).toBe(3);
    expect(receiver.files.lookup(3)).toBe(process.files.lookup(event));
    receiver.state = { kind: 'exited' };
    expect(run((current) => sendFd(current, event, receiver))).toBe('ESRCH');
  });
});

describe('ioctl', () => {
  const word = (value: number) => ({ value: 0n, user: { copyIn: () => Uint8Array.of(value, 0, 0, 0), copyOut: () => null } });

  it('is ENOTTY to a file without any', () => {
    const { run, event } = setUp();
    expect(run((current) => ioctl(current, event, 0xae00, word(0)))).toBe('ENOTTY');
  });

  it('knows FIOCLEX and FIONBIO for every file', () => {
    const { run, event } = setUp();
    const copy = run((current) => dup(current, event));
    if (typeof copy !== 'number') throw new Error('no descriptor');
    run((current) => ioctl(current, copy, FIOCLEX, word(0)));
    expect(run((current) => fcntl(current, copy, F.GETFD, 0))).toBe(FD_CLOEXEC);
    run((current) => ioctl(current, copy, FIONBIO, word(0)));
    expect(run((current) => fcntl(current, event, F.GETFL, 0))).toBe(OPEN.RDWR);
  });
});
