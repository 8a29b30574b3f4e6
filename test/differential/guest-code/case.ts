import { Random } from '../random.js';
import { generateInstruction } from './instructions.js';
import { LAYOUT, MODES, type Mode } from './layout.js';

/** What a machine starts with. */
export interface GuestCase {
  readonly mode: Mode;
  /** In the order of their numbers: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15. */
  readonly registers: readonly bigint[];
  readonly rflags: bigint;
  readonly instructions: readonly Uint8Array[];
  /** Seed of what lies in data and stack. */
  readonly data: number;
}

const INSTRUCTIONS_MAX = 4;
const ARITHMETIC_FLAGS = 0x8d5n;
const DIRECTION = 0x400n;
const RSP = 4;

const interesting = (random: Random): bigint => {
  switch (random.below(8)) {
    case 0:
      return 0n;
    case 1:
      return BigInt.asUintN(64, -1n);
    case 2:
      return BigInt(random.below(256));
    case 3:
      return 1n << BigInt(random.below(64));
    case 4:
      return (1n << BigInt(random.below(64))) - 1n;
    case 5:
      return BigInt(random.u32());
    default:
      return random.u64();
  }
};

/** Something near the middle of the data, from where a displacement or a string reaches neither end. */
const pointer = (random: Random): bigint => BigInt(LAYOUT.data + 0x100 + random.below(0xe00));

export const generateCase = (seed: number): GuestCase => {
  const random = new Random(seed);
  const mode = random.pick(MODES);
  const registers = Array.from({ length: 16 }, () => (random.chance(0.5) ? pointer(random) : interesting(random)));
  registers[RSP] = BigInt(LAYOUT.stackTop - 8 * random.below(16));
  // A count that a repeated string instruction comes to the end of.
  if (random.chance(0.7)) registers[1] = BigInt(random.below(24));
  const rflags = 2n | (random.u64() & ARITHMETIC_FLAGS) | (random.chance(0.2) ? DIRECTION : 0n);
  const count = 1 + random.below(INSTRUCTIONS_MAX);
  const instructions = Array.from({ length: count }, () => generateInstruction(random, mode));
  return { mode, registers, rflags, instructions, data: random.u32() };
};

/** The bytes that data and stack begin with. */
export const caseData = ({ data }: GuestCase): Uint8Array => {
  const random = new Random(data);
  return new Uint8Array(
    Uint32Array.from({ length: LAYOUT.dataBytes / 4 }, () => (random.chance(0.5) ? random.u32() : random.below(256))).buffer,
  );
};

/** For people. */
export const describeCase = ({ mode, registers, rflags, instructions, data }: GuestCase): string =>
  [
    `${mode}: ${instructions.map((bytes) => Buffer.from(bytes).toString('hex')).join(' ')}`,
    `rflags 0x${rflags.toString(16)}, data ${data}, registers ${registers.map((value) => value.toString(16)).join(' ')}`,
  ].join('\n');
