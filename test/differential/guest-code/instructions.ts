import type { Random } from '../random.js';
import { LAYOUT, type Mode } from './layout.js';

/** How the bytes behind an opcode are made. */
type Form =
  | 'none'
  | 'imm8'
  | 'imm'
  | 'return'
  | 'near'
  | 'short'
  | 'moffs'
  | 'far'
  | 'modrm'
  | 'group3'
  | 'modrm+imm8'
  | 'modrm+imm'
  | 'memory'
  | 'enter'
  | 'mov-segment';

interface Opcode {
  readonly bytes: readonly number[];
  readonly form: Form;
}

const one = (form: Form, ...opcodes: readonly number[]): Opcode[] => opcodes.map((byte) => ({ bytes: [byte], form }));
const two = (form: Form, ...opcodes: readonly number[]): Opcode[] => opcodes.map((byte) => ({ bytes: [0x0f, byte], form }));
const range = (first: number, count: number): number[] => Array.from({ length: count }, (_, index) => first + index);

const ARITHMETIC = [0x00, 0x08, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38] as const;

/** Opcodes of every mode, the more frequent ones of a compiler's code more than once. */
const COMMON: readonly Opcode[] = [
  ...ARITHMETIC.flatMap((base) => [...one('modrm', ...range(base, 4)), ...one('imm8', base + 4), ...one('imm', base + 5)]),
  ...one('none', ...range(0x50, 16), ...range(0x90, 8), 0x98, 0x99, 0x9b, 0x9c, 0x9d, 0x9e, 0x9f),
  ...one('modrm', 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b),
  ...one('memory', 0x8d),
  ...one('modrm+imm', 0x69, 0x81, 0xc7),
  ...one('modrm+imm8', 0x6b, 0x80, 0x83, 0xc0, 0xc1, 0xc6),
  ...one('modrm', 0xd0, 0xd1, 0xd2, 0xd3, 0xd0, 0xd1, 0xd2, 0xd3, 0xfe, 0xff, 0x8f),
  ...one('group3', 0xf6, 0xf7, 0xf6, 0xf7),
  ...one('imm8', 0xa8, 0x6a, ...range(0xb0, 8)),
  ...one('imm', 0xa9, 0x68, ...range(0xb8, 8)),
  ...one('none', 0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf, 0xc9, 0xcf, 0xd7, 0xcc),
  ...one('none', 0xf5, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd),
  ...one('return', 0xc3),
  ...one('short', ...range(0x70, 16), 0xe0, 0xe1, 0xe2, 0xe3, 0xeb),
  ...one('near', 0xe8, 0xe9),
  ...one('moffs', 0xa0, 0xa1, 0xa2, 0xa3),
  ...one('mov-segment', 0x8c, 0x8e),
  ...one('enter', 0xc8),
  ...one('imm8', 0xcd, 0xe4, 0xe5, 0xe6, 0xe7),
  ...one('none', 0x6c, 0x6d, 0x6e, 0x6f, 0xec, 0xed, 0xee, 0xef),
  ...two('modrm', ...range(0x40, 16), ...range(0x90, 16)),
  ...two('near', ...range(0x80, 16)),
  ...two('modrm', 0xa3, 0xab, 0xb3, 0xbb, 0xa5, 0xad, 0xaf, 0xb0, 0xb1, 0xb6, 0xb7, 0xbe, 0xbf, 0xbc, 0xbd, 0xc0, 0xc1),
  ...two('modrm+imm8', 0xa4, 0xac, 0xba, 0xba),
  ...two('memory', 0xc7, 0xc3),
  ...two('none', ...range(0xc8, 8), 0xa0, 0xa1, 0xa8, 0xa9, 0x06, 0x0b),
  ...two('modrm', 0x1f),
];

/** Opcodes that 64-bit mode has not. */
const LEGACY: readonly Opcode[] = [
  ...one('none', 0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0xce, 0xd6),
  ...one('none', ...range(0x40, 16)),
  ...one('imm8', 0xd4, 0xd5),
  ...one('far', 0x9a, 0xea),
  ...one('memory', 0x62, 0xc4, 0xc5),
];

/** What 64-bit mode has instead. */
const LONG: readonly Opcode[] = [...one('modrm', 0x63)];

const OPERAND_SIZE = 0x66;
const ADDRESS_SIZE = 0x67;
const SEGMENT_PREFIXES = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65] as const;
const REPEAT_PREFIXES = [0xf2, 0xf3] as const;
const LOCK = 0xf0;
const PUSH = 0x68;
const RET = 0xc3;
/** A branch that is taken ends in the HLTs behind the code. */
const BRANCH_DISTANCE = 0x60;
const STRINGS: ReadonlySet<number> = new Set([
  0x6c, 0x6d, 0x6e, 0x6f, 0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf,
]);
/** The indirect CALL and JMP. */
const OTHER_NEAR_BRANCHES: ReadonlySet<number> = new Set([0xff]);

const littleEndian = (value: number, bytes: number): number[] =>
  Array.from({ length: bytes }, (_, index) => Math.floor(value / 2 ** (8 * index)) % 256);

interface Encoding {
  readonly random: Random;
  readonly mode: Mode;
  /** 2, 4 or 8. */
  readonly operandBytes: number;
  readonly addressBytes: number;
}

const immediate = ({ random, operandBytes }: Encoding): number[] => {
  const bytes = Math.min(4, operandBytes);
  return littleEndian(random.chance(0.5) ? random.below(256) : random.u32(), bytes);
};

