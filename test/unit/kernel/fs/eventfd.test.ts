import { describe, expect, it } from 'vitest';
import { failed } from '../../../../server/kernel/failure.js';
import { createEventFd, EFD_SEMAPHORE, EventFd } from '../../../../server/kernel/fs/eventfd.js';
import { type File, OPEN, POLL } from '../../../../server/kernel/fs/file.js';
import { createTestProcess, errnoOf } from '../run-task.js';

const FULL = 2n ** 64n - 1n;
const SIGUSR1 = 10;

const word = (value: bigint): Uint8Array => {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value, true);
  return bytes;
};

const setUp = (initial = 0, flags = 0) => {
  const file = createEventFd(initial, flags);
  if (failed(file) || !(file.ops instanceof EventFd)) throw new Error('no eventfd');
  const { ops } = file;
  const test = createTestProcess();
  const startRead = () => test.start((current) => ops.read(current, file, 8));
  const read = (length = 8): bigint | string => {
    const result = test.call((current) => ops.read(current, file, length));
    return failed(result) ? result.errno : new DataView(result.buffer).getBigUint64(0, true);
  };
  const startWrite = (value: bigint) => test.start((current) => ops.write(current, file, word(value)));
  const write = (value: bigint) => errnoOf(test.call((current) => ops.write(current, file, word(value))));
  return { ...test, file: file satisfies File, ops, read, write, startRead, startWrite };
};

describe('eventfd2', () => {
  it('refuses unknown flags', () => {
    expect(errnoOf(createEventFd(0, 2))).toBe('EINVAL');
  });
});

describe('a read', () => {
  it('takes the whole count, or one from a semaphore', () => {
    expect(setUp(5).read()).toBe(5n);
    const semaphore = setUp(2, EFD_SEMAPHORE | OPEN.NONBLOCK);
    expect([semaphore.read(), semaphore.read(), semaphore.read()]).toEqual([1n, 1n, 'EAGAIN']);
  });

  it('refuses a buffer below 8 bytes and leaves the count', () => {
    const { read } = setUp(3);
    expect(read(7)).toBe('EINVAL');
    expect(read(16)).toBe(3n);
  });

  it('of an empty counter waits for a signal of the kernel or a write', () => {
    const { startRead, ops, scheduler } = setUp();
    const reader = startRead();
    expect(reader.result).toBeUndefined();
    ops.signal();
    scheduler.run();
    expect(reader.result).toEqual(word(1n));
  });

  it('ends with EINTR when a signal comes', () => {
    const { startRead, scheduler } = setUp();
    const reader = startRead();
    reader.task.signal(SIGUSR1);
    scheduler.run();
    expect(errnoOf(reader.result)).toBe('EINTR');
  });
});

describe('a write', () => {
  it('adds up to 2^64-2, refuses 2^64-1, and waits while it would overflow', () => {
    const { write, startWrite, read, scheduler } = setUp();
    expect(write(FULL)).toBe('EINVAL');
    expect(write(FULL - 1n)).toBe(8);
    const writer = startWrite(1n);
    expect(writer.result).toBeUndefined();
    expect(read()).toBe(FULL - 1n);
    scheduler.run();
    expect(writer.result).toBe(8);
    expect(read()).toBe(1n);
  });

  it('of a full counter is EAGAIN without blocking', () => {
    const { write } = setUp(0, OPEN.NONBLOCK);
    write(FULL - 1n);
    expect(write(1n)).toBe('EAGAIN');
    expect(write(0n)).toBe(8);
  });

  it('takes exactly 8 bytes', () => {
    const { call, ops, file } = setUp();
    expect(errnoOf(call((current) => ops.write(current, file, new Uint8Array(16))))).toBe('EINVAL');
  });
});

describe('poll', () => {
  it('shows what a read and a write would find', () => {
    const { ops, write } = setUp();
    expect(ops.poll()).toBe(POLL.OUT);
    write(1n);
    expect(ops.poll()).toBe(POLL.IN | POLL.OUT);
    write(FULL - 2n);
    expect(ops.poll()).toBe(POLL.IN);
    ops.signal();
    expect(ops.poll()).toBe(POLL.IN | POLL.ERR);
    ops.signal();
    expect(ops.value).toBe(FULL);
  });
});

describe('a callback in the queue', () => {
  it('that is exclusive and takes the count keeps the wake-up from readers', () => {
    const { ops, startRead, scheduler } = setUp();
    const reader = startRead();
    const taken: bigint[] = [];
    const remove = ops.queue.addCallback((events) => (events & POLL.IN) !== 0 && taken.push(ops.take()) > 0, true);
    ops.signal();
    scheduler.run();
    expect(taken).toEqual([1n]);
    expect(reader.result).toBeUndefined();
    remove();
    ops.signal();
    scheduler.run();
    expect(reader.result).toEqual(word(1n));
  });

  it('is told apart from a count that shrinks, and told when the last reference to the file goes', () => {
    const { ops, file, read, call } = setUp(1);
    const seen: number[] = [];
    ops.queue.addCallback((events) => seen.push(events) < 0, false);
    read();
    expect(seen).toEqual([POLL.OUT]);
    call(function* put(current) {
      yield* file.put(current);
      return true;
    });
    expect(seen).toEqual([POLL.OUT, POLL.HUP]);
    ops.signal();
    expect(ops.value).toBe(1n);
  });
});
