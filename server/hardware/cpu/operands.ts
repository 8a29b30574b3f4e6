import type { Core } from './core.js';
import type { GprOperand, Instruction, MemoryOperand, Operand } from './instruction.js';
import { Seg } from './registers.js';

/** Reads an operand of at most 32 bits; narrow ones are zero-extended. Of 64 bits: the low half, the high one in `core.hi`. */
export type Reader = () => number;
/** Writes an operand; the high half only matters for 64 bits. */
export type Writer = (lo: number, hi: number) => void;
/** Returns the low half of a linear address and leaves the high half in `memory.hi`. */
export type Address = () => number;

/** What a compile function does not know how to do; the instruction ends in KVM_EXIT_INTERNAL_ERROR. */
export class OutsideSubset {
  constructor(readonly code: string) {}
}

export const operandAt = (instruction: Instruction, index: number): Operand => {
  const operand = instruction.operands[index];
  if (operand === undefined) throw new OutsideSubset(instruction.code);
  return operand;
};

/** Bytes of an operand that can be read or written by size: a general register or memory. */
export function sizeOf(instruction: Instruction, index: number): number {
  const operand = operandAt(instruction, index);
  if (operand.kind === 'gpr' || operand.kind === 'memory') return operand.size;
  throw new OutsideSubset(instruction.code);
}

export function memoryAt(instruction: Instruction, index: number): MemoryOperand {
  const operand = operandAt(instruction, index);
  if (operand.kind !== 'memory') throw new OutsideSubset(instruction.code);
  return operand;
}

export function gprAt(instruction: Instruction, index: number): GprOperand {
  const operand = operandAt(instruction, index);
  if (operand.kind !== 'gpr') throw new OutsideSubset(instruction.code);
  return operand;
}

/** Index of an 8-bit register in `state.gpr8`. */
const byteIndex = (operand: GprOperand): number => 8 * operand.index + (operand.high ? 1 : 0);

// ---- addresses -------------------------------------------------------------------------------------------------

/** The effective address without segment, truncated to the address size; the high half goes to `memory.hi`. */
export function effectiveAddress(core: Core, operand: MemoryOperand): Address {
  const { gpr, memory } = core;
  const { displacementLo: dispLo, displacementHi: dispHi } = operand;
  const base = 2 * operand.base;
  const index = 2 * operand.index;
  const shift = Math.log2(operand.scale);
  if (operand.addressSize !== 64) return narrowAddress(core, operand);
  if (operand.index < 0) {
    if (operand.base < 0) {
      return () => {
        memory.hi = dispHi;
        return dispLo;
      };
    }
    if ((dispLo | dispHi) === 0) {
      return () => {
        memory.hi = gpr[base + 1];
        return gpr[base];
      };
    }
    return () => {
      const lo = (gpr[base] + dispLo) | 0;
      memory.hi = (gpr[base + 1] + dispHi + (lo >>> 0 < dispLo >>> 0 ? 1 : 0)) | 0;
      return lo;
    };
  }
  return () => {
    let lo = dispLo;
    let hi = dispHi;
    if (base >= 0) {
      lo = (gpr[base] + dispLo) | 0;
      hi = gpr[base + 1] + dispHi + (lo >>> 0 < dispLo >>> 0 ? 1 : 0);
    }
    const scaledLo = gpr[index] << shift;
    const scaledHi = shift === 0 ? gpr[index + 1] : (gpr[index + 1] << shift) | (gpr[index] >>> (32 - shift));
    const sum = (lo + scaledLo) | 0;
    memory.hi = (hi + scaledHi + (sum >>> 0 < lo >>> 0 ? 1 : 0)) | 0;
    return sum;
  };
}

