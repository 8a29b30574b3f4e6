import { IOCTLS } from '../../../server/kernel/uapi/ioctls.js';
import type { OpArgs } from '../op-args.js';
import { toHex } from '../op-args.js';
import { finish, hex, type Operation } from '../operation.js';

const BUFFER = 65_536;
const SHOWN_MAX = 4096;

/** Requests of the header that no x86 kernel of today knows. */
const FOREIGN_REQUESTS: Readonly<Record<string, number>> = {
  KVM_ASSIGN_SET_MSIX_NR: 0x4008_ae73,
  KVM_S390_INITIAL_RESET: 0xae97,
};

/** A request by its name or number; null: a name that is none. */
const requestOf = (args: OpArgs): number | null => {
  const name = args.text('req');
  if (!name.startsWith('K')) return Number(args.u64('req') & 0xffff_ffffn);
  return IOCTLS.get(name)?.request ?? FOREIGN_REQUESTS[name] ?? null;
};

/** `arg`: used as it is; else `data` at the start of a buffer of 64 KiB, of which `show` bytes are shown afterwards. */
const ioctlRaw: Operation = async (executor, args) => {
  const request = requestOf(args);
  if (request === null) return { ret: null, errno: 'UNKNOWN_REQUEST_NAME' };
  const { calls, arena } = executor;
  const buffer = args.has('arg') ? null : await arena.place(withSize(args.bytes('data'), BUFFER));
  const outcome = await calls.ioctl(args.fd, request, buffer ?? args.address('arg'));
  const answer = args.has('as') ? await executor.finishFd(outcome, args) : finish(outcome);
  if (buffer === null || !args.has('show')) return answer;
  return { ...answer, out: toHex(await arena.read(buffer, Math.min(args.number('show'), SHOWN_MAX))) };
};

const withSize = (bytes: Uint8Array, size: number): Uint8Array => {
  const buffer = new Uint8Array(size);
  buffer.set(bytes.subarray(0, size));
  return buffer;
};

/** Ioctls by number. */
export const RAW_OPS: Readonly<Record<string, Operation>> = {
  ioctl_raw: ioctlRaw,
  ioctl_number: async (_executor, args) => ({ ret: 0, errno: null, number: hex(requestOf(args) ?? 0) }),
};
