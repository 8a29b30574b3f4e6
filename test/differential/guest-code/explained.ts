import type { GuestCase } from './case.js';
import { isLong, LAYOUT, type Mode, ramImage } from './layout.js';
import type { GuestOutcome } from './machine.js';

/** One thing in which a guest ended differently. */
export interface GuestDifference {
  readonly field: string;
  readonly real: string;
  readonly simulated: string;
}

export interface GuestAnswers {
  readonly guest: GuestCase;
  readonly real: GuestOutcome;
  readonly simulated: GuestOutcome;
  readonly differences: readonly GuestDifference[];
}

/** A difference of generated guest code that is known, with its reason. */
export interface GuestExplanation {
  readonly name: string;
  readonly reason: string;
  explains(answers: GuestAnswers): boolean;
}

const ALIGNMENT_CHECK = 1n << 18n;
const GENERAL_REGISTER = /^r([abcd]x|[sd]i|[sb]p|\d+)$/;
const STRINGS = [0x6c, 0x6d, 0x6e, 0x6f, 0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf] as const;
/** RET, RETF and IRET. */
const RETURNS = [0xc2, 0xc3, 0xca, 0xcb, 0xcf] as const;
/** CS and SS overrides. */
const CODE_SEGMENT = 0x2e;
const STACK_SEGMENT = 0x36;
const ACCESSED_AND_DIRTY = 0x60;
const ENTRY_BYTES = 8;
/** Where a case's code may lie. */
const CODE_BYTES = 0x200;
const TABLES_END = LAYOUT.pageTables + 4 * 0x1000;

/** A table differs from what it was in more than the bits that a walk sets, which are in the first byte of an entry. */
const hasOverwrittenTables = (guest: GuestCase, { ram }: GuestOutcome): boolean => {
  if (!isLong(guest.mode)) return false;
  const before = ramImage(guest.mode, new Uint8Array(0), new Uint8Array(0)).subarray(LAYOUT.pageTables, TABLES_END);
  const kept = (at: number): number => (at % ENTRY_BYTES === 0 ? ~ACCESSED_AND_DIRTY : ~0);
  return ram.subarray(LAYOUT.pageTables, TABLES_END).some((byte, at) => ((byte ^ (before[at] ?? 0)) & kept(at)) !== 0);
};

/** The IDT, or the GDT, is not what it was. */
const hasOverwrittenDescriptors = (guest: GuestCase, { ram }: GuestOutcome): boolean => {
  const before = ramImage(guest.mode, new Uint8Array(0), new Uint8Array(0));
  return Buffer.compare(ram.subarray(LAYOUT.gdt, LAYOUT.code), before.subarray(LAYOUT.gdt, LAYOUT.code)) !== 0;
};

/** The vectors of real mode are not what they were. */
const hasOverwrittenVectors = (guest: GuestCase, { ram }: GuestOutcome): boolean => {
  const before = ramImage(guest.mode, new Uint8Array(0), new Uint8Array(0));
  return Buffer.compare(ram.subarray(LAYOUT.ivt, LAYOUT.handlers), before.subarray(LAYOUT.ivt, LAYOUT.handlers)) !== 0;
};

/** RIP is in the code page or at a handler, and the code is what it was. */
const isAtHome = ({ instructions }: GuestCase, { registers: { rip }, ram }: GuestOutcome): boolean => {
  const code = Buffer.concat(instructions);
  const isIntact = Buffer.compare(ram.subarray(LAYOUT.code, LAYOUT.code + code.length), code) === 0;
  const isHandler = rip >= BigInt(LAYOUT.handlers) && rip <= BigInt(LAYOUT.handlers + 0x100);
  return isIntact && (isHandler || (rip >= BigInt(LAYOUT.code) && rip <= BigInt(LAYOUT.code + CODE_BYTES)));
};

const lower = (hex: string): bigint => BigInt.asUintN(32, BigInt(hex));
const PREFIXES: ReadonlySet<number> = new Set([0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3]);

/** Whether nothing else differs. RAM is named with the address. */
const only = (differences: readonly GuestDifference[], fields: readonly string[]): boolean =>
  differences.every(({ field }) => fields.includes(field.split(' ')[0] ?? field));

