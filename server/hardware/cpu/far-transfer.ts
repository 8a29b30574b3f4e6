import type { Core } from './core.js';
import { Rflags } from './flags.js';
import { atomically, writableFlags } from './privilege.js';
import { Attr, Seg, SystemType, Vector } from './registers.js';
import {
  checkCodeSegment,
  type Descriptor,
  dplOf,
  dropInnerSegments,
  isNull,
  readDescriptor,
  readStackDescriptor,
  readUpperBase,
  setCodeSegment,
  setNullSegment,
  setRealSegment,
  setSegmentRegister,
} from './segmentation.js';
import { innerStack } from './task-state.js';
import { GuestFault, UnsupportedInstruction } from './traps.js';

const selectorFault = (selector: number): GuestFault => new GuestFault(Vector.GP, selector & 0xfffc);

/** Where a far transfer leads. */
interface Target {
  readonly selector: number;
  readonly lo: number;
  readonly hi: number;
}

/** RIP has to lie in the code segment that a transfer is about to load. */
function checkTarget(core: Core, descriptor: Descriptor, lo: number, hi: number): void {
  const long = core.state.longMode && (descriptor.attributes & Attr.L) !== 0;
  if (long ? !core.memory.isCanonical(lo, hi) : hi !== 0 || lo >>> 0 > descriptor.limit) throw new GuestFault(Vector.GP, 0);
}

/** The limit of the code segment holds in real mode too, and no far transfer changes it there. */
function checkRealTarget(core: Core, lo: number): void {
  if (lo >>> 0 > core.state.limit[Seg.CS]) throw new GuestFault(Vector.GP, 0);
}

function setRip(core: Core, lo: number, hi: number): void {
  core.state.ripLo = lo;
  core.state.ripHi = hi;
}

/** Task switches are outside the subset. */
export function taskSwitch(): UnsupportedInstruction {
  return new UnsupportedInstruction();
}

/** JMP FAR. */
export function farJump(core: Core, target: Target): void {
  if (!core.protectedMode) {
    checkRealTarget(core, target.lo);
    setRealSegment(core, Seg.CS, target.selector);
    setRip(core, target.lo, 0);
    return;
  }
  if (isNull(target.selector)) throw new GuestFault(Vector.GP, 0);
  const descriptor = readDescriptor(core, target.selector);
  if ((descriptor.attributes & Attr.S) === 0) {
    const gate = readCallGate(core, target.selector, descriptor);
    const code = readDescriptor(core, gate.selector);
    checkCodeSegment(core, gate.selector & ~3, code, 'jump');
    checkTarget(core, code, gate.lo, gate.hi);
    setCodeSegment(core, gate.selector, code, core.cpl);
    setRip(core, gate.lo, gate.hi);
    return;
  }
  checkCodeSegment(core, target.selector, descriptor, 'jump');
  checkTarget(core, descriptor, target.lo, target.hi);
  setCodeSegment(core, target.selector, descriptor, core.cpl);
  setRip(core, target.lo, target.hi);
}

/**
 * CALL FAR, direct, indirect and through a call gate.
 *
 * @param size of the pushed selector and return address, bytes
 */
export function farCall(core: Core, target: Target, size: number, returnLo: number, returnHi: number): void {
  const oldSelector = core.state.selector[Seg.CS];
  if (!core.protectedMode) {
    core.memory.probeWrite(core.stackAddress(-2 * size, size, true), 0, size);
    checkRealTarget(core, target.lo);
    core.push(size, oldSelector, 0);
    core.push(size, returnLo, 0);
    setRealSegment(core, Seg.CS, target.selector);
    setRip(core, target.lo, 0);
    return;
  }
  if (isNull(target.selector)) throw new GuestFault(Vector.GP, 0);
  const descriptor = readDescriptor(core, target.selector);
  if ((descriptor.attributes & Attr.S) === 0) {
    callThroughGate(core, target.selector, descriptor, returnLo, returnHi);
    return;
  }
  checkCodeSegment(core, target.selector, descriptor, 'jump');
  checkTarget(core, descriptor, target.lo, target.hi);
  pushReturn(core, size, oldSelector, returnLo, returnHi);
  setCodeSegment(core, target.selector, descriptor, core.cpl);
  setRip(core, target.lo, target.hi);
}

function pushReturn(core: Core, size: number, selector: number, lo: number, hi: number): void {
  const second = core.stackAddress(-2 * size, size, true);
  core.memory.probeWrite(second, core.memory.hi, size);
  core.push(size, selector, 0);
  core.push(size, lo, hi);
}