/** ModRM, SIB and displacement. Most memory operands that need no register point into the data. */
const modrm = (encoding: Encoding, memoryOnly: boolean): number[] => {
  const { random, addressBytes } = encoding;
  const reg = random.below(8);
  const mod = random.chance(0.4) && !memoryOnly ? 3 : random.below(3);
  const rm = random.below(8);
  const first = (mod << 6) | (reg << 3) | rm;
  if (mod === 3) return [first];
  const displaced = addressBytes === 2 ? rm === 6 : rm === 5;
  const displacement =
    mod === 0
      ? displaced
        ? littleEndian(LAYOUT.data + random.below(LAYOUT.dataBytes), addressBytes === 2 ? 2 : 4)
        : []
      : littleEndian(random.below(mod === 1 ? 256 : 128), mod === 1 ? 1 : addressBytes === 2 ? 2 : 4);
  if (addressBytes === 2 || rm !== 4) return [first, ...displacement];
  const sib = random.below(256);
  const baseless = mod === 0 && (sib & 7) === 5 ? littleEndian(LAYOUT.data + random.below(0x800), 4) : displacement;
  return [first, sib, ...baseless];
};

/** NOT to IDIV, and TEST, which alone has an immediate: too seldom to be generated here. */
const group3 = (encoding: Encoding): number[] => {
  const [first = 0, ...rest] = modrm(encoding, false);
  return [(first & ~0x38) | (encoding.random.pick([2, 3, 4, 5, 6, 7]) << 3), ...rest];
};

/** ModRM of a segment register other than CS, which cannot be loaded, and with no number that is none. */
const segmentOperand = (encoding: Encoding): number[] => {
  const [first = 0, ...rest] = modrm(encoding, encoding.random.chance(0.7));
  return [(first & ~0x38) | (encoding.random.pick([0, 2, 3, 4, 5]) << 3), ...rest];
};

const operands = (form: Form, encoding: Encoding): number[] => {
  const { random, operandBytes, addressBytes, mode } = encoding;
  switch (form) {
    case 'none':
      return [];
    case 'imm8':
      return [random.below(256)];
    case 'imm':
      return immediate(encoding);
    case 'return':
      return [];
    case 'short':
      return [BRANCH_DISTANCE];
    case 'near':
      return littleEndian(BRANCH_DISTANCE, mode === 'long' ? 4 : Math.min(4, operandBytes));
    case 'moffs':
      return littleEndian(LAYOUT.data + random.below(LAYOUT.dataBytes - 8), addressBytes);
    case 'far':
      return [
        ...littleEndian(LAYOUT.code + 0x800, Math.min(4, operandBytes)),
        ...littleEndian(random.pick([0x08, 0x08, 0x10, 0x18, 0x28, 0, 0x100]), 2),
      ];
    case 'enter':
      return [...littleEndian(random.below(64), 2), random.chance(0.8) ? 0 : random.below(4)];
    case 'modrm':
      return modrm(encoding, false);
    case 'group3':
      return group3(encoding);
    case 'modrm+imm8':
      return [...modrm(encoding, false), random.below(256)];
    case 'modrm+imm':
      return [...modrm(encoding, false), ...immediate(encoding)];
    case 'memory':
      return modrm(encoding, true);
    case 'mov-segment':
      return segmentOperand(encoding);
  }
};

/** A return address is pushed first: what else lies on the stack is no code. */
const returnTo = (mode: Mode): Uint8Array =>
  Uint8Array.from([PUSH, ...littleEndian(LAYOUT.code + 2 * BRANCH_DISTANCE, mode === 'real' ? 2 : 4), RET]);

/** One instruction as a program might have it: mostly a valid one, with prefixes now and then. */
export const generateInstruction = (random: Random, mode: Mode): Uint8Array => {
  const long = mode === 'long';
  const opcode = random.pick(random.chance(0.12) ? (long ? LONG : LEGACY) : COMMON);
  const wide = mode !== 'real';
  const [first = 0] = opcode.bytes;
  // MOVNTI takes no prefix that changes its operand size.
  const isMovnti = opcode.bytes[1] === 0xc3;
  const isBranch = opcode.form === 'near' || opcode.form === 'short' || OTHER_NEAR_BRANCHES.has(first);
  // A processor of AMD cuts a near branch with this prefix to 16 bits in 64-bit mode, one of Intel and the emulator do not.
  const operandPrefix = random.chance(wide ? 0.2 : 0.4) && !(long && isBranch) && !isMovnti;
  const addressPrefix = random.chance(wide ? 0.05 : 0.2);
  // Segment registers have three bits of number: what a fourth does differs from processor to processor.
  const rexMask = opcode.form === 'mov-segment' ? 0xb : 0xf;
  const rex = long && random.chance(0.5) ? 0x40 | (random.below(16) & rexMask) : 0;
  const operandBytes = (rex & 8) !== 0 ? 8 : operandPrefix === wide ? 2 : 4;
  const addressBytes = long ? (addressPrefix ? 4 : 8) : addressPrefix === wide ? 2 : 4;
  const isMovImmediate = opcode.bytes.length === 1 && first >= 0xb8 && first <= 0xbf;
  const encoding = { random, mode, operandBytes, addressBytes };
  if (opcode.form === 'return') return returnTo(mode);
  const tail = isMovImmediate && operandBytes === 8 ? littleEndian(random.u32(), 8) : operands(opcode.form, encoding);
  return Uint8Array.from([
    ...(random.chance(0.05) ? [random.pick(SEGMENT_PREFIXES)] : []),
    ...(STRINGS.has(first) && random.chance(0.5) ? [random.pick(REPEAT_PREFIXES)] : []),
    ...(random.chance(0.03) ? [LOCK] : []),
    ...(operandPrefix ? [OPERAND_SIZE] : []),
    ...(addressPrefix ? [ADDRESS_SIZE] : []),
    ...(rex !== 0 ? [rex] : []),
    ...opcode.bytes,
    ...tail,
  ]);
};
