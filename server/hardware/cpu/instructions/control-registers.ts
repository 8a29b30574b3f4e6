import type { Core } from '../core.js';
import { DR6, DR7, Dr6, Dr7 } from '../debug-registers.js';
import { type Compiled, end, type Instruction, type InstructionGroup, next } from '../instruction.js';
import { gprAt, gprWriter, OutsideSubset, operandAt, reader, sizeOf, writer } from '../operands.js';
import { Attr, Cr0, Cr4, Efer, Seg, Vector } from '../registers.js';
import { GuestFault } from '../traps.js';
import { SvmExitCode } from '../types.js';
import { requireNoUmip } from './segment-registers.js';

const generalProtection = (): GuestFault => new GuestFault(Vector.GP, 0);

const CR0_VALID = Cr0.PE | Cr0.MP | Cr0.EM | Cr0.TS | Cr0.ET | Cr0.NE | Cr0.WP | Cr0.AM | Cr0.NW | Cr0.CD | Cr0.PG;
/** A change of these in CR4 changes what the TLB may hold. */
const CR4_PAGING = Cr4.PSE | Cr4.PAE | Cr4.PGE | Cr4.LA57 | Cr4.SMEP | Cr4.SMAP;

/** MOV CR0. Undefined bits are ignored. Source: APM volume 2, 3.1.1 and 14.6. */
function writeCr0(core: Core, lo: number, hi: number): void {
  const { state } = core;
  if (hi !== 0) throw generalProtection();
  const value = (lo & CR0_VALID) | Cr0.ET;
  if ((value & (Cr0.PG | Cr0.PE)) === Cr0.PG || (value & (Cr0.NW | Cr0.CD)) === Cr0.NW) throw generalProtection();
  const changed = value ^ state.cr0Lo;
  if ((changed & Cr0.PG) !== 0) switchPaging(core, (value & Cr0.PG) !== 0);
  state.cr0Lo = value;
  if ((changed & (Cr0.PG | Cr0.PE | Cr0.WP)) !== 0) core.flushTranslations();
  core.deriveMode();
  if (core.intercepts.writeTraps) core.exitAfter = { kind: 'write-trap', register: 'cr0' };
}

/** EFER.LMA follows CR0.PG. */
function switchPaging(core: Core, on: boolean): void {
  const { state } = core;
  const codeIsLong = (state.attributes[Seg.CS] & Attr.L) !== 0;
  if (on && (state.eferLo & Efer.LME) !== 0) {
    if ((state.cr4Lo & Cr4.PAE) === 0 || codeIsLong) throw generalProtection();
    state.eferLo |= Efer.LMA;
  } else if (!on && state.longMode) {
    if (codeIsLong) throw generalProtection();
    state.eferLo &= ~Efer.LMA;
  }
}

function writeCr3(core: Core, lo: number, hi: number): void {
  const { state } = core;
  if (state.longMode && core.memory.walker.hasReservedAddressBits(hi)) throw generalProtection();
  state.cr3Lo = lo;
  state.cr3Hi = state.longMode ? hi : 0;
  core.flushTranslations((state.cr4Lo & Cr4.PGE) !== 0);
}

function writeCr4(core: Core, lo: number, hi: number): void {
  const { state } = core;
  if (hi !== 0 || (lo & core.features.cr4Reserved) !== 0) throw generalProtection();
  const changed = lo ^ state.cr4Lo;
  if (state.longMode && ((lo & Cr4.PAE) === 0 || (changed & Cr4.LA57) !== 0)) throw generalProtection();
  state.cr4Lo = lo;
  if ((changed & CR4_PAGING) !== 0) core.flushTranslations();
  core.deriveMode();
  if (core.intercepts.writeTraps) core.exitAfter = { kind: 'write-trap', register: 'cr4' };
}

function writeCr8(core: Core, lo: number, hi: number): void {
  if (hi !== 0 || lo >>> 0 > 15) throw generalProtection();
  const previous = core.state.cr8Lo;
  core.state.cr8Lo = lo;
  if (core.intercepts.writeTraps) core.exitAfter = { kind: 'write-trap', register: 'cr8' };
  else if (core.intercepts.cr8Write && previous !== lo) core.exitAfter = { kind: 'cr8-write', previous };
}

