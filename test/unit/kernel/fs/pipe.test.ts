import { describe, expect, it } from 'vitest';
import { OPEN, POLL } from '../../../../server/kernel/fs/file.js';
import { createPipe } from '../../../../server/kernel/fs/pipe.js';
import { read, write } from '../../../../server/kernel/syscalls/io.js';
import { createTestProcess, errnoOf } from '../run-task.js';

const CAPACITY = 65_536;

const setUp = (status = 0) => {
  const test = createTestProcess();
  const { reader, writer } = createPipe(9, status);
  const { files } = test.process;
  const from = files.install(reader, true);
  const to = files.install(writer, true);
  if (typeof from !== 'number' || typeof to !== 'number') throw new Error('no descriptors');
  const close = (fd: number) =>
    test.call(function* body(current) {
      return (yield* files.close(current, fd)) ?? 0;
    });
  return {
    ...test,
    reader,
    writer,
    startRead: (length: number) => test.start((current) => read(current, from, length)),
    startWrite: (bytes: Uint8Array) => test.start((current) => write(current, to, bytes)),
    read: (length: number) => errnoOf(test.call((current) => read(current, from, length))),
    write: (bytes: Uint8Array) => errnoOf(test.call((current) => write(current, to, bytes))),
    closeReader: () => close(from),
    closeWriter: () => close(to),
    wrongWay: () => [
      errnoOf(test.call((current) => read(current, to, 1))),
      errnoOf(test.call((current) => write(current, from, new Uint8Array(1)))),
    ],
  };
};

describe('a pipe', () => {
  it('hands bytes over in order, in whatever portions they are read', () => {
    const pipe = setUp();
    pipe.write(Uint8Array.of(1, 2, 3));
    pipe.write(Uint8Array.of(4));
    expect(pipe.read(2)).toEqual(Uint8Array.of(1, 2));
    expect(pipe.read(8)).toEqual(Uint8Array.of(3, 4));
  });

  it('goes one way', () => {
    expect(setUp().wrongWay()).toEqual(['EBADF', 'EBADF']);
  });

  it('makes a reader wait for bytes, and ends when the writers are gone', () => {
    const pipe = setUp();
    const first = pipe.startRead(4);
    expect(first.result).toBeUndefined();
    pipe.write(Uint8Array.of(5));
    expect(first.result).toEqual(Uint8Array.of(5));
    const second = pipe.startRead(4);
    pipe.closeWriter();
    expect(second.result).toEqual(new Uint8Array(0));
    expect(pipe.reader.ops.poll?.()).toBe(POLL.HUP);
  });

  it('makes a writer wait for room, and does not tear a short write apart', () => {
    const pipe = setUp();
    pipe.write(new Uint8Array(CAPACITY - 1));
    const writer = pipe.startWrite(Uint8Array.of(1, 2));
    pipe.scheduler.run();
    expect(writer.result).toBeUndefined();
    pipe.read(1);
    expect(writer.result).toBe(2);
  });

  it('answers EAGAIN where it would wait, or says how much it has taken', () => {
    const pipe = setUp(OPEN.NONBLOCK);
    expect(pipe.read(1)).toBe('EAGAIN');
    expect(pipe.write(new Uint8Array(CAPACITY + 10))).toBe(CAPACITY);
    expect(pipe.write(Uint8Array.of(1))).toBe('EAGAIN');
  });

  it('without a reader is EPIPE', () => {
    const pipe = setUp();
    pipe.closeReader();
    expect(pipe.write(Uint8Array.of(1))).toBe('EPIPE');
    expect((pipe.writer.ops.poll?.() ?? 0) & POLL.ERR).toBe(POLL.ERR);
  });
});
