import {
  APIC,
  APIC_DEST_SHORTHAND,
  APIC_ICR_BUSY,
  APIC_ISR_NR,
  APIC_LVR_DIRECTED_EOI,
  APIC_LVT_MASKED,
  APIC_SPIV_APIC_ENABLED,
  APIC_SPIV_DIRECTED_EOI,
  APIC_VECTOR_MASK,
  LVT_ENTRIES,
  LVT_REGISTERS,
  LVT_WRITABLE,
} from './apic-registers.js';
import type { Lapic } from './lapic.js';

/** Registers that can be read, by offset / 16, in either mode. */
const READABLE: ReadonlySet<number> = new Set(
  [
    ...[APIC.ID, APIC.LVR, APIC.TASKPRI, APIC.PROCPRI, APIC.LDR, APIC.SPIV, APIC.ESR, APIC.ICR],
    ...[APIC.LVTT, APIC.LVTTHMR, APIC.LVTPC, APIC.LVT0, APIC.LVT1, APIC.LVTERR, APIC.TMICT, APIC.TMCCT, APIC.TDCR],
    ...[APIC.ISR, APIC.TMR, APIC.IRR].flatMap((first) => Array.from({ length: APIC_ISR_NR }, (_, i) => first + 16 * i)),
  ].map((offset) => offset >> 4),
);
/** Registers that x2APIC mode does not have. */
const READABLE_XAPIC: ReadonlySet<number> = new Set([APIC.ARBPRI, APIC.DFR, APIC.ICR2].map((offset) => offset >> 4));

const isReadable = (apic: Lapic, index: number): boolean => {
  if (READABLE.has(index)) return true;
  if (index === APIC.LVTCMCI >> 4) return apic.lvtEntries > LVT_ENTRIES;
  return !apic.x2apic && READABLE_XAPIC.has(index);
};

/** `__apic_read`. */
const readValue = (apic: Lapic, offset: number): number => {
  switch (offset) {
    case APIC.ARBPRI:
      return 0;
    case APIC.TMCCT:
      return apic.timer.currentCount(apic.reg(APIC.TMICT));
    case APIC.PROCPRI:
      apic.updatePpr();
      return apic.reg(offset);
    case APIC.TASKPRI:
      apic.host.reportTprAccess(false);
      return apic.reg(offset);
    default:
      return apic.reg(offset);
  }
};

/** `kvm_lapic_reg_read`: `length` bytes at `offset`, null if no such register can be read. */
export const readApicRegister = (apic: Lapic, offset: number, length: number): Uint8Array | null => {
  const alignment = offset & 0xf;
  if (alignment + length > 4 || offset > 0x3f0 || !isReadable(apic, offset >> 4)) return null;
  const word = new Uint8Array(4);
  new DataView(word.buffer).setUint32(0, readValue(apic, offset & ~0xf), true);
  return word.subarray(alignment, alignment + length);
};

const writeSpiv = (apic: Lapic, value: number): void => {
  const directedEoi = (apic.reg(APIC.LVR) & APIC_LVR_DIRECTED_EOI) !== 0 ? APIC_SPIV_DIRECTED_EOI : 0;
  apic.setSpiv(value & (0x3ff | directedEoi));
  if ((value & APIC_SPIV_APIC_ENABLED) !== 0) return;
  for (const register of LVT_REGISTERS.slice(0, apic.lvtEntries)) apic.setReg(register, apic.reg(register) | APIC_LVT_MASKED);
  apic.updateLvtt();
  apic.timer.pending = 0;
};

const writeLvt = (apic: Lapic, offset: number, value: number): boolean => {
  const index = LVT_REGISTERS.indexOf(offset);
  if (index < 0 || index >= apic.lvtEntries) return false;
  if (offset === APIC.LVT0) apic.manageNmiWatchdog(value);
  const wanted = apic.swEnabled ? value : value | APIC_LVT_MASKED;
  const writable = (LVT_WRITABLE[index] ?? 0) | (offset === APIC.LVTT ? apic.timer.modeMask : 0);
  apic.setReg(offset, wanted & writable);
  if (offset === APIC.LVTT) apic.updateLvtt();
  return true;
};

const writeInitialCount = (apic: Lapic, value: number): void => {
  if (apic.timer.tscDeadlineMode) return;
  apic.timer.cancel();
  apic.setReg(APIC.TMICT, value);
  apic.timer.start(value);
};

const writeOne = (apic: Lapic, offset: number, value: number): boolean => {
  switch (offset) {
    case APIC.ID:
      if (!apic.x2apic) apic.setXapicId(value >>> 24);
      return !apic.x2apic;
    case APIC.TASKPRI:
      apic.host.reportTprAccess(true);
      apic.setTpr(value & 0xff);
      return true;
    case APIC.EOI:
      apic.setEoi();
      return true;
    case APIC.LDR:
      if (!apic.x2apic) apic.setMapped(APIC.LDR, value & 0xff00_0000);
      return !apic.x2apic;
    case APIC.DFR:
      if (!apic.x2apic) apic.setMapped(APIC.DFR, value | 0x0fff_ffff);
      return !apic.x2apic;
    case APIC.SPIV:
      writeSpiv(apic, value);
      return true;
    case APIC.ICR:
      // There is no delay here, so the busy bit is always clear.
      apic.sendIpi(value & ~APIC_ICR_BUSY, apic.reg(APIC.ICR2));
      apic.setReg(APIC.ICR, value & ~APIC_ICR_BUSY);
      return true;
    case APIC.ICR2:
      if (!apic.x2apic) apic.setReg(APIC.ICR2, value & 0xff00_0000);
      return !apic.x2apic;
    case APIC.TMICT:
      writeInitialCount(apic, value);
      return true;
    case APIC.TDCR:
      apic.setReg(APIC.TDCR, value & 0xb);
      apic.timer.changeDivide(value & 0xb, apic.reg(APIC.TMICT));
      return true;
    case APIC.ESR:
      return !apic.x2apic || value === 0;
    case APIC.SELF_IPI:
      if (!apic.x2apic || (value & ~APIC_VECTOR_MASK) !== 0) return false;
      apic.sendIpi(APIC_DEST_SHORTHAND.SELF | value, 0);
      return true;
    default:
      return writeLvt(apic, offset, value);
  }
};

/** `kvm_lapic_reg_write`. @returns false where x2APIC mode raises #GP; xAPIC mode ignores such a write */
export const writeApicRegister = (apic: Lapic, offset: number, value: number): boolean => {
  const written = writeOne(apic, offset, value >>> 0);
  apic.vm.recalculateApicMap();
  return written;
};
