import type { Core } from '../core.js';
import { branch, type Compiled, type Instruction, type InstructionGroup, next, type Operation } from '../instruction.js';
import { Gpr, Seg } from '../registers.js';
import { checkPort } from '../task-state.js';
import { DataPending } from '../traps.js';
import { SvmExitCode } from '../types.js';

type ElementSize = 1 | 2 | 4 | 8;

/** The registers of a string instruction, as wide as its address size. */
class Pointers {
  private readonly gpr: Int32Array;
  private readonly gpr16: Uint16Array;

  constructor(
    private readonly core: Core,
    private readonly size: 16 | 32 | 64,
  ) {
    this.gpr = core.gpr;
    this.gpr16 = core.state.gpr16;
  }

  /** The linear address that a pointer register gives; the high half is in `memory.hi`. */
  address(register: number, segment: number, size: number, write: boolean): number {
    if (this.size === 16) return this.core.dataAddress(segment, this.gpr16[4 * register], 0, size, write);
    return this.core.dataAddress(segment, this.gpr[2 * register], this.size === 64 ? this.gpr[2 * register + 1] : 0, size, write);
  }

  /** Adds a small number to a register. */
  add(register: number, delta: number): void {
    const { gpr } = this;
    const at = 2 * register;
    if (this.size === 16) {
      this.gpr16[2 * at] += delta;
      return;
    }
    const before = gpr[at];
    gpr[at] = before + delta;
    if (this.size === 32) {
      gpr[at + 1] = 0;
      return;
    }
    const after = gpr[at] >>> 0;
    if (delta >= 0 ? after < before >>> 0 : after > before >>> 0) gpr[at + 1] += delta >= 0 ? 1 : -1;
  }

  countIsZero(): boolean {
    if (this.size === 16) return this.gpr16[4 * Gpr.RCX] === 0;
    const low = this.gpr[2 * Gpr.RCX];
    return this.size === 32 ? low === 0 : (low | this.gpr[2 * Gpr.RCX + 1]) === 0;
  }

  /** RCX as kvm's emulator takes it for a number of elements: 32 bits of it. */
  count32(): number {
    return this.size === 16 ? this.gpr16[4 * Gpr.RCX] : this.gpr[2 * Gpr.RCX] >>> 0;
  }
}

/** Bytes from one element to the next. */
const step = (core: Core, size: number): number => ((core.flags.control & (1 << 10)) !== 0 ? -size : size);

/**
 * Whether a repeated instruction that has come to RCX = 0 is over. Under emulation it is not: as in kvm's
 * `x86_emulate_insn`, RIP stays on it, and only the next look at it finds nothing left to do.
 */
const isOver = (core: Core, pointers: Pointers): boolean => core.memory.bus === null && pointers.countIsZero();

/**
 * Runs `once` for each element. RIP stays on the instruction until all is done, so that a fault or an interrupt
 * between elements resumes there.
 *
 * @param goOn for CMPS and SCAS: whether the flags allow another element
 */
function repeat(core: Core, instruction: Instruction, pointers: Pointers, once: Operation, goOn?: () => boolean): Compiled {
  if (instruction.repeat === 'none') return next(once);
  const { state } = core;
  const { ripLo, ripHi, nextLo, nextHi } = instruction;
  return branch(() => {
    state.ripLo = ripLo;
    state.ripHi = ripHi;
    let done = pointers.countIsZero();
    for (let left = core.repeatLimit; !done && left > 0; left--) {
      once();
      pointers.add(Gpr.RCX, -1);
      if (goOn !== undefined && !goOn()) done = true;
      else if (pointers.countIsZero()) {
        done = isOver(core, pointers);
        break;
      }
      if (core.end === 0) break;
    }
    if (!done) return;
    state.ripLo = nextLo;
    state.ripHi = nextHi;
  });
}

const load = (core: Core, size: ElementSize, lo: number): number => {
  const { memory } = core;
  switch (size) {
    case 1:
      return memory.load8(lo, memory.hi);
    case 2:
      return memory.load16(lo, memory.hi);
    case 4:
      return memory.load32(lo, memory.hi);
    case 8:
      return memory.load64(lo, memory.hi);
  }
};

const store = (core: Core, size: ElementSize, lo: number, valueLo: number, valueHi: number): void => {
  const { memory } = core;
  switch (size) {
    case 1:
      memory.store8(lo, memory.hi, valueLo);
      break;
    case 2:
      memory.store16(lo, memory.hi, valueLo);
      break;
    case 4:
      memory.store32(lo, memory.hi, valueLo);
      break;
    case 8:
      memory.store64(lo, memory.hi, valueLo, valueHi);
      break;
  }
};