/** Effective addresses of 16 and 32 bits. */
function narrowAddress(core: Core, operand: MemoryOperand): Address {
  const { gpr, memory } = core;
  const disp = operand.displacementLo;
  const base = 2 * operand.base;
  const index = 2 * operand.index;
  const shift = Math.log2(operand.scale);
  const mask = operand.addressSize === 16 ? 0xffff : -1;
  if (operand.base < 0 && operand.index < 0) {
    const fixed = disp & mask;
    return () => {
      memory.hi = 0;
      return fixed;
    };
  }
  if (operand.index < 0) {
    return () => {
      memory.hi = 0;
      return (gpr[base] + disp) & mask;
    };
  }
  if (operand.base < 0) {
    return () => {
      memory.hi = 0;
      return ((gpr[index] << shift) + disp) & mask;
    };
  }
  return () => {
    memory.hi = 0;
    return (gpr[base] + (gpr[index] << shift) + disp) & mask;
  };
}

/** The linear address of a memory operand, checked against its segment for an access of `size` bytes. */
export function linearAddress(core: Core, operand: MemoryOperand, size: number, write: boolean, bits: number): Address {
  const { memory, state } = core;
  const { segment } = operand;
  const effective = effectiveAddress(core, operand);
  if (bits === 64) {
    if (segment !== Seg.FS && segment !== Seg.GS) return effective;
    return () => {
      const offset = effective();
      const lo = (state.baseLo[segment] + offset) | 0;
      memory.hi = (state.baseHi[segment] + memory.hi + (lo >>> 0 < offset >>> 0 ? 1 : 0)) | 0;
      return lo;
    };
  }
  const limits = write ? core.writeLimit : core.readLimit;
  const last = size - 1;
  return () => {
    const offset = effective();
    if ((offset >>> 0) + last > limits[segment]) core.checkSegment(segment, offset, size, write);
    return (state.baseLo[segment] + offset) | 0;
  };
}

// ---- values ----------------------------------------------------------------------------------------------------

/** Reads operand `index` of an instruction as `size` bytes. */
export function reader(core: Core, instruction: Instruction, index: number, size: number): Reader {
  const operand = operandAt(instruction, index);
  if (operand.kind === 'gpr') return gprReader(core, operand);
  if (operand.kind === 'immediate') {
    const { lo, hi } = operand;
    if (size !== 8) return () => lo;
    return () => {
      core.hi = hi;
      return lo;
    };
  }
  if (operand.kind === 'memory') {
    return memoryReader(core, linearAddress(core, operand, size, false, instruction.bits), size);
  }
  throw new OutsideSubset(instruction.code);
}

function gprReader(core: Core, operand: GprOperand): Reader {
  const { gpr } = core;
  const { gpr8, gpr16 } = core.state;
  const at = 2 * operand.index;
  switch (operand.size) {
    case 1: {
      const byte = byteIndex(operand);
      return () => gpr8[byte];
    }
    case 2:
      return () => gpr16[2 * at];
    case 4:
      return () => gpr[at];
    case 8:
      return () => {
        core.hi = gpr[at + 1];
        return gpr[at];
      };
  }
}

export function memoryReader(core: Core, address: Address, size: number): Reader {
  const { memory } = core;
  switch (size) {
    case 1:
      return () => memory.load8(address(), memory.hi);
    case 2:
      return () => memory.load16(address(), memory.hi);
    case 4:
      return () => memory.load32(address(), memory.hi);
    case 8:
      return () => {
        const lo = memory.load64(address(), memory.hi);
        core.hi = memory.dataHi;
        return lo;
      };
    default:
      throw new OutsideSubset(`load of ${size} bytes`);
  }
}

/** What an m16:16, m16:32 or m16:64 operand holds, whose offset has `size` bytes: read in one piece. */
export function farPointerReader(
  core: Core,
  instruction: Instruction,
  index: number,
  size: 2 | 4 | 8,
): () => { readonly selector: number; readonly lo: number; readonly hi: number } {
  const { memory } = core;
  const address = linearAddress(core, memoryAt(instruction, index), size + 2, false, instruction.bits);
  const bytes = new Uint8Array(10);
  const view = new DataView(bytes.buffer);
  return () => {
    const at = address();
    memory.copyIn(at, memory.hi, size + 2, bytes, 0, false);
    const selector = view.getUint16(size, true);
    if (size === 2) return { selector, lo: view.getUint16(0, true), hi: 0 };
    return { selector, lo: view.getInt32(0, true), hi: size === 8 ? view.getInt32(4, true) : 0 };
  };
}

