import type { Core } from '../core.js';
import { type Compiled, type Instruction, type InstructionGroup, next, type Operation } from '../instruction.js';
import { gprAt, gprWriter, linearAddress, memoryAt, OutsideSubset, operandAt, reader, sizeOf, writer } from '../operands.js';
import { Cr0, Cr4, Vector } from '../registers.js';
import { GuestFault } from '../traps.js';

/** #UD or #NM unless the operating system has SSE switched on. */
export function requireSse(core: Core): void {
  const { cr0Lo, cr4Lo } = core.state;
  if ((cr0Lo & Cr0.EM) !== 0 || (cr4Lo & Cr4.OSFXSR) === 0) throw new GuestFault(Vector.UD, null);
  if ((cr0Lo & Cr0.TS) !== 0) throw new GuestFault(Vector.NM, null);
}

const sse = (core: Core, operation: Operation): Compiled =>
  next(() => {
    requireSse(core);
    operation();
  });

/** Puts `size` bytes of an XMM register or of memory into four words. */
type Load = (into: Int32Array) => void;
type Store = (from: Int32Array) => void;

function memoryLoad(core: Core, instruction: Instruction, index: number, size: number, aligned: boolean): Load {
  const address = linearAddress(core, memoryAt(instruction, index), size, false, instruction.bits);
  const bytes = new Uint8Array(16);
  const words = new Int32Array(bytes.buffer);
  const { memory } = core;
  return (into) => {
    const lo = address();
    if (aligned && (lo & 15) !== 0) throw new GuestFault(Vector.GP, 0);
    bytes.fill(0);
    memory.copyIn(lo, memory.hi, size, bytes, 0, false);
    into.set(words);
  };
}

function memoryStore(core: Core, instruction: Instruction, index: number, size: number, aligned: boolean): Store {
  const address = linearAddress(core, memoryAt(instruction, index), size, true, instruction.bits);
  const bytes = new Uint8Array(16);
  const words = new Int32Array(bytes.buffer);
  const { memory } = core;
  return (from) => {
    const lo = address();
    if (aligned && (lo & 15) !== 0) throw new GuestFault(Vector.GP, 0);
    words.set(from);
    memory.copyOut(lo, memory.hi, size, bytes, 0);
  };
}

const register = (core: Core, index: number): Int32Array => core.state.xmm.subarray(4 * index, 4 * index + 4);

function xmmAt(core: Core, instruction: Instruction, index: number): Int32Array {
  const operand = operandAt(instruction, index);
  if (operand.kind !== 'xmm') throw new OutsideSubset(instruction.code);
  return register(core, operand.index);
}

/** An XMM register or 16 bytes of memory. */
function source128(core: Core, instruction: Instruction, index: number, aligned: boolean): Load {
  const operand = operandAt(instruction, index);
  if (operand.kind === 'memory') return memoryLoad(core, instruction, index, 16, aligned);
  const words = xmmAt(core, instruction, index);
  return (into) => into.set(words);
}

const moveAll =
  (aligned: boolean) =>
  (core: Core, instruction: Instruction): Compiled => {
    const words = new Int32Array(4);
    if (operandAt(instruction, 0).kind === 'memory') {
      const from = xmmAt(core, instruction, 1);
      const store = memoryStore(core, instruction, 0, 16, aligned);
      return sse(core, () => store(from));
    }
    const to = xmmAt(core, instruction, 0);
    const load = source128(core, instruction, 1, aligned);
    return sse(core, () => {
      load(words);
      to.set(words);
    });
  };

/** MOVSS and MOVSD: from memory the rest becomes zero, between registers it stays. */
const moveScalar =
  (size: 4 | 8) =>
  (core: Core, instruction: Instruction): Compiled => {
    const count = size / 4;
    if (operandAt(instruction, 0).kind === 'memory') {
      const from = xmmAt(core, instruction, 1);
      const store = memoryStore(core, instruction, 0, size, false);
      return sse(core, () => store(from));
    }
    const to = xmmAt(core, instruction, 0);
    if (operandAt(instruction, 1).kind === 'memory') {
      const load = memoryLoad(core, instruction, 1, size, false);
      const words = new Int32Array(4);
      return sse(core, () => {
        load(words);
        to.set(words);
      });
    }
    const from = xmmAt(core, instruction, 1);
    return sse(core, () => to.set(from.subarray(0, count)));
  };