const move =
  (size: ElementSize) =>
  (core: Core, instruction: Instruction): Compiled => {
    const pointers = new Pointers(core, instruction.addressSize);
    return repeat(core, instruction, pointers, () => {
      const lo = load(core, size, pointers.address(Gpr.RSI, instruction.stringSegment, size, false));
      const hi = core.memory.dataHi;
      store(core, size, pointers.address(Gpr.RDI, Seg.ES, size, true), lo, hi);
      const by = step(core, size);
      pointers.add(Gpr.RSI, by);
      pointers.add(Gpr.RDI, by);
    });
  };

const storeString =
  (size: ElementSize) =>
  (core: Core, instruction: Instruction): Compiled => {
    const pointers = new Pointers(core, instruction.addressSize);
    const { gpr } = core;
    return repeat(core, instruction, pointers, () => {
      store(core, size, pointers.address(Gpr.RDI, Seg.ES, size, true), gpr[0], gpr[1]);
      pointers.add(Gpr.RDI, step(core, size));
    });
  };

const loadString =
  (size: ElementSize) =>
  (core: Core, instruction: Instruction): Compiled => {
    const pointers = new Pointers(core, instruction.addressSize);
    const { gpr } = core;
    const { gpr8, gpr16 } = core.state;
    return repeat(core, instruction, pointers, () => {
      const lo = load(core, size, pointers.address(Gpr.RSI, instruction.stringSegment, size, false));
      if (size === 1) gpr8[0] = lo;
      else if (size === 2) gpr16[0] = lo;
      else {
        gpr[0] = lo;
        gpr[1] = size === 8 ? core.memory.dataHi : 0;
      }
      pointers.add(Gpr.RSI, step(core, size));
    });
  };

/** Sets the flags of left - right. */
function compare(core: Core, size: ElementSize, leftLo: number, leftHi: number, rightLo: number, rightHi: number): void {
  if (size === 8) core.alu64.binary.Sub(leftLo, leftHi, rightLo, rightHi);
  else core.alu[size].binary.Sub(leftLo, rightLo);
}

const whileFlags = (core: Core, instruction: Instruction): (() => boolean) => {
  const wanted = instruction.repeat === 'repe';
  return () => (core.flags.zero === 0) === wanted;
};

const compareStrings =
  (size: ElementSize) =>
  (core: Core, instruction: Instruction): Compiled => {
    const pointers = new Pointers(core, instruction.addressSize);
    const once = (): void => {
      const leftLo = load(core, size, pointers.address(Gpr.RSI, instruction.stringSegment, size, false));
      const leftHi = core.memory.dataHi;
      const rightLo = load(core, size, pointers.address(Gpr.RDI, Seg.ES, size, false));
      compare(core, size, leftLo, leftHi, rightLo, core.memory.dataHi);
      const by = step(core, size);
      pointers.add(Gpr.RSI, by);
      pointers.add(Gpr.RDI, by);
    };
    return repeat(core, instruction, pointers, once, whileFlags(core, instruction));
  };

const scanString =
  (size: ElementSize) =>
  (core: Core, instruction: Instruction): Compiled => {
    const pointers = new Pointers(core, instruction.addressSize);
    const { gpr } = core;
    const once = (): void => {
      const lo = load(core, size, pointers.address(Gpr.RDI, Seg.ES, size, false));
      compare(core, size, gpr[0], gpr[1], lo, core.memory.dataHi);
      pointers.add(Gpr.RDI, step(core, size));
    };
    return repeat(core, instruction, pointers, once, whileFlags(core, instruction));
  };

/** INS and OUTS outside emulation are an exit: the kernel has them emulated. */
function exitForPort(core: Core, direction: 'in' | 'out', size: 1 | 2 | 4): never {
  const port = core.gpr[2 * Gpr.RDX] & 0xffff;
  return core.intercept(SvmExitCode.IOIO, { kind: 'io', direction, port, size, string: true, value: 0 });
}

/** Bytes that one batch of REP INS may have: kvm's read-ahead buffer. */
const INPUT_BATCH = 1024;

/**
 * INS. A repeated one asks the bus for a batch of elements at once, as many as kvm's `pio_in_emulated` reads ahead: up to the
 * number of *bytes* that are left in the page of RDI, counted as elements. Forwards it stores all of them in one iteration,
 * backwards one.
 */