/** Writes operand `index`; a 32-bit register write clears the upper half. */
export function writer(core: Core, instruction: Instruction, index: number): Writer {
  const operand = operandAt(instruction, index);
  if (operand.kind === 'gpr') return gprWriter(core, operand);
  if (operand.kind === 'memory') {
    return memoryWriter(core, linearAddress(core, operand, operand.size, true, instruction.bits), operand.size);
  }
  throw new OutsideSubset(instruction.code);
}

export function gprWriter(core: Core, operand: GprOperand): Writer {
  const { gpr } = core;
  const { gpr8, gpr16 } = core.state;
  const at = 2 * operand.index;
  switch (operand.size) {
    case 1: {
      const byte = byteIndex(operand);
      return (lo) => {
        gpr8[byte] = lo;
      };
    }
    case 2:
      return (lo) => {
        gpr16[2 * at] = lo;
      };
    case 4:
      return (lo) => {
        gpr[at] = lo;
        gpr[at + 1] = 0;
      };
    case 8:
      return (lo, hi) => {
        gpr[at] = lo;
        gpr[at + 1] = hi;
      };
  }
}

function memoryWriter(core: Core, address: Address, size: number): Writer {
  const { memory } = core;
  switch (size) {
    case 1:
      return (lo) => memory.store8(address(), memory.hi, lo);
    case 2:
      return (lo) => memory.store16(address(), memory.hi, lo);
    case 4:
      return (lo) => memory.store32(address(), memory.hi, lo);
    case 8:
      return (lo, hi) => {
        const at = address();
        memory.store64(at, memory.hi, lo, hi);
      };
    default:
      throw new OutsideSubset(`store of ${size} bytes`);
  }
}

/**
 * A read-modify-write destination: `read` checks that the write will go through and keeps the address for `write`.
 * Nothing else may use the memory between the two.
 */
export interface Place {
  readonly read: Reader;
  readonly write: Writer;
}

export function place(core: Core, instruction: Instruction, index: number): Place {
  const operand = operandAt(instruction, index);
  if (operand.kind === 'gpr') return { read: gprReader(core, operand), write: gprWriter(core, operand) };
  if (operand.kind !== 'memory') throw new OutsideSubset(instruction.code);
  return placeAt(core, linearAddress(core, operand, operand.size, true, instruction.bits), operand.size);
}

/** As `place`, at an address computed by the caller. */
export function placeAt(core: Core, address: Address, size: number): Place {
  const { memory } = core;
  let lo = 0;
  let hi = 0;
  const locate = (): void => {
    lo = address();
    hi = memory.hi;
  };
  switch (size) {
    case 1:
      return {
        read: () => {
          locate();
          return memory.modify8(lo, hi);
        },
        write: (value) => memory.store8(lo, hi, value),
      };
    case 2:
      return {
        read: () => {
          locate();
          return memory.modify16(lo, hi);
        },
        write: (value) => memory.store16(lo, hi, value),
      };
    case 4:
      return {
        read: () => {
          locate();
          return memory.modify32(lo, hi);
        },
        write: (value) => memory.store32(lo, hi, value),
      };
    case 8:
      return {
        read: () => {
          locate();
          const value = memory.modify64(lo, hi);
          core.hi = memory.dataHi;
          return value;
        },
        write: (valueLo, valueHi) => memory.store64(lo, hi, valueLo, valueHi),
      };
    default:
      throw new OutsideSubset(`read-modify-write of ${size} bytes`);
  }
}
