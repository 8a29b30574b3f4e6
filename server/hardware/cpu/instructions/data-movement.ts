import { CONDITION_CODES, condition } from '../conditions.js';
import type { Core } from '../core.js';
import { ARITHMETIC_FLAGS, Rflags } from '../flags.js';
import { type Compiled, type Instruction, type InstructionGroup, next } from '../instruction.js';
import {
  effectiveAddress,
  gprAt,
  gprWriter,
  linearAddress,
  memoryAt,
  operandAt,
  place,
  reader,
  sizeOf,
  writer,
} from '../operands.js';
import { Gpr } from '../registers.js';
import { moveControl, moveDebug } from './control-registers.js';
import { moveFromSegment, moveToSegment } from './segment-registers.js';

function move(core: Core, instruction: Instruction): Compiled {
  const destination = operandAt(instruction, 0);
  const source = operandAt(instruction, 1);
  if (destination.kind === 'segment') return moveToSegment(core, instruction, destination.index);
  if (source.kind === 'segment') return moveFromSegment(core, instruction, source.index);
  if (destination.kind === 'control' || source.kind === 'control') return moveControl(core, instruction);
  if (destination.kind === 'debug' || source.kind === 'debug') return moveDebug(core, instruction);
  const size = sizeOf(instruction, 0);
  const { gpr } = core;
  if (destination.kind === 'gpr' && size >= 4) {
    const at = 2 * destination.index;
    if (source.kind === 'immediate') {
      const { lo } = source;
      const hi = size === 8 ? source.hi : 0;
      return next(() => {
        gpr[at] = lo;
        gpr[at + 1] = hi;
      });
    }
    if (source.kind === 'gpr') {
      const from = 2 * source.index;
      if (size === 4) {
        return next(() => {
          gpr[at] = gpr[from];
          gpr[at + 1] = 0;
        });
      }
      return next(() => {
        gpr[at] = gpr[from];
        gpr[at + 1] = gpr[from + 1];
      });
    }
  }
  const read = reader(core, instruction, 1, size);
  const write = writer(core, instruction, 0);
  return next(() => {
    const lo = read();
    write(lo, core.hi);
  });
}

/** MOVZX, MOVSX, MOVSXD. */
const moveExtended =
  (signed: boolean) =>
  (core: Core, instruction: Instruction): Compiled => {
    const size = sizeOf(instruction, 1);
    const read = reader(core, instruction, 1, size);
    const write = gprWriter(core, gprAt(instruction, 0));
    const align = 32 - 8 * size;
    if (!signed) return next(() => write(read(), 0));
    return next(() => {
      const value = (read() << align) >> align;
      write(value, value >> 31);
    });
  };

function loadEffectiveAddress(core: Core, instruction: Instruction): Compiled {
  const address = effectiveAddress(core, memoryAt(instruction, 1));
  const write = gprWriter(core, gprAt(instruction, 0));
  const { memory } = core;
  return next(() => {
    const lo = address();
    write(lo, memory.hi);
  });
}

function exchange(core: Core, instruction: Instruction): Compiled {
  const first = place(core, instruction, 0);
  const second = place(core, instruction, 1);
  return next(() => {
    const firstLo = first.read();
    const firstHi = core.hi;
    const secondLo = second.read();
    first.write(secondLo, core.hi);
    second.write(firstLo, firstHi);
  });
}

/** MOVBE. */
function moveByteSwapped(core: Core, instruction: Instruction): Compiled {
  const size = sizeOf(instruction, 0);
  const read = reader(core, instruction, 1, size);
  const write = writer(core, instruction, 0);
  return next(() => {
    const lo = read();
    if (size === 2) write(((lo << 8) & 0xff00) | ((lo >> 8) & 0xff), 0);
    else if (size === 4) write(swapBytes(lo), 0);
    else write(swapBytes(core.hi), swapBytes(lo));
  });
}

const swapBytes = (value: number): number => (value << 24) | ((value & 0xff00) << 8) | ((value >>> 8) & 0xff00) | (value >>> 24);

/** BSWAP of 16 bits is undefined and gives zero, as it does on current processors. */
function byteSwap(core: Core, instruction: Instruction): Compiled {
  const { gpr } = core;
  const { index, size } = gprAt(instruction, 0);
  const at = 2 * index;
  if (size === 2) {
    return next(() => {
      core.state.gpr16[2 * at] = 0;
    });
  }
  return next(() => {
    const lo = gpr[at];
    gpr[at] = swapBytes(size === 8 ? gpr[at + 1] : lo);
    gpr[at + 1] = size === 8 ? swapBytes(lo) : 0;
  });
}

/** CBW, CWDE, CDQE: the accumulator doubles its width. */
const extendAccumulator =
  (size: 2 | 4 | 8) =>
  (core: Core): Compiled => {
    const { gpr } = core;
    const { gpr8, gpr16 } = core.state;
    return next(() => {
      if (size === 2) {
        gpr16[0] = (gpr8[0] << 24) >> 24;
      } else if (size === 4) {
        gpr[0] = (gpr16[0] << 16) >> 16;
        gpr[1] = 0;
      } else {
        gpr[1] = gpr[0] >> 31;
      }
    });
  };

