import type { Core } from './core.js';
import { enterInnerRing, taskSwitch } from './far-transfer.js';
import { Rflags } from './flags.js';
import type { Instruction } from './instruction.js';
import { atomically } from './privilege.js';
import { Attr, Seg, SystemType, Vector } from './registers.js';
import { type Descriptor, dplOf, isNull, readDescriptor, setCodeSegment, setRealSegment } from './segmentation.js';
import { innerStack } from './task-state.js';
import { GuestFault } from './traps.js';
import type { EventInfo } from './types.js';

/** Bits of an error code that names a selector or a vector. */
const ErrorBit = { EXTERNAL: 1, IDT: 2 } as const;

/** Exceptions that make a double fault of a second one (APM volume 2, 8.2.9). */
const CONTRIBUTORY: readonly number[] = [Vector.DE, Vector.TS, Vector.NP, Vector.SS, Vector.GP, Vector.VC];

/** Exceptions that report the instruction after the one that caused them. */
const TRAPS: readonly number[] = [Vector.DB, Vector.BP, Vector.OF];

const isContributory = (vector: number): boolean => CONTRIBUTORY.includes(vector);

/**
 * The exception of an instruction: a non-canonical address is #SS where the stack was meant. Undefined: it could not be fetched.
 */
export function faultVector(fault: GuestFault, instruction: Instruction | undefined): number {
  if (!fault.nonCanonical || instruction === undefined) return fault.vector;
  const implicit =
    /^(Push|Pop|Call|Ret|Enter|Leave|Iret)/.test(instruction.mnemonic) && instruction.operands[0]?.kind !== 'memory';
  const explicit = instruction.operands.some((operand) => operand.kind === 'memory' && operand.segment === Seg.SS);
  return implicit || explicit ? Vector.SS : fault.vector;
}

/** What follows when delivering `first` raises `second`: another event, or a shutdown. */
export function combineFaults(first: EventInfo, second: GuestFault): EventInfo | 'shutdown' {
  const exception: EventInfo = { type: 'exception', vector: second.vector, errorCode: second.errorCode };
  if (first.type !== 'exception') return exception;
  if (first.vector === Vector.DF) return 'shutdown';
  const doubled =
    (isContributory(first.vector) && isContributory(second.vector)) ||
    (first.vector === Vector.PF && (second.vector === Vector.PF || isContributory(second.vector)));
  return doubled ? { type: 'exception', vector: Vector.DF, errorCode: 0 } : exception;
}

/**
 * Takes an event through the IVT or IDT: RIP is what the handler returns to. Throws what stops the delivery, with the
 * state as before.
 */
export function deliverEvent(core: Core, event: EventInfo): void {
  if (!core.protectedMode) {
    deliverReal(core, event.vector);
    return;
  }
  try {
    deliverThroughGate(core, event);
  } catch (trap) {
    if (trap instanceof GuestFault && trap.errorCode !== null && trap.vector !== Vector.PF && event.type !== 'software') {
      throw new GuestFault(trap.vector, trap.errorCode | ErrorBit.EXTERNAL);
    }
    throw trap;
  }
}

function deliverReal(core: Core, vector: number): void {
  const { state, memory, flags } = core;
  if (4 * vector + 3 > state.idtLimit) throw new GuestFault(Vector.GP, 4 * vector + ErrorBit.IDT);
  const entry = memory.systemLoad32((state.idtBaseLo + 4 * vector) | 0, 0);
  const image = flags.value;
  atomically(core, () => {
    core.push16(image);
    core.push16(state.selector[Seg.CS]);
    core.push16(state.ripLo);
    setRealSegment(core, Seg.CS, entry >>> 16);
    state.ripLo = entry & 0xffff;
    state.ripHi = 0;
    core.setFlags(0, Rflags.IF | Rflags.TF | Rflags.AC | Rflags.RF);
  });
}

interface Gate {
  readonly selector: number;
  readonly lo: number;
  readonly hi: number;
  readonly ist: number;
  /** Interrupt gates clear IF, trap gates do not. */
  readonly clearsInterrupts: boolean;
  /** Of what is pushed, bytes. */
  readonly size: 2 | 4 | 8;
}