interface CallGate extends Target {
  readonly size: 2 | 4 | 8;
  readonly parameters: number;
}

function readCallGate(core: Core, selector: number, descriptor: Descriptor): CallGate {
  const type = descriptor.attributes & Attr.TYPE;
  const long = core.state.longMode;
  if (!long && (type === SystemType.TASK_GATE || type === SystemType.TSS_AVAILABLE || type === SystemType.TSS16_AVAILABLE)) {
    throw taskSwitch();
  }
  const wide = type === SystemType.CALL_GATE;
  if (!wide && (long || type !== SystemType.CALL_GATE16)) throw selectorFault(selector);
  if (dplOf(descriptor.attributes) < Math.max(core.cpl, selector & 3)) throw selectorFault(selector);
  if ((descriptor.attributes & Attr.P) === 0) throw new GuestFault(Vector.NP, selector & 0xfffc);
  const target = descriptor.lo >>> 16;
  if (isNull(target)) throw new GuestFault(Vector.GP, 0);
  return {
    selector: target,
    lo: (descriptor.lo & 0xffff) | (wide ? descriptor.hi & 0xffff0000 : 0),
    hi: long ? readUpperBase(core, descriptor) : 0,
    size: long ? 8 : wide ? 4 : 2,
    parameters: long ? 0 : descriptor.hi & 31,
  };
}

function callThroughGate(core: Core, selector: number, descriptor: Descriptor, returnLo: number, returnHi: number): void {
  const gate = readCallGate(core, selector, descriptor);
  const { state } = core;
  const code = readDescriptor(core, gate.selector);
  const { attributes } = code;
  const conforming = (attributes & Attr.EXPAND_DOWN) !== 0;
  if ((attributes & (Attr.S | Attr.CODE)) !== (Attr.S | Attr.CODE) || dplOf(attributes) > core.cpl)
    throw selectorFault(gate.selector);
  if (state.longMode && (attributes & (Attr.L | Attr.DB)) !== Attr.L) throw selectorFault(gate.selector);
  if ((attributes & Attr.P) === 0) throw new GuestFault(Vector.NP, gate.selector & 0xfffc);
  checkTarget(core, code, gate.lo, gate.hi);
  const oldSelector = state.selector[Seg.CS];
  if (conforming || dplOf(attributes) === core.cpl) {
    pushReturn(core, gate.size, oldSelector, returnLo, returnHi);
    setCodeSegment(core, gate.selector, code, core.cpl);
    setRip(core, gate.lo, gate.hi);
    return;
  }
  const oldSs = state.selector[Seg.SS];
  const oldRspLo = core.gpr[8];
  const oldRspHi = core.gpr[9];
  const parameters = Array.from({ length: gate.parameters }, (_, index) => core.peek(gate.size, gate.size * index));
  atomically(core, () => {
    enterInnerRing(core, dplOf(attributes), gate.selector, code);
    core.push(gate.size, oldSs, 0);
    core.push(gate.size, oldRspLo, oldRspHi);
    for (const parameter of parameters.reverse()) core.push(gate.size, parameter, 0);
    core.push(gate.size, oldSelector, 0);
    core.push(gate.size, returnLo, returnHi);
  });
  setRip(core, gate.lo, gate.hi);
}

/** Switches to the stack and the code segment of an inner ring. */
export function enterInnerRing(core: Core, cpl: number, selector: number, code: Descriptor, ist = 0): void {
  const stack = innerStack(core, cpl, ist);
  if (core.state.longMode) {
    core.state.selector[Seg.SS] = cpl;
    core.state.attributes[Seg.SS] = Attr.UNUSABLE | (cpl << Attr.DPL_SHIFT);
  } else {
    if (isNull(stack.selector)) throw new GuestFault(Vector.TS, 0);
    const descriptor = readStackDescriptor(core, stack.selector, cpl, Vector.TS);
    setSegmentRegister(core, Seg.SS, stack.selector, descriptor);
  }
  setCodeSegment(core, selector, code, cpl);
  core.setStackPointer(stack.lo, stack.hi);
}

