import type { Core } from './core.js';
import { Attr, Seg, SystemType, Vector } from './registers.js';
import { GuestFault } from './traps.js';

/** A descriptor as it lies in the GDT or LDT. */
export interface Descriptor {
  readonly lo: number;
  readonly hi: number;
  /** Linear address of its high half. */
  readonly hiAddressLo: number;
  readonly hiAddressHi: number;
  /** In the layout of `Attr`. */
  readonly attributes: number;
  readonly limit: number;
  readonly base: number;
}

export const dplOf = (attributes: number): number => (attributes >> Attr.DPL_SHIFT) & 3;
export const isNull = (selector: number): boolean => (selector & ~3) === 0;

const selectorFault = (vector: number, selector: number): GuestFault => new GuestFault(vector, selector & 0xfffc);

/** Reads the descriptor that a selector names; a selector beyond its table is `vector`(selector). */
export function readDescriptor(core: Core, selector: number, vector: number = Vector.GP): Descriptor {
  const { state, memory } = core;
  const offset = selector & 0xfff8;
  const local = (selector & 4) !== 0;
  const ldtUsable = (state.attributes[Seg.LDTR] & Attr.P) !== 0 && (state.attributes[Seg.LDTR] & Attr.UNUSABLE) === 0;
  const limit = local ? (ldtUsable ? state.limit[Seg.LDTR] : -1) : state.gdtLimit;
  if (offset + 7 > limit) throw selectorFault(vector, selector);
  const tableLo = local ? state.baseLo[Seg.LDTR] : state.gdtBaseLo;
  const tableHi = local ? state.baseHi[Seg.LDTR] : state.gdtBaseHi;
  const atLo = (tableLo + offset) | 0;
  const atHi = state.longMode ? (tableHi + (atLo >>> 0 < tableLo >>> 0 ? 1 : 0)) | 0 : 0;
  const lo = memory.systemLoad64(atLo, atHi);
  const hi = memory.dataHi;
  const hiAddressLo = (atLo + 4) | 0;
  const attributes = ((hi >> 8) & 0xff) | ((hi >> 12) & 0xf00);
  const rawLimit = (lo & 0xffff) | (hi & 0xf0000);
  return {
    lo,
    hi,
    hiAddressLo,
    hiAddressHi: atHi,
    attributes,
    limit: (attributes & Attr.G) !== 0 ? ((rawLimit << 12) | 0xfff) >>> 0 : rawLimit,
    base: (lo >>> 16) | ((hi & 0xff) << 16) | (hi & 0xff000000),
  };
}

/** The upper half of the base of a 16-byte descriptor (TSS, LDT, call gate in long mode). */
export function readUpperBase(core: Core, descriptor: Descriptor): number {
  const lo = (descriptor.hiAddressLo + 4) | 0;
  return core.memory.systemLoad32(lo, descriptor.hiAddressHi + (lo >>> 0 < descriptor.hiAddressLo >>> 0 ? 1 : 0));
}

/** Sets bits in the type of a descriptor in memory: accessed, or busy. */
function markDescriptor(core: Core, descriptor: Descriptor, bits: number): void {
  const value = descriptor.hi | (bits << 8);
  if (value !== descriptor.hi) core.memory.systemStore32(descriptor.hiAddressLo, descriptor.hiAddressHi, value);
}

/** Fills a segment register's hidden part. */
export function setSegmentRegister(core: Core, segment: number, selector: number, descriptor: Descriptor): void {
  const { state } = core;
  markDescriptor(core, descriptor, Attr.ACCESSED);
  state.selector[segment] = selector;
  state.baseLo[segment] = descriptor.base;
  state.baseHi[segment] = 0;
  state.limit[segment] = descriptor.limit;
  state.attributes[segment] = descriptor.attributes | Attr.ACCESSED;
  core.deriveMode();
}

