import { F } from '../../../server/kernel/uapi/fcntl.js';
import { finish, hex, type Operation } from '../operation.js';

const O_NONBLOCK = 0o4000;
const O_CLOEXEC = 0o2000000;
const EFD_SEMAPHORE = 1;
const POLLIN = 0x01;
const POLLOUT = 0x04;
const POLLERR = 0x08;
const POLLHUP = 0x10;
const POLLNVAL = 0x20;
const S_IFMT = 0o170000;
const BUFFER = 4096;
const ACCESS = ['ro', 'wo', 'rw'] as const;
/** Counts from here on are shown in hex. */
const WIDE = 1n << 52n;

const length = (value: number): number => Math.min(value, BUFFER);
const signed = (value: bigint): bigint => BigInt.asIntN(64, value);

const eventfd: Operation = async (executor, args) => {
  const flags = O_CLOEXEC | (args.truthy('blocking') ? 0 : O_NONBLOCK) | (args.truthy('semaphore') ? EFD_SEMAPHORE : 0);
  return executor.finishFd(await executor.calls.eventfd(args.u32('init'), flags), args);
};

const eventfdRead: Operation = async ({ calls }, args) => {
  const read = await calls.read(args.fd, 8);
  if (read.ret !== 8n) return finish(read);
  const value = new DataView(read.data.buffer, read.data.byteOffset).getBigUint64(0, true);
  return { ...finish(read), value: value < WIDE ? Number(value) : hex(value) };
};

const eventfdWrite: Operation = async ({ calls }, args) => {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, args.u64('value', 1), true);
  return finish(await calls.write(args.fd, bytes));
};

const poll: Operation = async ({ calls }, args) => {
  const { revents, ...outcome } = await calls.poll(args.fd, POLLIN | POLLOUT, args.number('timeout_ms'));
  const has = (bit: number): boolean => (revents & bit) !== 0;
  return { ...finish(outcome), in: has(POLLIN), out: has(POLLOUT), hup: has(POLLHUP), err: has(POLLERR), nval: has(POLLNVAL) };
};

const pipe: Operation = async (executor, args) => {
  const made = await executor.calls.pipe(O_CLOEXEC | O_NONBLOCK);
  if (made.errno !== null) return finish(made);
  executor.handles.define(args.text('as_w', '_w')).fd = await executor.moveFd(made.writer);
  return executor.finishFd(made, args);
};

const fstat: Operation = async ({ calls }, args) => {
  const { stat, ...outcome } = await calls.fstat(args.fd);
  if (stat === null) return finish(outcome);
  return { ...finish(outcome), size: stat.size, blocks: stat.blocks, mode: stat.mode & S_IFMT, perm: stat.mode & 0o7777 };
};

const fcntlGetfl: Operation = async ({ calls }, args) => {
  const outcome = await calls.fcntl(args.fd, F.GETFL, 0);
  if (outcome.errno !== null) return finish(outcome);
  const flags = Number(outcome.ret);
  return { ret: 0, errno: null, access: ACCESS[flags & 3] ?? 'wo', nonblock: (flags & O_NONBLOCK) !== 0 };
};

const fdlink: Operation = async ({ calls }, args) => {
  const { link, ...outcome } = await calls.describe(args.fd);
  return outcome.errno === null ? { ret: 0, errno: null, link } : finish(outcome);
};

/** Ops on eventfds, pipes and descriptors of any kind. `read` and `write` are pread and pwrite. */
export const FILE_OPS: Readonly<Record<string, Operation>> = {
  close: async ({ calls }, args) => finish(await calls.close(args.descriptor('fd'))),
  dup: async (executor, args) => executor.finishFd(await executor.calls.dup(args.fd), args),
  eventfd,
  eventfd_read: eventfdRead,
  eventfd_write: eventfdWrite,
  poll,
  poll_in: async ({ calls }, args) => finish(await calls.poll(args.fd, POLLIN, args.number('timeout_ms'))),
  pipe,
  fallocate: async ({ calls }, args) =>
    finish(await calls.fallocate(args.fd, args.u32('mode'), signed(args.u64('off')), signed(args.u64('len')))),
  ftruncate: async ({ calls }, args) => finish(await calls.ftruncate(args.fd, signed(args.u64('len')))),
  fstat,
  read: async ({ calls }, args) => finish(await calls.pread(args.fd, length(args.number('len', 8)), signed(args.u64('off')))),
  plain_read: async ({ calls }, args) => finish(await calls.read(args.fd, length(args.number('len', 8)))),
  write: async ({ calls }, args) =>
    finish(await calls.pwrite(args.fd, new Uint8Array(length(args.number('len', 8))), signed(args.u64('off')))),
  lseek: async ({ calls }, args) => finish(await calls.lseek(args.fd, signed(args.u64('off')), args.number('whence'))),
  fcntl_getfl: fcntlGetfl,
  fdlink,
};