/** MOVD and MOVQ between XMM and general registers or memory; MOVQ xmm, xmm clears the upper half. */
const moveLow =
  (size: 4 | 8) =>
  (core: Core, instruction: Instruction): Compiled => {
    const destination = operandAt(instruction, 0);
    const source = operandAt(instruction, 1);
    if (destination.kind === 'xmm' && source.kind === 'xmm') {
      const to = xmmAt(core, instruction, 0);
      const from = xmmAt(core, instruction, 1);
      return sse(core, () => to.set([from[0], from[1], 0, 0]));
    }
    if (destination.kind === 'xmm') {
      const to = xmmAt(core, instruction, 0);
      const width = source.kind === 'gpr' ? sizeOf(instruction, 1) : size;
      const read = reader(core, instruction, 1, width);
      return sse(core, () => {
        const lo = read();
        to.set([lo, width === 8 ? core.hi : 0, 0, 0]);
      });
    }
    const from = xmmAt(core, instruction, 1);
    const write = writer(core, instruction, 0);
    return sse(core, () => write(from[0], from[1]));
  };

/** MOVLPS, MOVHPS, MOVLPD, MOVHPD: half a register and memory. */
const moveHalf =
  (half: 0 | 1) =>
  (core: Core, instruction: Instruction): Compiled => {
    const words = new Int32Array(4);
    if (operandAt(instruction, 0).kind === 'memory') {
      const from = xmmAt(core, instruction, 1);
      const store = memoryStore(core, instruction, 0, 8, false);
      return sse(core, () => {
        words.set(from.subarray(2 * half, 2 * half + 2));
        store(words);
      });
    }
    const to = xmmAt(core, instruction, 0);
    const load = memoryLoad(core, instruction, 1, 8, false);
    return sse(core, () => {
      load(words);
      to.set(words.subarray(0, 2), 2 * half);
    });
  };

type Lanes = (to: Int32Array, from: Int32Array) => void;

/** An operation of a register with an aligned 16-byte source. */
const packed =
  (operation: Lanes) =>
  (core: Core, instruction: Instruction): Compiled => {
    const to = xmmAt(core, instruction, 0);
    const load = source128(core, instruction, 1, true);
    const words = new Int32Array(4);
    return sse(core, () => {
      load(words);
      operation(to, words);
    });
  };

const wordwise = (operation: (a: number, b: number) => number): Lanes => {
  return (to, from) => {
    for (let i = 0; i < 4; i++) to[i] = operation(to[i], from[i]);
  };
};

const bytesOf = (words: Int32Array): Uint8Array => new Uint8Array(words.buffer, words.byteOffset, 16);
const halvesOf = (words: Int32Array): Uint16Array => new Uint16Array(words.buffer, words.byteOffset, 8);

const bytewise = (operation: (a: number, b: number) => number): Lanes => {
  return (to, from) => {
    const left = bytesOf(to);
    const right = bytesOf(from);
    for (let i = 0; i < 16; i++) left[i] = operation(left[i], right[i]);
  };
};

const halfwise = (operation: (a: number, b: number) => number): Lanes => {
  return (to, from) => {
    const left = halvesOf(to);
    const right = halvesOf(from);
    for (let i = 0; i < 8; i++) left[i] = operation(left[i], right[i]);
  };
};

const add64: Lanes = (to, from) => {
  for (let i = 0; i < 4; i += 2) {
    const lo = (to[i] + from[i]) | 0;
    to[i + 1] += from[i + 1] + (lo >>> 0 < from[i] >>> 0 ? 1 : 0);
    to[i] = lo;
  }
};

const subtract64: Lanes = (to, from) => {
  for (let i = 0; i < 4; i += 2) {
    to[i + 1] -= from[i + 1] + (to[i] >>> 0 < from[i] >>> 0 ? 1 : 0);
    to[i] -= from[i];
  }
};

/** PUNPCKL* and PUNPCKH*: lanes of both operands alternate. */
const interleave =
  (laneBytes: number, high: boolean): Lanes =>
  (to, from) => {
    const left = bytesOf(to).slice();
    const right = bytesOf(from);
    const out = bytesOf(to);
    const start = high ? 8 : 0;
    for (let i = 0; i < 8; i += laneBytes) {
      out.set(left.subarray(start + i, start + i + laneBytes), 2 * i);
      out.set(right.subarray(start + i, start + i + laneBytes), 2 * i + laneBytes);
    }
  };

const immediateAt = (instruction: Instruction, index: number): number => {
  const operand = operandAt(instruction, index);
  if (operand.kind !== 'immediate') throw new OutsideSubset(instruction.code);
  return operand.lo & 0xff;
};

function shuffleWords(core: Core, instruction: Instruction): Compiled {
  const order = immediateAt(instruction, 2);
  return packed((to, from) => {
    for (let i = 0; i < 4; i++) to[i] = from[(order >> (2 * i)) & 3];
  })(core, instruction);
}

/** PSLLDQ and PSRLDQ: the register by bytes. */
const shiftBytes =
  (left: boolean) =>
  (core: Core, instruction: Instruction): Compiled => {
    const words = xmmAt(core, instruction, 0);
    const count = Math.min(16, immediateAt(instruction, 1));
    return sse(core, () => {
      const bytes = bytesOf(words);
      const shifted = new Uint8Array(16);
      if (left) shifted.set(bytes.subarray(0, 16 - count), count);
      else shifted.set(bytes.subarray(count));
      bytes.set(shifted);
    });
  };

