import { Failure } from '../../../failure.js';
import { KVM_X86_QUIRK } from '../../../uapi/constants.js';
import { REQUEST } from '../../vcpu.js';
import { APIC, APIC_DFR_FLAT, APIC_DM, APIC_LVT_MASKED, KVM_APIC_REG_SIZE, LVT_REGISTERS } from './apic-registers.js';
import { type Lapic, x2apicLdr } from './lapic.js';
import { x2apicIcrHigh } from './lapic-access.js';

/** A local APIC's state as a whole: reset, KVM_GET_LAPIC, KVM_SET_LAPIC. */

/**
 * `kvm_lapic_reset`. At RESET the caller has given IA32_APIC_BASE its reset value before.
 * @param init INIT: base, mode and xAPIC id stay as they are
 */
export const lapicReset = (apic: Lapic, init: boolean): void => {
  const { vm } = apic;
  apic.timer.stop();
  if (!init) apic.setXapicId(apic.id);
  apic.setVersion();
  for (const register of LVT_REGISTERS.slice(0, apic.lvtEntries)) apic.setReg(register, APIC_LVT_MASKED);
  apic.updateLvtt();
  if (vm.settings.bspVcpuId === apic.id && vm.settings.quirkEnabled(KVM_X86_QUIRK.LINT0_REENABLED))
    apic.setReg(APIC.LVT0, APIC_DM.EXTINT);
  apic.manageNmiWatchdog(apic.reg(APIC.LVT0));
  apic.setMapped(APIC.DFR, APIC_DFR_FLAT);
  apic.setSpiv(0xff);
  if (!apic.x2apic) apic.setMapped(APIC.LDR, 0);
  const icrHigh = apic.x2apic ? x2apicIcrHigh(apic) : APIC.ICR2;
  for (const register of [APIC.TASKPRI, APIC.ESR, APIC.ICR, icrHigh, APIC.TDCR, APIC.TMICT]) apic.setReg(register, 0);
  for (const bitmap of [APIC.IRR, APIC.ISR, APIC.TMR]) apic.page.clearVectors(bitmap);
  apic.irrChanged();
  apic.timer.setDivide(0);
  apic.timer.pending = 0;
  apic.updatePpr();
  apic.arbPrio = 0;
  vm.recalculateApicMap();
};

const word = (view: DataView, offset: number): number => view.getUint32(offset, true);

/**
 * `kvm_apic_get_state`: the 1,024 bytes of kvm_lapic_state, little-endian. In x2APIC mode the id is in bits 24-31 unless
 * user space wants 32-bit ids, and ICR is split into its two registers.
 */
export const lapicGetState = (apic: Lapic): Uint8Array => {
  const state = new Uint8Array(KVM_APIC_REG_SIZE);
  const view = new DataView(state.buffer);
  apic.page.words.forEach((value, index) => {
    view.setUint32(index * 4, value, true);
  });
  view.setUint32(APIC.TMCCT, apic.timer.currentCount(apic.reg(APIC.TMICT)), true);
  if (!apic.x2apic) return state;
  if (!apic.vm.settings.x2apicFormat) view.setUint32(APIC.ID, apic.id << 24, true);
  if (!apic.vm.host.x2apicIcrIsSplit) view.setUint32(APIC.ICR2, word(view, APIC.ICR + 4), true);
  return state;
};

/** `kvm_apic_state_fixup` of a state that is set: id and LDR of x2APIC mode are KVM's. EINVAL for another 32-bit id. */
const fixUp = (apic: Lapic, view: DataView): Failure | null => {
  if (!apic.x2apic) return null;
  const id = word(view, APIC.ID);
  if (apic.vm.settings.x2apicFormat && id !== apic.id)
    return new Failure('EINVAL', 'X2APIC_ID_MISMATCH', 'kvm_apic_state_fixup', {
      field: 'regs[APIC_ID]',
      given: String(id),
      allowed: String(apic.id),
    });
  view.setUint32(APIC.ID, apic.id, true);
  view.setUint32(APIC.LDR, x2apicLdr(apic.id), true);
  if (!apic.vm.host.x2apicIcrIsSplit) view.setUint32(APIC.ICR + 4, word(view, APIC.ICR2), true);
  return null;
};

/** `kvm_apic_set_state`: takes over 1,024 bytes; the timer goes on with the count that was left. */
export const lapicSetState = (apic: Lapic, bytes: Uint8Array): Failure | null => {
  const state = bytes.slice(0, KVM_APIC_REG_SIZE);
  const view = new DataView(state.buffer);
  // First, and also when the rest is refused, as the kernel does it: KVM counts the APICs that software has disabled.
  apic.setSpiv(word(view, APIC.SPIV));
  const refusal = fixUp(apic, view);
  if (refusal !== null) {
    apic.vm.recalculateApicMap();
    return refusal;
  }
  for (let offset = 0; offset < KVM_APIC_REG_SIZE; offset += 4) apic.setReg(offset, word(view, offset));
  apic.vm.apicMapDirty = true;
  apic.vm.recalculateApicMap();
  apic.setVersion();
  apic.irrChanged();
  apic.updatePpr();
  apic.timer.cancel();
  apic.updateLvtt();
  apic.manageNmiWatchdog(apic.reg(APIC.LVT0));
  apic.timer.setDivide(apic.reg(APIC.TDCR));
  apic.timer.start(apic.reg(APIC.TMICT), apic.reg(APIC.TMCCT));
  apic.setReg(APIC.TMCCT, 0);
  apic.host.request(REQUEST.EVENT);
  apic.vm.chips?.ioapic.restoreRtcEoi(apic);
  apic.arbPrio = 0;
  return null;
};
