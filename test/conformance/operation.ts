import type { Executor } from './executor.js';
import type { Json } from './json.js';
import type { OpArgs } from './op-args.js';
import type { Outcome } from './system-calls.js';

/** The output fields of an op. */
export type OpResult = Record<string, Json>;

/** One operation of the protocol. */
export type Operation = (executor: Executor, args: OpArgs) => Promise<OpResult>;

/** The plain answer: return value and errno. */
export const finish = ({ ret, errno }: Outcome): OpResult => ({
  ret: ret > BigInt(Number.MAX_SAFE_INTEGER) ? ret : Number(ret),
  errno,
});

/** `K_HEX` of the protocol: registers, addresses and masks. */
export const hex = (value: bigint | number): string => `0x${value.toString(16)}`;
