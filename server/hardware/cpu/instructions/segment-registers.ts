import type { Core } from '../core.js';
import { type Compiled, end, type Instruction, type InstructionGroup, next } from '../instruction.js';
import { farPointerReader, gprAt, gprWriter, OutsideSubset, operandAt, reader, sizeOf, writer } from '../operands.js';
import { Attr, Cr4, Seg, SystemType, Vector } from '../registers.js';
import { type Descriptor, dplOf, isNull, loadLdt, loadSegment, loadTaskRegister, readDescriptor } from '../segmentation.js';
import { GuestFault } from '../traps.js';

/** MOV SS and POP SS hold off interrupts (and debug traps) until the next instruction has been done. */
export function shadowAfterStackSegment(core: Core): void {
  core.state.interruptShadow = 'mov-ss';
  core.attention = true;
}

/** MOV Sreg, r/m. */
export function moveToSegment(core: Core, instruction: Instruction, segment: number): Compiled {
  if (segment === Seg.CS) {
    return end(() => {
      throw new GuestFault(Vector.UD, null);
    });
  }
  const read = reader(core, instruction, 1, operandAt(instruction, 1).kind === 'memory' ? 2 : sizeOf(instruction, 1));
  return end(() => {
    loadSegment(core, segment, read() & 0xffff);
    if (segment === Seg.SS) shadowAfterStackSegment(core);
  });
}

/** MOV r/m, Sreg: memory takes 16 bits, a register is zero-extended. */
export function moveFromSegment(core: Core, instruction: Instruction, segment: number): Compiled {
  const write = writer(core, instruction, 0);
  const { selector } = core.state;
  return next(() => write(selector[segment], 0));
}

/** LDS, LES, LFS, LGS, LSS: offset, then selector. */
const loadFarPointer =
  (segment: number) =>
  (core: Core, instruction: Instruction): Compiled => {
    const target = gprAt(instruction, 0);
    if (target.size === 1) throw new OutsideSubset(instruction.code);
    const read = farPointerReader(core, instruction, 1, target.size);
    const write = gprWriter(core, target);
    return end(() => {
      const { selector, lo, hi } = read();
      loadSegment(core, segment, selector);
      write(lo, hi);
      if (segment === Seg.SS) shadowAfterStackSegment(core);
    });
  };

const requireProtectedMode = (core: Core): void => {
  if (!core.protectedMode) throw new GuestFault(Vector.UD, null);
};

/** #GP(0) where CR4.UMIP keeps user code from looking at system registers. */
export function requireNoUmip(core: Core): void {
  if (core.cpl !== 0 && (core.state.cr4Lo & Cr4.UMIP) !== 0) throw new GuestFault(Vector.GP, 0);
}

const loadSystemSegment =
  (load: (core: Core, selector: number) => void) =>
  (core: Core, instruction: Instruction): Compiled => {
    const read = reader(core, instruction, 0, sizeOf(instruction, 0));
    return next(() => {
      requireProtectedMode(core);
      core.requirePrivilege();
      load(core, read() & 0xffff);
    });
  };

const storeSystemSegment =
  (segment: number) =>
  (core: Core, instruction: Instruction): Compiled => {
    const write = writer(core, instruction, 0);
    return next(() => {
      requireProtectedMode(core);
      requireNoUmip(core);
      write(core.state.selector[segment], 0);
    });
  };

/** The descriptor of a selector that VERR, VERW, LAR and LSL ask about, or null where they clear ZF. */
function lookUp(core: Core, selector: number): Descriptor | null {
  if (isNull(selector)) return null;
  let descriptor: Descriptor;
  try {
    descriptor = readDescriptor(core, selector);
  } catch (trap) {
    if (trap instanceof GuestFault && trap.vector === Vector.GP) return null;
    throw trap;
  }
  const { attributes } = descriptor;
  const conforming = (attributes & (Attr.S | Attr.CODE | Attr.EXPAND_DOWN)) === (Attr.S | Attr.CODE | Attr.EXPAND_DOWN);
  if (!conforming && dplOf(attributes) < Math.max(core.cpl, selector & 3)) return null;
  return descriptor;
}

const verify =
  (write: boolean) =>
  (core: Core, instruction: Instruction): Compiled => {
    const read = reader(core, instruction, 0, sizeOf(instruction, 0));
    return next(() => {
      requireProtectedMode(core);
      const descriptor = lookUp(core, read() & 0xffff);
      const attributes = descriptor?.attributes ?? 0;
      const code = (attributes & Attr.CODE) !== 0;
      const allowed = (attributes & Attr.WRITE) !== 0 ? !write || !code : !write && !code;
      core.flags.setZero((attributes & Attr.S) !== 0 && allowed ? 1 : 0);
    });
  };

/** System descriptor types that LAR and LSL accept, outside long mode and in it. */
const LAR_TYPES: readonly number[] = [1, 2, 3, 4, 5, 9, 11, 12];
const LAR_TYPES_LONG: readonly number[] = [2, 9, 11, 12];
const LSL_TYPES: readonly number[] = [1, 2, 3, 9, 11];
const LSL_TYPES_LONG: readonly number[] = [SystemType.LDT, SystemType.TSS_AVAILABLE, SystemType.TSS_BUSY];

const loadAttributes =
  (limit: boolean) =>
  (core: Core, instruction: Instruction): Compiled => {
    const read = reader(core, instruction, 1, sizeOf(instruction, 1));
    const write = gprWriter(core, gprAt(instruction, 0));
    return next(() => {
      requireProtectedMode(core);
      const descriptor = lookUp(core, read() & 0xffff);
      const long = core.state.longMode;
      const types = limit ? (long ? LSL_TYPES_LONG : LSL_TYPES) : long ? LAR_TYPES_LONG : LAR_TYPES;
      const known =
        descriptor !== null && ((descriptor.attributes & Attr.S) !== 0 || types.includes(descriptor.attributes & Attr.TYPE));
      core.flags.setZero(known ? 1 : 0);
      if (known) write(limit ? descriptor.limit | 0 : descriptor.hi & 0x00ffff00, 0);
    });
  };

/** Segment registers, LDTR and TR, and the instructions that ask about a selector. */
export const segmentRegisters: InstructionGroup = {
  Lds: loadFarPointer(Seg.DS),
  Les: loadFarPointer(Seg.ES),
  Lfs: loadFarPointer(Seg.FS),
  Lgs: loadFarPointer(Seg.GS),
  Lss: loadFarPointer(Seg.SS),
  Lldt: loadSystemSegment(loadLdt),
  Ltr: loadSystemSegment(loadTaskRegister),
  Sldt: storeSystemSegment(Seg.LDTR),
  Str: storeSystemSegment(Seg.TR),
  Verr: verify(false),
  Verw: verify(true),
  Lar: loadAttributes(false),
  Lsl: loadAttributes(true),
};
