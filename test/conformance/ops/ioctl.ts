import type { Executor } from '../executor.js';
import type { OpArgs } from '../op-args.js';
import { finish, type Operation, type OpResult } from '../operation.js';
import type { Outcome } from '../system-calls.js';

/** An ioctl with a structure: how it ended, and the structure's bytes afterwards. */
export const ioctlInOut = async (
  { calls, arena }: Executor,
  fd: number,
  request: number,
  bytes: Uint8Array,
): Promise<{ readonly outcome: Outcome; readonly data: Uint8Array }> => {
  const address = await arena.place(bytes);
  const outcome = await calls.ioctl(fd, request, address);
  return { outcome, data: await arena.read(address, bytes.length) };
};

/** An ioctl that only reads its structure. */
export const ioctlIn = async ({ calls, arena }: Executor, fd: number, request: number, bytes: Uint8Array): Promise<OpResult> =>
  finish(await calls.ioctl(fd, request, await arena.place(bytes)));

/** An op that is an ioctl with a value taken from one field. */
export const valueOp =
  (request: number, field?: string): Operation =>
  async ({ calls }, args) =>
    finish(await calls.ioctl(args.fd, request, field === undefined ? 0n : args.u64(field)));

/** Repeats `step` for 0 to count - 1 until one fails; `key` says how many were done. */
export const repeated = async (args: OpArgs, key: string, step: (index: number) => Promise<Outcome>): Promise<OpResult> => {
  const count = args.number('count', 1);
  for (let index = 0; index < count; index++) {
    const outcome = await step(index);
    if (outcome.errno !== null) return { ...finish(outcome), [key]: index };
  }
  return { ret: 0, errno: null, [key]: count };
};