/** A segment in real mode: only selector and base change. */
export function setRealSegment(core: Core, segment: number, selector: number): void {
  const { state } = core;
  state.selector[segment] = selector;
  state.baseLo[segment] = selector << 4;
  state.baseHi[segment] = 0;
  if (segment === Seg.CS) {
    state.attributes[Seg.CS] = Attr.P | Attr.S | Attr.CODE | Attr.WRITE | Attr.ACCESSED;
    state.limit[Seg.CS] = 0xffff;
  }
  core.deriveMode();
}

/**
 * Makes a data segment unusable, and clears its base and limit (NullSelectorClearsBase, CPUID 8000_0021h EAX[6]: Zen 3 and
 * later).
 */
export function setNullSegment(core: Core, segment: number, selector: number): void {
  const { state } = core;
  state.selector[segment] = selector;
  state.baseLo[segment] = 0;
  state.baseHi[segment] = 0;
  state.limit[segment] = 0;
  state.attributes[segment] = (state.attributes[segment] & (segment === Seg.SS ? Attr.DB : 0)) | Attr.UNUSABLE;
  if (segment === Seg.SS) state.attributes[segment] |= core.cpl << Attr.DPL_SHIFT;
  core.deriveMode();
}

/** MOV, POP, LDS and their kin: loads DS, ES, FS, GS or SS. Source: APM volume 2, 4.10 and MOV (segment registers). */
export function loadSegment(core: Core, segment: number, selector: number): void {
  if (!core.protectedMode) {
    setRealSegment(core, segment, selector);
    return;
  }
  if (segment === Seg.SS) {
    loadStackSegment(core, selector);
    return;
  }
  if (isNull(selector)) {
    setNullSegment(core, segment, selector);
    return;
  }
  const descriptor = readDescriptor(core, selector);
  const { attributes } = descriptor;
  const code = (attributes & Attr.CODE) !== 0;
  const conforming = code && (attributes & Attr.EXPAND_DOWN) !== 0;
  if ((attributes & Attr.S) === 0 || (code && (attributes & Attr.WRITE) === 0)) throw selectorFault(Vector.GP, selector);
  if (!conforming && dplOf(attributes) < Math.max(core.cpl, selector & 3)) throw selectorFault(Vector.GP, selector);
  if ((attributes & Attr.P) === 0) throw selectorFault(Vector.NP, selector);
  setSegmentRegister(core, segment, selector, descriptor);
}

function loadStackSegment(core: Core, selector: number): void {
  if (isNull(selector)) {
    if (!core.code64 || core.cpl === 3 || (selector & 3) !== core.cpl) throw new GuestFault(Vector.GP, 0);
    setNullSegment(core, Seg.SS, selector);
    return;
  }
  const descriptor = readStackDescriptor(core, selector, core.cpl, Vector.GP);
  setSegmentRegister(core, Seg.SS, selector, descriptor);
}

/** The checks of a stack segment for privilege `cpl`. */
export function readStackDescriptor(core: Core, selector: number, cpl: number, vector: number): Descriptor {
  const descriptor = readDescriptor(core, selector, vector);
  const { attributes } = descriptor;
  const writableData = (attributes & (Attr.S | Attr.CODE | Attr.WRITE)) === (Attr.S | Attr.WRITE);
  if (!writableData || (selector & 3) !== cpl || dplOf(attributes) !== cpl) throw selectorFault(vector, selector);
  if ((attributes & Attr.P) === 0) throw selectorFault(Vector.SS, selector);
  return descriptor;
}

/** LLDT. */
export function loadLdt(core: Core, selector: number): void {
  const { state } = core;
  if (isNull(selector)) {
    state.selector[Seg.LDTR] = selector;
    state.attributes[Seg.LDTR] = Attr.UNUSABLE;
    return;
  }
  if ((selector & 4) !== 0) throw selectorFault(Vector.GP, selector);
  const descriptor = readSystemDescriptor(core, selector);
  if ((descriptor.attributes & (Attr.S | Attr.TYPE)) !== SystemType.LDT) throw selectorFault(Vector.GP, selector);
  if ((descriptor.attributes & Attr.P) === 0) throw selectorFault(Vector.NP, selector);
  setSystemSegment(core, Seg.LDTR, selector, descriptor);
}