type GuestCode = Pick<GuestCase, 'mode' | 'instructions'>;

/** Opcode bytes of each instruction, without prefixes. */
const opcodes = ({ mode, instructions }: GuestCode): number[][] =>
  instructions.map((bytes) => {
    const isPrefix = (byte: number): boolean => PREFIXES.has(byte) || (mode === 'long' && (byte & 0xf0) === 0x40);
    const first = bytes.findIndex((byte) => !isPrefix(byte));
    return [...bytes.subarray(first, first + 2)];
  });

const uses = (guest: GuestCode, wanted: readonly number[]): boolean =>
  opcodes(guest).some(([first]) => first !== undefined && wanted.includes(first));
const hasRepeatPrefix = ({ instructions }: GuestCase): boolean =>
  instructions.some((bytes) => bytes.includes(0xf2) || bytes.includes(0xf3));

/** Opcodes behind 0F. */
const usesTwo = (guest: GuestCode, wanted: readonly number[]): boolean =>
  opcodes(guest).some(([first, second]) => first === 0x0f && second !== undefined && wanted.includes(second));

/** CALL and JMP through a register or through memory. */
const hasIndirectBranch = (guest: GuestCase): boolean =>
  opcodes(guest).some(([first, modrm = 0]) => first === 0xff && (((modrm >> 3) & 7) === 2 || ((modrm >> 3) & 7) === 4));

/** CALL and JMP through a far pointer in memory. */
const hasFarPointerBranch = (guest: GuestCase): boolean =>
  opcodes(guest).some(([first, modrm = 0]) => first === 0xff && (((modrm >> 3) & 7) === 3 || ((modrm >> 3) & 7) === 5));

/** A far JMP or CALL of real mode to where no code was generated. */
const hasFarBranchAway = ({ mode, instructions }: GuestCase): boolean =>
  mode === 'real' &&
  instructions.some((bytes) => {
    if (!uses({ mode, instructions: [bytes] }, [0x9a, 0xea])) return false;
    const { buffer, byteOffset, length } = bytes;
    const view = new DataView(buffer, byteOffset, length);
    const target = 16 * view.getUint16(length - 2, true) + view.getUint16(length - 4, true);
    return target < LAYOUT.code || target > LAYOUT.code + CODE_BYTES;
  });

/** A general register differs in its upper half. */
const isUpperHalf = ({ field, real, simulated }: GuestDifference): boolean =>
  GENERAL_REGISTER.test(field) && lower(real) === lower(simulated);

/** Those that say something: outside 64-bit mode the upper halves of registers hold anything. */
const withoutUpperHalves = ({ mode }: GuestCase, differences: readonly GuestDifference[]): readonly GuestDifference[] =>
  mode === 'long' ? differences : differences.filter((difference) => !isUpperHalf(difference));

/** Data segments that cannot be written: code, or data that is read-only. */
const hasReadOnlySegment = ({ sregs }: GuestOutcome): boolean =>
  [sregs.ds, sregs.es, sregs.fs, sregs.gs].some(({ type, present }) => present === 1 && ((type & 8) !== 0 || (type & 2) === 0));

const DEBUG_VECTOR = 1;
const DOUBLE_FAULT_VECTOR = 8;
/** From #TS to #PF: what is raised when an event cannot be delivered. */
const DELIVERY_FAULT_VECTORS = [10, 11, 12, 13, 14] as const;
/** The handler of a vector has run. */
const isAtHandler = ({ registers: { rip } }: GuestOutcome, vector: number): boolean =>
  rip === BigInt(LAYOUT.handlers + vector + 1);
const OPERAND_SIZE = 0x66;
const OVERFLOW = 1n << 11n;
const RESUME = 1n << 16n;
const ARITHMETIC_FLAGS = 0x8d5n;

/** Bytes before the opcode. */
const prefixes = (mode: Mode, bytes: Uint8Array): Uint8Array => {
  const end = bytes.findIndex((byte) => !PREFIXES.has(byte) && !(mode === 'long' && (byte & 0xf0) === 0x40));
  return bytes.subarray(0, end);
};

const has16BitOperands = (mode: Mode, bytes: Uint8Array): boolean => {
  const before = prefixes(mode, bytes);
  return (
    before.includes(OPERAND_SIZE) !== (mode === 'real') && !(mode === 'long' && before.some((byte) => (byte & 0xf8) === 0x48))
  );
};