/** MOV to and from CRn. */
export function moveControl(core: Core, instruction: Instruction): Compiled {
  const destination = operandAt(instruction, 0);
  const source = operandAt(instruction, 1);
  const { gpr, state } = core;
  const wide = instruction.bits === 64;
  if (destination.kind === 'control') {
    const at = 2 * gprAt(instruction, 1).index;
    const write = { 0: writeCr0, 2: writeCr2, 3: writeCr3, 4: writeCr4, 8: writeCr8 }[destination.index];
    if (write === undefined) return undefinedRegister();
    return end(() => {
      core.requirePrivilege();
      write(core, gpr[at], wide ? gpr[at + 1] : 0);
      core.attention = true;
    });
  }
  if (source.kind !== 'control') throw new OutsideSubset(instruction.code);
  const write = gprWriter(core, gprAt(instruction, 0));
  const read = {
    0: () => write(state.cr0Lo, 0),
    2: () => write(state.cr2Lo, state.cr2Hi),
    3: () => write(state.cr3Lo, state.cr3Hi),
    4: () => write(state.cr4Lo, 0),
    8: () => write(state.cr8Lo, 0),
  }[source.index];
  if (read === undefined) return undefinedRegister();
  return next(() => {
    core.requirePrivilege();
    read();
  });
}

function writeCr2(core: Core, lo: number, hi: number): void {
  core.state.cr2Lo = lo;
  core.state.cr2Hi = hi;
}

const undefinedRegister = (): Compiled =>
  end(() => {
    throw new GuestFault(Vector.UD, null);
  });

const DR6_FIXED = 0xffff0ff0 | 0;

/** MOV to and from DRn. DR4 and DR5 are DR6 and DR7 unless CR4.DE makes them undefined. */
export function moveDebug(core: Core, instruction: Instruction): Compiled {
  const first = operandAt(instruction, 0);
  const second = operandAt(instruction, 1);
  const { gpr, state } = core;
  const toDebug = first.kind === 'debug';
  const encoded = first.kind === 'debug' ? first.index : second.kind === 'debug' ? second.index : 8;
  if (encoded > 7) return undefinedRegister();
  const index = encoded === 4 || encoded === 5 ? encoded + 2 : encoded;
  const at = 2 * gprAt(instruction, toDebug ? 1 : 0).index;
  const wide = instruction.bits === 64;
  return end(() => {
    if (index !== encoded && (state.cr4Lo & Cr4.DE) !== 0) throw new GuestFault(Vector.UD, null);
    core.requirePrivilege();
    if (index === 7 && core.intercepts.nonAutomatic === 'vc' && core.intercepts.debugSwap !== true) {
      throw new GuestFault(Vector.VC, toDebug ? SvmExitCode.WRITE_DR7 : SvmExitCode.READ_DR7);
    }
    if ((state.dr[DR7] & Dr7.GD) !== 0) {
      state.dr[DR7] &= ~Dr7.GD;
      state.dr[DR6] |= Dr6.BD;
      throw new GuestFault(Vector.DB, null);
    }
    if (!toDebug) {
      gpr[at] = state.dr[2 * index];
      gpr[at + 1] = wide ? state.dr[2 * index + 1] : 0;
      return;
    }
    const hi = wide ? gpr[at + 1] : 0;
    if (index >= 6 && hi !== 0) throw generalProtection();
    const value = gpr[at];
    state.dr[2 * index] = index === 6 ? (value & 0xe00f) | DR6_FIXED : index === 7 ? (value & ~0xd000) | 0x400 : value;
    state.dr[2 * index + 1] = hi;
    core.attention = true;
  });
}

/** LMSW: PE can be set, not cleared. */
function loadMachineStatus(core: Core, instruction: Instruction): Compiled {
  const read = reader(core, instruction, 0, sizeOf(instruction, 0));
  const low = Cr0.PE | Cr0.MP | Cr0.EM | Cr0.TS;
  return end(() => {
    core.requirePrivilege();
    const { cr0Lo } = core.state;
    writeCr0(core, (cr0Lo & ~(low & ~Cr0.PE)) | (read() & low), 0);
  });
}

function storeMachineStatus(core: Core, instruction: Instruction): Compiled {
  const write = writer(core, instruction, 0);
  return next(() => {
    requireNoUmip(core);
    write(core.state.cr0Lo, 0);
  });
}

function clearTaskSwitched(core: Core): Compiled {
  return next(() => {
    core.requirePrivilege();
    core.state.cr0Lo &= ~Cr0.TS;
  });
}

/** Control registers by other names; MOV is in `data-movement`. */
export const controlRegisters: InstructionGroup = {
  Lmsw: loadMachineStatus,
  Smsw: storeMachineStatus,
  Clts: clearTaskSwitched,
};