/** LTR: the descriptor becomes busy. */
export function loadTaskRegister(core: Core, selector: number): void {
  if (isNull(selector)) throw new GuestFault(Vector.GP, 0);
  if ((selector & 4) !== 0) throw selectorFault(Vector.GP, selector);
  const descriptor = readSystemDescriptor(core, selector);
  const type = descriptor.attributes & (Attr.S | Attr.TYPE);
  const available = type === SystemType.TSS_AVAILABLE || (type === SystemType.TSS16_AVAILABLE && !core.state.longMode);
  if (!available) throw selectorFault(Vector.GP, selector);
  if ((descriptor.attributes & Attr.P) === 0) throw selectorFault(Vector.NP, selector);
  markDescriptor(core, descriptor, 2);
  setSystemSegment(core, Seg.TR, selector, { ...descriptor, attributes: descriptor.attributes | 2 });
}

/** LDT and TSS descriptors take 16 bytes in long mode. */
function readSystemDescriptor(core: Core, selector: number): Descriptor {
  if (core.state.longMode && (selector & 0xfff8) + 15 > core.state.gdtLimit) throw selectorFault(Vector.GP, selector);
  return readDescriptor(core, selector);
}

function setSystemSegment(core: Core, segment: number, selector: number, descriptor: Descriptor): void {
  const { state } = core;
  const baseHi = state.longMode ? readUpperBase(core, descriptor) : 0;
  if (!core.memory.isCanonical(descriptor.base, baseHi)) throw selectorFault(Vector.GP, selector);
  state.selector[segment] = selector;
  state.baseLo[segment] = descriptor.base;
  state.baseHi[segment] = baseHi;
  state.limit[segment] = descriptor.limit;
  state.attributes[segment] = descriptor.attributes;
}

/**
 * The checks of a code segment that a far transfer names.
 *
 * @param requested CPL of the code that will run: the descriptor's own for a return, the current one for a jump
 */
export function checkCodeSegment(core: Core, selector: number, descriptor: Descriptor, transfer: 'jump' | 'return'): void {
  const { attributes } = descriptor;
  const rpl = selector & 3;
  const dpl = dplOf(attributes);
  const conforming = (attributes & Attr.EXPAND_DOWN) !== 0;
  const isCode = (attributes & (Attr.S | Attr.CODE)) === (Attr.S | Attr.CODE);
  if (!isCode) throw selectorFault(Vector.GP, selector);
  if (core.state.longMode && (attributes & (Attr.L | Attr.DB)) === (Attr.L | Attr.DB)) throw selectorFault(Vector.GP, selector);
  if (transfer === 'jump') {
    if (conforming ? dpl > core.cpl : dpl !== core.cpl || rpl > core.cpl) throw selectorFault(Vector.GP, selector);
  } else if (rpl < core.cpl || (conforming ? dpl > rpl : dpl !== rpl)) {
    throw selectorFault(Vector.GP, selector);
  }
  if ((attributes & Attr.P) === 0) throw selectorFault(Vector.NP, selector);
}

/** Loads CS from a checked descriptor, with `cpl` as the selector's RPL. SS.DPL carries the CPL. */
export function setCodeSegment(core: Core, selector: number, descriptor: Descriptor, cpl: number): void {
  setSegmentRegister(core, Seg.CS, (selector & ~3) | cpl, descriptor);
}

/** After a return to an outer ring: data segments that it must not see become null. */
export function dropInnerSegments(core: Core): void {
  const { state } = core;
  for (const segment of [Seg.ES, Seg.DS, Seg.FS, Seg.GS]) {
    const attributes = state.attributes[segment];
    const conforming = (attributes & (Attr.CODE | Attr.EXPAND_DOWN)) === (Attr.CODE | Attr.EXPAND_DOWN);
    if ((attributes & Attr.UNUSABLE) === 0 && !conforming && dplOf(attributes) < core.cpl) setNullSegment(core, segment, 0);
  }
}