/**
 * Nothing but some flags differs, where nothing could have been made of them: a case of one instruction. Longer ones may
 * have stored them, or have branched.
 */
const onlyFlags = ({ guest, real, simulated, differences }: GuestAnswers, flags: bigint): boolean => {
  if (guest.instructions.length > 1) return true;
  return (
    only(withoutUpperHalves(guest, differences), ['rflags']) &&
    ((real.registers.rflags ^ simulated.registers.rflags) & ~flags) === 0n
  );
};

export const GUEST_EXPLANATIONS: readonly GuestExplanation[] = [
  {
    name: 'emulator_without_instruction',
    reason: "kvm_pvm runs such guests by the kernel's instruction emulator, which does not know every instruction.",
    explains: ({ real }) => real.exit.startsWith('INTERNAL_ERROR'),
  },
  {
    name: 'event_delivery',
    reason:
      'An exception whose frame is to be pushed to where no memory is: svm exits with KVM_INTERNAL_ERROR_DELIVERY_EV, the emulator writes to MMIO.',
    explains: ({ simulated }) => simulated.exit === 'INTERNAL_ERROR 3',
  },
  {
    name: 'shutdown_resets',
    reason:
      'svm resets a vCPU that shuts down, kvm_pvm keeps its registers; and they look at stack and descriptor in another order.',
    explains: ({ real, simulated }) => real.exit === 'SHUTDOWN' && simulated.exit === 'SHUTDOWN',
  },
  {
    name: 'segment_check_before_read',
    reason:
      'The emulator checks that a segment can be written when it writes, after the read of a read-modify-write; the processor before both.',
    explains: ({ guest, real }) =>
      (guest.mode === 'protected' || guest.mode === 'compatibility') &&
      (hasReadOnlySegment(real) || guest.instructions.some((bytes) => bytes.includes(CODE_SEGMENT))),
  },
  {
    name: 'interrupt_frame_size',
    reason: 'The emulator pushes the frame of an INT in real mode with the size of its operands; the processor always words.',
    explains: ({ guest }) =>
      guest.mode === 'real' && uses(guest, [0xcc, 0xcd, 0xce]) && guest.instructions.some((bytes) => bytes.includes(0x66)),
  },
  {
    name: 'stack_pointer_in_real_mode',
    reason: 'kvm_pvm clears the upper half of ESP when it delivers an exception in real mode.',
    explains: ({ guest, differences }) =>
      guest.mode === 'real' &&
      only(differences, ['rsp']) &&
      differences.every(({ real, simulated }) => (lower(real) ^ lower(simulated)) % 0x10000n === 0n),
  },
  {
    name: 'left_its_code',
    reason:
      'A jump to where no code was generated, or code that overwrites itself: what is executed then meets several of these at once.',
    explains: ({ guest, real, simulated }) =>
      hasIndirectBranch(guest) || hasFarBranchAway(guest) || [real, simulated].some((outcome) => !isAtHome(guest, outcome)),
  },
  {
    name: 'returned_elsewhere',
    reason:
      'A return to where no code was generated, from where an exception has led back: flags that instructions on the way leave undefined.',
    explains: ({ guest, differences }) => uses(guest, RETURNS) && only(differences, ['rflags', 'ram']),
  },
  {
    name: 'frame_over_its_vector',
    reason:
      'The emulator reads the vector of an interrupt of real mode when it has pushed the frame, which may lie over it; processors of AMD read it first.',
    explains: ({ guest, real, simulated }) =>
      guest.mode === 'real' && [real, simulated].some((outcome) => hasOverwrittenVectors(guest, outcome)),
  },
  {
    name: 'upper_halves_outside_64_bit_mode',
    reason:
      'What the upper halves of registers hold outside 64-bit mode is undefined, and the emulator keeps some that the processor clears.',
    explains: ({ guest, differences }) => guest.mode !== 'long' && differences.every(isUpperHalf),
  },
  {
    name: 'bit_scan_of_zero',
    reason:
      'BSF and BSR of zero leave their destination as it was on processors of AMD; others may clear the upper half of one of 32 bits.',
    explains: ({ guest, differences }) => usesTwo(guest, [0xbc, 0xbd]) && differences.every(isUpperHalf),
  },
  {
    name: 'double_shift_of_16_bits',
    reason: 'SHLD and SHRD of 16 bits by more than 16 have an undefined result.',
    explains: ({ guest: { mode, instructions } }) =>
      instructions.some(
        (bytes) => has16BitOperands(mode, bytes) && usesTwo({ mode, instructions: [bytes] }, [0xa4, 0xa5, 0xac, 0xad]),
      ),
  },
  {
    name: 'enter_operand_size',
    reason: 'The emulator pushes RBP with the size of the stack in ENTER, whatever the operand size.',
    explains: ({ guest }) => uses(guest, [0xc8]),
  },
  {
    name: 'iret_outside_real_mode',
    reason: 'The emulator knows IRET in real mode only; kvm_pvm returns from events in its own way.',
    explains: ({ guest }) => guest.mode !== 'real' && uses(guest, [0xcf]),
  },
  {
    name: 'double_fault_of_any_exception',
    reason:
      'Where the descriptors of a handler are spoilt, kvm_pvm makes a double fault of every exception; the processor only of those that contribute to one.',
    explains: ({ guest, real, simulated }) =>
      hasOverwrittenDescriptors(guest, simulated) &&
      isAtHandler(real, DOUBLE_FAULT_VECTOR) &&
      DELIVERY_FAULT_VECTORS.some((vector) => isAtHandler(simulated, vector)),
  },
  {
    name: 'frame_over_descriptors',
    reason: 'An exception whose frame lies over the GDT or IDT: kvm_pvm reads descriptors when it has pushed it, and shuts down.',
    explains: ({ guest, real, simulated }) => real.exit === 'SHUTDOWN' && hasOverwrittenDescriptors(guest, simulated),
  },
  {
    name: 'event_clears_alignment_check',
    reason: 'kvm_pvm clears RFLAGS.AC when it delivers an event; an interrupt or trap gate does not.',
    explains: ({ real, simulated, differences }) =>
      only(differences, ['rflags']) && (real.registers.rflags ^ simulated.registers.rflags) === ALIGNMENT_CHECK,
  },
  {
    name: 'decimal_adjust_flags',
    reason: 'The emulator takes the flags of AAM and AAD from an OR of 16 or 32 bits; the processor takes them from AL.',
    explains: (answers) => uses(answers.guest, [0xd4, 0xd5]) && onlyFlags(answers, ARITHMETIC_FLAGS),
  },
  {
    name: 'undefined_overflow_flag',
    reason:
      'OF of a rotation or shift by more than one is undefined; the emulator executes the form with CL, whatever was written.',
    explains: (answers) => uses(answers.guest, [0xc0, 0xc1, 0xd2, 0xd3]) && onlyFlags(answers, OVERFLOW),
  },
  {
    name: 'int_is_pvm',
    reason: 'kvm_pvm executes INT outside real mode itself, some vectors as hypercalls of its own.',
    explains: ({ guest }) => guest.mode !== 'real' && uses(guest, [0xcd]),
  },
  {
    name: 'stored_selector',
    reason:
      'The emulator stores a segment register to memory with the operand size that REX.W gives; the processor stores 16 bits.',
    explains: ({ guest }) => guest.mode === 'long' && uses(guest, [0x8c]),
  },
  {
    name: 'popa_from_mmio',
    reason: 'The emulator begins POPA anew with each answered load, and moves the stack pointer each time.',
    explains: ({ guest, real }) => uses(guest, [0x61]) && real.exit.startsWith('MMIO'),
  },
  {
    name: 'flags_of_interrupted_string',
    reason: 'An exception in a repeated CMPS or SCAS finds the flags of before its first element on the emulator.',
    explains: ({ guest, differences }) =>
      hasRepeatPrefix(guest) && uses(guest, [0xa6, 0xa7, 0xae, 0xaf]) && only(differences, ['rflags', 'ram']),
  },
  {
    name: 'resume_flag_of_repeated_string',
    reason:
      'The emulator leaves RF set where it goes back to the guest in the middle of a repeated string; whether SVM does so at an exit there is not verified.',
    explains: ({ guest, differences, real, simulated }) =>
      hasRepeatPrefix(guest) &&
      uses(guest, STRINGS) &&
      only(withoutUpperHalves(guest, differences), ['rflags']) &&
      (real.registers.rflags ^ simulated.registers.rflags) === RESUME,
  },
  {
    name: 'far_pointer_with_rex_w',
    reason:
      'A far pointer in memory has 32 bits of offset on processors of AMD, with REX.W 64 on those of Intel and the emulator.',
    explains: ({ guest }) => guest.mode === 'long' && uses(guest, [0xff]),
  },
  {
    name: 'accessed_and_dirty_bits',
    reason: 'Which bits a walk leaves in the tables when another part of the same access faults.',
    explains: ({ guest, differences }) => isLong(guest.mode) && differences.every(({ field }) => /^ram 0x[5-8]...$/.test(field)),
  },
  {
    name: 'overwritten_page_tables',
    reason: 'When the processor notices that the guest has overwritten its page tables depends on what the TLB still holds.',
    explains: ({ guest, real, simulated }) => [real, simulated].some((outcome) => hasOverwrittenTables(guest, outcome)),
  },
  {
    name: 'stack_override_in_64_bit_mode',
    reason:
      'Whether an address that is not canonical is #SS or #GP under an SS override, which 64-bit mode ignores, is told differently.',
    explains: ({ guest }) => guest.mode === 'long' && guest.instructions.some((bytes) => bytes.includes(STACK_SEGMENT)),
  },
  {
    name: 'pusha_faults_half_way',
    reason: 'The emulator has made the first pushes of a PUSHA when a later one faults; the processor looks at them all first.',
    explains: ({ guest, differences }) => uses(guest, [0x60]) && only(differences, ['ram']),
  },
  {
    name: 'pusha_to_mmio',
    reason: 'The emulator keeps only the last of the writes of a PUSHA to MMIO.',
    explains: ({ guest, real }) => uses(guest, [0x60]) && real.exit.startsWith('MMIO'),
  },
  {
    name: 'far_branch_beyond_limit',
    reason:
      'The emulator has loaded CS when it finds that the offset of a far JMP or CALL is beyond its limit, and leaves it there.',
    explains: ({ guest, differences }) =>
      guest.mode === 'real' && hasFarPointerBranch(guest) && only(differences, ['cs.selector', 'cs.base']),
  },
  {
    name: 'pushed_selector',
    reason:
      'PUSH of a segment register with 32 bits writes 16 on the emulator and recent processors of Intel, zero-extended 32 on those of AMD.',
    explains: ({ guest }) => guest.mode !== 'long' && (uses(guest, [0x06, 0x0e, 0x16, 0x1e]) || usesTwo(guest, [0xa0, 0xa8])),
  },
  {
    name: 'cmpxchg_writes_back',
    reason: 'The emulator makes up the write cycle of a CMPXCHG that fails: a register that is its target loses its upper half.',
    explains: ({ guest }) => usesTwo(guest, [0xb0, 0xb1]),
  },
  {
    name: 'movsxd_of_16_bits',
    reason: 'MOVSXD with an operand size of 16 reads 16 bits on processors of Intel, 32 on the emulator.',
    explains: ({ guest }) =>
      guest.mode === 'long' && uses(guest, [0x63]) && guest.instructions.some((bytes) => bytes.includes(0x66)),
  },
  {
    name: 'trap_after_popf',
    reason: 'kvm_pvm raises the trap of a TF that POPF has set behind POPF; the processor behind the instruction after it.',
    explains: ({ guest, real }) => uses(guest, [0x9d]) && isAtHandler(real, DEBUG_VECTOR),
  },
  {
    name: 'trap_in_repeated_string',
    reason:
      'With TF the processor traps after each element of a repeated string instruction; the emulator does the next ones first.',
    explains: ({ guest, simulated }) => uses(guest, STRINGS) && hasRepeatPrefix(guest) && isAtHandler(simulated, DEBUG_VECTOR),
  },
  {
    name: 'endless_loop',
    reason: 'The guest ran into its time limit on one of the two: where it stood then is chance.',
    explains: ({ real, simulated }) => real.exit === 'EINTR' || simulated.exit === 'EINTR',
  },
];
