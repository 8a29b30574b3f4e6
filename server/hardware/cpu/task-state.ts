import type { Core } from './core.js';
import { ioPrivilege } from './privilege.js';
import { Attr, Seg, SystemType, Vector } from './registers.js';
import { GuestFault } from './traps.js';

/** A stack that a task state segment names. */
export interface StackPointer {
  readonly selector: number;
  readonly lo: number;
  readonly hi: number;
}

/** The stack for an inner ring (or an IST entry), from the TSS. Source: APM volume 2, 12.2.4 and 12.2.5. */
export function innerStack(core: Core, cpl: number, ist: number): StackPointer {
  const { state, memory } = core;
  const selector = state.selector[Seg.TR] & 0xfffc;
  const type = state.attributes[Seg.TR] & Attr.TYPE;
  const check = (offset: number, size: number): void => {
    if (offset + size - 1 > state.limit[Seg.TR]) throw new GuestFault(Vector.TS, selector);
  };
  if (state.longMode) {
    const offset = ist > 0 ? 0x24 + 8 * (ist - 1) : 4 + 8 * cpl;
    check(offset, 8);
    const lo = loadTss(core, offset, 8);
    const hi = memory.dataHi;
    if (!memory.isCanonical(lo, hi)) throw new GuestFault(Vector.SS, 0);
    return { selector: cpl, lo, hi };
  }
  if (type === SystemType.TSS16_BUSY || type === SystemType.TSS16_AVAILABLE) {
    const offset = 2 + 4 * cpl;
    check(offset, 4);
    const word = loadTss(core, offset, 4);
    return { selector: word >>> 16, lo: word & 0xffff, hi: 0 };
  }
  const offset = 4 + 8 * cpl;
  check(offset, 8);
  const lo = loadTss(core, offset, 8);
  return { selector: memory.dataHi & 0xffff, lo, hi: 0 };
}

function loadTss(core: Core, offset: number, size: 4 | 8): number {
  const { state, memory } = core;
  const baseLo = state.baseLo[Seg.TR];
  const lo = (baseLo + offset) | 0;
  const hi = state.longMode ? (state.baseHi[Seg.TR] + (lo >>> 0 < baseLo >>> 0 ? 1 : 0)) | 0 : 0;
  return size === 8 ? memory.systemLoad64(lo, hi) : memory.systemLoad32(lo, hi);
}

/** #GP(0) unless CPL, IOPL or the TSS's permission bitmap let this code use `size` ports from `port`. */
export function checkPort(core: Core, port: number, size: number): void {
  if (!core.protectedMode || core.cpl <= ioPrivilege(core)) return;
  const { state } = core;
  const type = state.attributes[Seg.TR] & Attr.TYPE;
  const limit = state.limit[Seg.TR];
  const wide = type === SystemType.TSS_BUSY || type === SystemType.TSS_AVAILABLE;
  if (!wide || limit < 0x67) throw new GuestFault(Vector.GP, 0);
  const bitmap = loadTss(core, 0x64, 4) >>> 16;
  const byte = bitmap + (port >> 3);
  if (byte + 1 > limit) throw new GuestFault(Vector.GP, 0);
  const bits = (loadTss(core, byte, 4) & 0xffff) >> (port & 7);
  if ((bits & ((1 << size) - 1)) !== 0) throw new GuestFault(Vector.GP, 0);
}