function readGate(core: Core, event: EventInfo): Gate {
  const { state, memory } = core;
  const long = state.longMode;
  const entrySize = long ? 16 : 8;
  const error = 8 * event.vector + ErrorBit.IDT;
  if (entrySize * event.vector + entrySize - 1 > state.idtLimit) throw new GuestFault(Vector.GP, error);
  const atLo = (state.idtBaseLo + entrySize * event.vector) | 0;
  const atHi = long ? (state.idtBaseHi + (atLo >>> 0 < state.idtBaseLo >>> 0 ? 1 : 0)) | 0 : 0;
  const lo = memory.systemLoad64(atLo, atHi);
  const hi = memory.dataHi;
  const type = (hi >> 8) & 0x1f;
  if (type === SystemType.TASK_GATE && !long) throw taskSwitch();
  const wide = type === SystemType.INTERRUPT_GATE || type === SystemType.TRAP_GATE;
  const narrow = type === SystemType.INTERRUPT_GATE16 || type === SystemType.TRAP_GATE16;
  if (!wide && (long || !narrow)) throw new GuestFault(Vector.GP, error);
  if (event.type === 'software' && ((hi >> 13) & 3) < core.cpl) throw new GuestFault(Vector.GP, error);
  if ((hi & (1 << 15)) === 0) throw new GuestFault(Vector.NP, error);
  const upperLo = (atLo + 8) | 0;
  return {
    selector: lo >>> 16,
    lo: (lo & 0xffff) | (wide ? hi & 0xffff0000 : 0),
    hi: long ? memory.systemLoad32(upperLo, (atHi + (upperLo >>> 0 < atLo >>> 0 ? 1 : 0)) | 0) : 0,
    ist: long ? hi & 7 : 0,
    clearsInterrupts: (type & 1) === 0,
    size: long ? 8 : wide ? 4 : 2,
  };
}

function deliverThroughGate(core: Core, event: EventInfo): void {
  const gate = readGate(core, event);
  if (isNull(gate.selector)) throw new GuestFault(Vector.GP, 0);
  const code = readDescriptor(core, gate.selector);
  const { attributes } = code;
  const selectorError = gate.selector & 0xfffc;
  const isCode = (attributes & (Attr.S | Attr.CODE)) === (Attr.S | Attr.CODE);
  if (!isCode || dplOf(attributes) > core.cpl) throw new GuestFault(Vector.GP, selectorError);
  if (core.state.longMode && (attributes & (Attr.L | Attr.DB)) !== Attr.L) throw new GuestFault(Vector.GP, selectorError);
  if ((attributes & Attr.P) === 0) throw new GuestFault(Vector.NP, selectorError);
  if (!core.state.longMode && gate.lo >>> 0 > code.limit) throw new GuestFault(Vector.GP, 0);
  if (!core.memory.isCanonical(gate.lo, gate.hi)) throw new GuestFault(Vector.GP, 0);
  atomically(core, () => enterHandler(core, event, gate, code));
}

function enterHandler(core: Core, event: EventInfo, gate: Gate, code: Descriptor): void {
  const { state, flags } = core;
  const conforming = (code.attributes & Attr.EXPAND_DOWN) !== 0;
  const inner = !conforming && dplOf(code.attributes) < core.cpl;
  const cpl = inner ? dplOf(code.attributes) : core.cpl;
  const oldCs = state.selector[Seg.CS];
  const oldSs = state.selector[Seg.SS];
  const rspLo = core.gpr[8];
  const rspHi = core.gpr[9];
  const isFault = event.type === 'exception' && !TRAPS.includes(event.vector);
  const image = flags.value | (isFault ? Rflags.RF : 0);
  if (inner) {
    enterInnerRing(core, cpl, gate.selector, code, gate.ist);
  } else {
    if (gate.ist > 0) {
      const stack = innerStack(core, cpl, gate.ist);
      core.setStackPointer(stack.lo, stack.hi);
    }
    setCodeSegment(core, gate.selector, code, cpl);
  }
  if (state.longMode) core.setStackPointer(core.gpr[8] & ~0xf, core.gpr[9]);
  if (inner || state.longMode) {
    core.push(gate.size, oldSs, 0);
    core.push(gate.size, rspLo, rspHi);
  }
  core.push(gate.size, image, 0);
  core.push(gate.size, oldCs, 0);
  core.push(gate.size, state.ripLo, state.ripHi);
  if (event.errorCode !== null) core.push(gate.size, event.errorCode, 0);
  state.ripLo = gate.lo;
  state.ripHi = gate.hi;
  core.setFlags(0, Rflags.TF | Rflags.NT | Rflags.RF | Rflags.VM | (gate.clearsInterrupts ? Rflags.IF : 0));
}