/** CWD, CDQ, CQO: the accumulator's sign fills RDX. */
const extendIntoRdx =
  (size: 2 | 4 | 8) =>
  (core: Core): Compiled => {
    const { gpr } = core;
    const { gpr16 } = core.state;
    const at = 2 * Gpr.RDX;
    return next(() => {
      if (size === 2) {
        gpr16[2 * at] = (gpr16[0] << 16) >> 31;
      } else if (size === 4) {
        gpr[at] = gpr[0] >> 31;
        gpr[at + 1] = 0;
      } else {
        gpr[at] = gpr[1] >> 31;
        gpr[at + 1] = gpr[1] >> 31;
      }
    });
  };

const conditionalMove =
  (code: string) =>
  (core: Core, instruction: Instruction): Compiled => {
    const test = condition(code);
    const size = sizeOf(instruction, 0);
    const read = reader(core, instruction, 1, size);
    const target = gprAt(instruction, 0);
    const write = gprWriter(core, target);
    const { flags, gpr } = core;
    const upper = 2 * target.index + 1;
    return next(() => {
      const lo = read();
      if (test(flags)) write(lo, core.hi);
      else if (size === 4) gpr[upper] = 0;
    });
  };

const setByte =
  (code: string) =>
  (core: Core, instruction: Instruction): Compiled => {
    const test = condition(code);
    const write = writer(core, instruction, 0);
    return next(() => write(test(core.flags) ? 1 : 0, 0));
  };

/** XLAT: AL becomes the byte at RBX + AL. */
function translateByte(core: Core, instruction: Instruction): Compiled {
  const operand = memoryAt(instruction, 0);
  const { gpr, memory } = core;
  const { gpr8 } = core.state;
  const rbx = 2 * Gpr.RBX;
  return next(() => {
    const sum = (gpr[rbx] + gpr8[0]) | 0;
    const hi = operand.addressSize === 64 ? (gpr[rbx + 1] + (sum >>> 0 < gpr8[0] ? 1 : 0)) | 0 : 0;
    const lo = core.dataAddress(operand.segment, operand.addressSize === 16 ? sum & 0xffff : sum, hi, 1, false);
    gpr8[0] = memory.load8(lo, memory.hi);
  });
}

function loadAh(core: Core): Compiled {
  return next(() => {
    core.state.gpr8[1] = core.flags.value;
  });
}

function storeAh(core: Core): Compiled {
  const kept = ARITHMETIC_FLAGS & 0xff;
  return next(() => {
    core.flags.setArithmetic((core.flags.value & Rflags.OF) | (core.state.gpr8[1] & kept));
  });
}

const setCarry =
  (update: (cf: number) => number) =>
  (core: Core): Compiled =>
    next(() => core.flags.setCarry(update(core.flags.cf)));

const setDirection =
  (bit: number) =>
  (core: Core): Compiled =>
    next(() => core.setFlags(bit, Rflags.DF));

/** A hint (multi-byte NOP, prefetch), or a fence in a machine that does everything in order. */
const nothing = (): Compiled => next(() => {});

/** CLFLUSH: the line has to be there, and is in memory afterwards because it always is. */
function flushLine(core: Core, instruction: Instruction): Compiled {
  const address = linearAddress(core, memoryAt(instruction, 0), 1, false, instruction.bits);
  const { memory } = core;
  return next(() => {
    memory.load8(address(), memory.hi);
  });
}

/** LDS, LES, LFS, LGS, LSS are in `segment-registers`; what moves between registers and memory is here. */
export const dataMovement: InstructionGroup = {
  Mov: move,
  Movnti: move,
  Movzx: moveExtended(false),
  Movsx: moveExtended(true),
  Movsxd: moveExtended(true),
  Lea: loadEffectiveAddress,
  Xchg: exchange,
  Movbe: moveByteSwapped,
  Bswap: byteSwap,
  Cbw: extendAccumulator(2),
  Cwde: extendAccumulator(4),
  Cdqe: extendAccumulator(8),
  Cwd: extendIntoRdx(2),
  Cdq: extendIntoRdx(4),
  Cqo: extendIntoRdx(8),
  ...Object.fromEntries(CONDITION_CODES.map((code) => [`Cmov${code}`, conditionalMove(code)])),
  ...Object.fromEntries(CONDITION_CODES.map((code) => [`Set${code}`, setByte(code)])),
  Xlatb: translateByte,
  Lahf: loadAh,
  Sahf: storeAh,
  Clc: setCarry(() => 0),
  Stc: setCarry(() => 1),
  Cmc: setCarry((cf) => cf ^ 1),
  Cld: setDirection(0),
  Std: setDirection(Rflags.DF),
  Nop: nothing,
  Reservednop: nothing,
  Fnop: nothing,
  Endbr64: nothing,
  Endbr32: nothing,
  Lfence: nothing,
  Sfence: nothing,
  Mfence: nothing,
  Prefetcht0: nothing,
  Prefetcht1: nothing,
  Prefetcht2: nothing,
  Prefetchnta: nothing,
  Prefetchw: nothing,
  Clflush: flushLine,
  Clflushopt: flushLine,
  Clwb: flushLine,
};
