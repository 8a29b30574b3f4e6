import { MADV, MAP, PROT } from '../../../server/kernel/uapi/mman.js';
import type { Executor } from '../executor.js';
import { type OpArgs, toHex } from '../op-args.js';
import { finish, type Operation, type OpResult } from '../operation.js';
import { failedWith, type TouchOutcome } from '../system-calls.js';

const READ_MAX = 65_536;

const protection = (text: string): number => (text.includes('r') ? PROT.READ : 0) | (text.includes('w') ? PROT.WRITE : 0);

/** An address in the mapping that `map` names; 0 if there is none. */
const mapAddress = ({ handles }: Executor, args: OpArgs): bigint => {
  const map = handles.find(args.text('map'))?.map;
  return map === undefined ? 0n : map.address + args.u64('off');
};

const mapLength = ({ handles }: Executor, args: OpArgs): bigint =>
  args.u64('len', handles.find(args.text('map'))?.map?.length ?? 0);

const mmap: Operation = async ({ calls, handles }, args) => {
  const length = args.number('size', 4096);
  const anonymous = args.has('fd') ? 0 : MAP.ANONYMOUS;
  const mapped = await calls.mmap({
    length: BigInt(length),
    prot: protection(args.text('prot', 'rw')),
    flags: (args.truthy('private') ? MAP.PRIVATE : MAP.SHARED) | anonymous | MAP.NORESERVE,
    fd: args.has('fd') ? args.descriptor('fd') : -1,
    offset: args.u64('off'),
  });
  if (mapped.errno !== null) return finish(mapped);
  handles.define(args.text('as', '_m')).map = { address: mapped.ret, length };
  return { ret: 0, errno: null };
};

const touchResult = (touch: TouchOutcome): OpResult =>
  touch.signal === null ? { ret: 0, errno: null } : { ret: -1, errno: 'EFAULT', signal: touch.signal };

const writeMem: Operation = async (executor, args) => {
  const address = mapAddress(executor, args);
  if (address === 0n) return finish(failedWith('EINVAL'));
  const bytes = args.bytes('data');
  const repeat = args.has('repeat') ? args.number('repeat', 1) : 1;
  const all = new Uint8Array(bytes.length * repeat);
  for (let index = 0; index < repeat; index++) all.set(bytes, index * bytes.length);
  return touchResult(await executor.calls.store(address, all));
};

const readMem: Operation = async (executor, args) => {
  const address = mapAddress(executor, args);
  if (address === 0n) return finish(failedWith('EINVAL'));
  const touch = await executor.calls.load(address, Math.min(args.number('len', 16), READ_MAX));
  return touch.signal === null ? { ...touchResult(touch), data: toHex(touch.data) } : touchResult(touch);
};

/** Maps a descriptor as it is, perhaps touches it, and drops the mapping. */
const mmapFd: Operation = async ({ calls }, args) => {
  const length = args.u64('size', 4096);
  const mapped = await calls.mmap({
    length,
    prot: args.number('prot', PROT.READ | PROT.WRITE),
    flags: args.truthy('private') ? MAP.PRIVATE : MAP.SHARED,
    fd: args.fd,
    offset: args.u64('off'),
  });
  if (mapped.errno !== null) return finish(mapped);
  const touched: OpResult = args.has('touch')
    ? { touch: (await calls.load(mapped.ret + args.u64('touch'), 1)).signal ?? 'ok' }
    : {};
  await calls.munmap(mapped.ret, length);
  return { ret: 0, errno: null, ...touched };
};

/** Ops on the memory of the script's process. */
export const MEMORY_OPS: Readonly<Record<string, Operation>> = {
  mmap,
  munmap: async (executor, args) => finish(await executor.calls.munmap(mapAddress(executor, args), mapLength(executor, args))),
  mprotect: async (executor, args) =>
    finish(await executor.calls.mprotect(mapAddress(executor, args), mapLength(executor, args), protection(args.text('prot')))),
  madvise: async (executor, args) =>
    finish(
      await executor.calls.madvise(mapAddress(executor, args), mapLength(executor, args), args.number('advice', MADV.DONTNEED)),
    ),
  write_mem: writeMem,
  read_mem: readMem,
  mmap_fd: mmapFd,
};