/** PSLLD, PSRLD, PSLLQ, PSRLQ by an immediate. */
const shiftLanes =
  (bits: 32 | 64, left: boolean) =>
  (core: Core, instruction: Instruction): Compiled => {
    const words = xmmAt(core, instruction, 0);
    const count = immediateAt(instruction, 1);
    const { alu64 } = core;
    return sse(core, () => {
      if (bits === 32) {
        for (let i = 0; i < 4; i++) words[i] = count > 31 ? 0 : left ? words[i] << count : words[i] >>> count;
        return;
      }
      const by = Math.min(count, 64);
      for (let i = 0; i < 4; i += 2) {
        const lo = left ? alu64.shiftLeft(words[i], words[i + 1], by) : alu64.shiftRight(words[i], words[i + 1], by);
        words[i] = lo;
        words[i + 1] = alu64.hi;
      }
    });
  };

function moveMask(core: Core, instruction: Instruction): Compiled {
  const words = xmmAt(core, instruction, 1);
  const write = gprWriter(core, gprAt(instruction, 0));
  return sse(core, () => {
    let mask = 0;
    bytesOf(words).forEach((byte, index) => {
      mask |= (byte >> 7) << index;
    });
    write(mask, 0);
  });
}

const moveBetweenHalves =
  (to: 0 | 2, from: 0 | 2) =>
  (core: Core, instruction: Instruction): Compiled => {
    const target = xmmAt(core, instruction, 0);
    const source = xmmAt(core, instruction, 1);
    return sse(core, () => target.set(source.slice(from, from + 2), to));
  };

const and = packed(wordwise((a, b) => a & b));
const andNot = packed(wordwise((a, b) => ~a & b));
const or = packed(wordwise((a, b) => a | b));
const xor = packed(wordwise((a, b) => a ^ b));

/** The SSE2 moves and integer operations that compilers emit for copying, clearing and comparing. */
export const sseGroup: InstructionGroup = {
  Movaps: moveAll(true),
  Movapd: moveAll(true),
  Movdqa: moveAll(true),
  Movntdq: moveAll(true),
  Movntps: moveAll(true),
  Movntpd: moveAll(true),
  Movups: moveAll(false),
  Movupd: moveAll(false),
  Movdqu: moveAll(false),
  Lddqu: moveAll(false),
  Movss: moveScalar(4),
  Movsd: moveScalar(8),
  Movd: moveLow(4),
  Movq: moveLow(8),
  Movlps: moveHalf(0),
  Movlpd: moveHalf(0),
  Movhps: moveHalf(1),
  Movhpd: moveHalf(1),
  Movhlps: moveBetweenHalves(0, 2),
  Movlhps: moveBetweenHalves(2, 0),
  Pand: and,
  Andps: and,
  Andpd: and,
  Pandn: andNot,
  Andnps: andNot,
  Andnpd: andNot,
  Por: or,
  Orps: or,
  Orpd: or,
  Pxor: xor,
  Xorps: xor,
  Xorpd: xor,
  Paddb: packed(bytewise((a, b) => a + b)),
  Paddw: packed(halfwise((a, b) => a + b)),
  Paddd: packed(wordwise((a, b) => a + b)),
  Paddq: packed(add64),
  Psubb: packed(bytewise((a, b) => a - b)),
  Psubw: packed(halfwise((a, b) => a - b)),
  Psubd: packed(wordwise((a, b) => a - b)),
  Psubq: packed(subtract64),
  Pcmpeqb: packed(bytewise((a, b) => (a === b ? 0xff : 0))),
  Pcmpeqw: packed(halfwise((a, b) => (a === b ? 0xffff : 0))),
  Pcmpeqd: packed(wordwise((a, b) => (a === b ? -1 : 0))),
  Pminub: packed(bytewise(Math.min)),
  Pmaxub: packed(bytewise(Math.max)),
  Punpcklbw: packed(interleave(1, false)),
  Punpcklwd: packed(interleave(2, false)),
  Punpckldq: packed(interleave(4, false)),
  Punpcklqdq: packed(interleave(8, false)),
  Unpcklps: packed(interleave(4, false)),
  Unpcklpd: packed(interleave(8, false)),
  Punpckhbw: packed(interleave(1, true)),
  Punpckhwd: packed(interleave(2, true)),
  Punpckhdq: packed(interleave(4, true)),
  Punpckhqdq: packed(interleave(8, true)),
  Pshufd: shuffleWords,
  Pslldq: shiftBytes(true),
  Psrldq: shiftBytes(false),
  Pslld: shiftLanes(32, true),
  Psrld: shiftLanes(32, false),
  Psllq: shiftLanes(64, true),
  Psrlq: shiftLanes(64, false),
  Pmovmskb: moveMask,
};