const inputString =
  (size: 1 | 2 | 4) =>
  (core: Core, instruction: Instruction): Compiled => {
    const { memory, state } = core;
    const pointers = new Pointers(core, instruction.addressSize);
    const { ripLo, ripHi, nextLo, nextHi } = instruction;
    const repeated = instruction.repeat !== 'none';
    return branch(() => {
      state.ripLo = nextLo;
      state.ripHi = nextHi;
      if (repeated && pointers.countIsZero()) return;
      const port = core.gpr[2 * Gpr.RDX] & 0xffff;
      checkPort(core, port, size);
      if (memory.bus === null) exitForPort(core, 'in', size);
      const by = step(core, size);
      const offset = core.gpr[2 * Gpr.RDI] & 0xfff;
      const inPage = by < 0 ? offset : 4096 - offset;
      const wanted = repeated ? pointers.count32() : 1;
      const count = Math.max(1, Math.min(inPage, INPUT_BATCH / size, wanted));
      const data = memory.bus.readPort(port, size, count, by > 0);
      if (data === null) throw new DataPending();
      const { length } = data;
      memory.copyOut(pointers.address(Gpr.RDI, Seg.ES, length, true), memory.hi, length, data, 0);
      pointers.add(Gpr.RDI, by > 0 ? length : by);
      if (!repeated) return;
      pointers.add(Gpr.RCX, -length / size);
      if (isOver(core, pointers)) return;
      state.ripLo = ripLo;
      state.ripHi = ripHi;
    });
  };

/** OUTS, one element at a time. */
const outputString =
  (size: 1 | 2 | 4) =>
  (core: Core, instruction: Instruction): Compiled => {
    const { memory } = core;
    const pointers = new Pointers(core, instruction.addressSize);
    return repeat(core, instruction, pointers, () => {
      const port = core.gpr[2 * Gpr.RDX] & 0xffff;
      checkPort(core, port, size);
      if (memory.bus === null) exitForPort(core, 'out', size);
      const bytes = new Uint8Array(size);
      const at = pointers.address(Gpr.RSI, instruction.stringSegment, size, false);
      memory.copyIn(at, memory.hi, size, bytes, 0, false);
      memory.bus.writePort(port, size, bytes);
      pointers.add(Gpr.RSI, step(core, size));
    });
  };

/** IN with an immediate or DX. */
function input(core: Core, instruction: Instruction): Compiled {
  return portAccess(core, instruction, 'in');
}

function output(core: Core, instruction: Instruction): Compiled {
  return portAccess(core, instruction, 'out');
}

function portAccess(core: Core, instruction: Instruction, direction: 'in' | 'out'): Compiled {
  const data = instruction.operands[direction === 'in' ? 0 : 1];
  const where = instruction.operands[direction === 'in' ? 1 : 0];
  const size = data?.kind === 'gpr' && data.size !== 8 ? data.size : 1;
  const fixed = where?.kind === 'immediate' ? where.lo & 0xff : null;
  const mask = size === 4 ? -1 : (1 << (8 * size)) - 1;
  return next(() => {
    const port = fixed ?? core.gpr[2 * Gpr.RDX] & 0xffff;
    checkPort(core, port, size);
    const value = direction === 'out' ? (core.gpr[0] & mask) >>> 0 : 0;
    core.intercept(SvmExitCode.IOIO, { kind: 'io', direction, port, size, string: false, value });
  });
}

/** MOVS, STOS, LODS, CMPS, SCAS, INS, OUTS with their repetitions, and IN and OUT. */
export const strings: InstructionGroup = {
  Movsb: move(1),
  Movsw: move(2),
  Movsd: move(4),
  Movsq: move(8),
  Stosb: storeString(1),
  Stosw: storeString(2),
  Stosd: storeString(4),
  Stosq: storeString(8),
  Lodsb: loadString(1),
  Lodsw: loadString(2),
  Lodsd: loadString(4),
  Lodsq: loadString(8),
  Cmpsb: compareStrings(1),
  Cmpsw: compareStrings(2),
  Cmpsd: compareStrings(4),
  Cmpsq: compareStrings(8),
  Scasb: scanString(1),
  Scasw: scanString(2),
  Scasd: scanString(4),
  Scasq: scanString(8),
  Insb: inputString(1),
  Insw: inputString(2),
  Insd: inputString(4),
  Outsb: outputString(1),
  Outsw: outputString(2),
  Outsd: outputString(4),
  In: input,
  Out: output,
};
