import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { failed } from '../../../../server/kernel/failure.js';
import { SEEK } from '../../../../server/kernel/fs/file.js';
import { createMemFd, MemFd } from '../../../../server/kernel/fs/memfd.js';
import { FALLOC_FL } from '../../../../server/kernel/uapi/falloc.js';
import { createTestProcess, errnoOf } from '../run-task.js';

const PAGE = 4096;

const setUp = () => {
  const test = createTestProcess();
  const file = createMemFd('ram', 0, 7, test.pages);
  if (failed(file) || !(file.ops instanceof MemFd)) throw new Error('no memfd');
  const { ops } = file;
  const { task } = test.start(function* none() {});
  const write = (offset: number, bytes: Uint8Array) => ops.pwrite(task, bytes, offset);
  const read = (offset: number, length: number) => ops.pread(task, length, offset);
  const fallocate = (mode: number, offset: number, length: number) =>
    errnoOf(
      test.call(function* body(current) {
        return (yield* ops.fallocate(current, mode, offset, length)) ?? 0;
      }),
    );
  return { ...test, file, ops, task, write, read, fallocate };
};

describe('memfd_create', () => {
  it('refuses huge pages, contradictory flags and a long name', () => {
    const { pages } = createTestProcess();
    for (const flags of [0x4, 0x18, 0x100]) expect(errnoOf(createMemFd('x', flags, 1, pages))).toBe('EINVAL');
    expect(errnoOf(createMemFd('x'.repeat(250), 0, 1, pages))).toBe('EINVAL');
  });
});

describe('a memfd', () => {
  it('reads what was written, wherever page borders lie, and zeros in holes', () => {
    fc.assert(
      fc.property(
        fc.array(fc.record({ offset: fc.nat(3 * PAGE), bytes: fc.uint8Array({ minLength: 1, maxLength: 2 * PAGE }) }), {
          maxLength: 6,
        }),
        (writes) => {
          const { write, read, ops } = setUp();
          const model = new Uint8Array(8 * PAGE);
          let size = 0;
          for (const { offset, bytes } of writes) {
            write(offset, bytes);
            model.set(bytes, offset);
            size = Math.max(size, offset + bytes.length);
          }
          expect(ops.stat().size).toBe(size);
          expect(Buffer.compare(read(0, 8 * PAGE), model.subarray(0, size))).toBe(0);
        },
      ),
    );
  });

  it('counts only the pages that were touched', () => {
    const { write, ops, task } = setUp();
    ops.ftruncate(task, 100 * PAGE);
    expect(ops.stat().blocks).toBe(0);
    write(50 * PAGE, Uint8Array.of(1));
    expect(ops.stat().blocks).toBe(8);
  });

  it('gives its memory back with the last reference', () => {
    const { write, call, file, dram } = setUp();
    write(0, new Uint8Array(3 * PAGE).fill(1));
    expect(dram.used).toBe(3);
    call(function* put(current) {
      yield* file.put(current);
      return true;
    });
    expect(dram.used).toBe(0);
  });

  it('punches whole pages out and zeroes the rest of a range', () => {
    const { write, read, ops, fallocate } = setUp();
    write(0, new Uint8Array(4 * PAGE).fill(7));
    expect(fallocate(FALLOC_FL.PUNCH_HOLE | FALLOC_FL.KEEP_SIZE, PAGE - 1, 2 * PAGE + 2)).toBe(0);
    expect(ops.stat()).toMatchObject({ size: 4 * PAGE, blocks: 16 });
    const all = read(0, 4 * PAGE);
    expect(all.indexOf(0)).toBe(PAGE - 1);
    expect(all.lastIndexOf(0)).toBe(3 * PAGE);
  });

  it('punches a hole inside one page', () => {
    const { write, read, fallocate } = setUp();
    write(0, new Uint8Array(8).fill(7));
    fallocate(FALLOC_FL.PUNCH_HOLE | FALLOC_FL.KEEP_SIZE, 2, 3);
    expect([...read(0, 8)]).toEqual([7, 7, 0, 0, 0, 7, 7, 7]);
  });

  it('allocates with or without growing, and knows no other mode', () => {
    const { ops, fallocate } = setUp();
    fallocate(FALLOC_FL.KEEP_SIZE, 0, PAGE);
    expect(ops.stat()).toMatchObject({ size: 0, blocks: 8 });
    fallocate(0, 0, PAGE + 1);
    expect(ops.stat()).toMatchObject({ size: PAGE + 1, blocks: 16 });
    expect(fallocate(FALLOC_FL.ZERO_RANGE, 0, PAGE)).toBe('EOPNOTSUPP');
  });

  it('forgets what lies behind its new end', () => {
    const { write, read, ops, task } = setUp();
    write(0, new Uint8Array(2 * PAGE).fill(7));
    ops.ftruncate(task, 10);
    ops.ftruncate(task, 2 * PAGE);
    expect(read(0, 2 * PAGE).lastIndexOf(7)).toBe(9);
  });

  it('finds data and holes', () => {
    const { write, ops, file, task } = setUp();
    ops.ftruncate(task, 4 * PAGE);
    write(2 * PAGE, Uint8Array.of(1));
    const seek = (offset: number, whence: number) => errnoOf(ops.llseek(file, offset, whence));
    expect(seek(0, SEEK.DATA)).toBe(2 * PAGE);
    expect(seek(2 * PAGE, SEEK.HOLE)).toBe(3 * PAGE);
    expect(seek(3 * PAGE, SEEK.DATA)).toBe('ENXIO');
    expect(seek(4 * PAGE, SEEK.HOLE)).toBe('ENXIO');
    expect(seek(-1, SEEK.END)).toBe(4 * PAGE - 1);
    expect(seek(-1, SEEK.SET)).toBe('EINVAL');
  });
});