/** RETF, also to an outer ring; `release` bytes of parameters go from both stacks. */
export function farReturn(core: Core, size: number, release: number): void {
  const lo = core.peek(size, 0);
  const { hi } = core;
  const selector = core.peek(size, size) & 0xffff;
  const offsetLo = size === 2 ? lo & 0xffff : lo;
  if (!core.protectedMode) {
    if (offsetLo >>> 0 > 0xffff) throw new GuestFault(Vector.GP, 0);
    core.addToStackPointer(2 * size + release);
    setRealSegment(core, Seg.CS, selector);
    setRip(core, offsetLo, 0);
    return;
  }
  if (isNull(selector)) throw new GuestFault(Vector.GP, 0);
  const descriptor = readDescriptor(core, selector);
  checkCodeSegment(core, selector, descriptor, 'return');
  checkTarget(core, descriptor, offsetLo, size === 8 ? hi : 0);
  const cpl = selector & 3;
  if (cpl === core.cpl) {
    core.addToStackPointer(2 * size + release);
    setCodeSegment(core, selector, descriptor, cpl);
  } else {
    const stackLo = core.peek(size, 2 * size + release);
    const stackHi = core.hi;
    const stackSelector = core.peek(size, 3 * size + release) & 0xffff;
    returnToOuterRing(core, selector, descriptor, stackSelector, stackLo, stackHi);
    core.addToStackPointer(release);
  }
  setRip(core, offsetLo, size === 8 ? hi : 0);
}

function returnToOuterRing(core: Core, selector: number, code: Descriptor, ss: number, rspLo: number, rspHi: number): void {
  const cpl = selector & 3;
  const toLong = core.state.longMode && (code.attributes & Attr.L) !== 0;
  const stack = isNull(ss) && toLong && cpl !== 3 ? null : readOuterStack(core, ss, cpl);
  atomically(core, () => {
    setCodeSegment(core, selector, code, cpl);
    loadOuterStack(core, ss, cpl, stack);
    core.setStackPointer(rspLo, rspHi);
    dropInnerSegments(core);
  });
}

function readOuterStack(core: Core, ss: number, cpl: number): Descriptor {
  if (isNull(ss)) throw new GuestFault(Vector.GP, 0);
  return readStackDescriptor(core, ss, cpl, Vector.GP);
}

function loadOuterStack(core: Core, ss: number, cpl: number, stack: Descriptor | null): void {
  if (stack !== null) {
    setSegmentRegister(core, Seg.SS, ss, stack);
    return;
  }
  setNullSegment(core, Seg.SS, ss);
  core.state.attributes[Seg.SS] = Attr.UNUSABLE | (cpl << Attr.DPL_SHIFT);
  core.deriveMode();
}

/** IRET in every mode but to virtual 8086 mode and from a nested task, which are outside the subset. */
export function interruptReturn(core: Core, size: number): void {
  const lo = core.peek(size, 0);
  const { hi } = core;
  const selector = core.peek(size, size) & 0xffff;
  const image = core.peek(size, 2 * size);
  const offsetLo = size === 2 ? lo & 0xffff : lo;
  const offsetHi = size === 8 ? hi : 0;
  if (!core.protectedMode) {
    if (offsetLo >>> 0 > core.state.limit[Seg.CS]) throw new GuestFault(Vector.GP, 0);
    core.addToStackPointer(3 * size);
    setRealSegment(core, Seg.CS, selector);
    setRip(core, offsetLo, 0);
    core.setFlags(image, writableFlags(core, size));
    core.state.nmiBlocked = false;
    return;
  }
  if ((core.flags.control & Rflags.NT) !== 0) throw core.state.longMode ? new GuestFault(Vector.GP, 0) : taskSwitch();
  if (!core.state.longMode && size === 4 && (image & Rflags.VM) !== 0 && core.cpl === 0) throw taskSwitch();
  if (isNull(selector)) throw new GuestFault(Vector.GP, 0);
  const descriptor = readDescriptor(core, selector);
  checkCodeSegment(core, selector, descriptor, 'return');
  checkTarget(core, descriptor, offsetLo, offsetHi);
  const flagsMask = writableFlags(core, size) | (size === 2 ? 0 : Rflags.RF);
  const cpl = selector & 3;
  if (cpl === core.cpl && !core.code64) {
    core.addToStackPointer(3 * size);
    setCodeSegment(core, selector, descriptor, cpl);
  } else {
    // 64-bit code always pops SS:RSP.
    const rspLo = core.peek(size, 3 * size);
    const rspHi = core.hi;
    const ss = core.peek(size, 4 * size) & 0xffff;
    returnToOuterRing(core, selector, descriptor, ss, rspLo, rspHi);
  }
  setRip(core, offsetLo, offsetHi);
  core.setFlags(image, flagsMask);
  core.state.nmiBlocked = false;
}
