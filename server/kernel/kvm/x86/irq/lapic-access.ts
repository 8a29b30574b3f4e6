import { KVM_X86_QUIRK } from '../../../uapi/constants.js';
import { APIC, APIC_BASE_MSR, APIC_ICR_BUSY, LAPIC_MMIO_LENGTH, X2APIC_ICR_RESERVED_BITS } from './apic-registers.js';
import type { Lapic } from './lapic.js';
import { readApicRegister, writeApicRegister } from './lapic-registers.js';

/** How a guest reaches its local APIC: the page in xAPIC mode, MSRs in x2APIC mode. */

const word = (bytes: Uint8Array): number => new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0, true);

/**
 * `apic_mmio_read`: null if the page is not there. A disabled APIC, and one in x2APIC mode, leaves a hole that reads as
 * ones, as long as KVM_X86_QUIRK_LAPIC_MMIO_HOLE is not disabled.
 * @param address guest-physical
 */
export const lapicMmioRead = (apic: Lapic, address: number, length: number): Uint8Array | null => {
  const offset = address - apic.baseAddress;
  if (offset < 0 || offset >= LAPIC_MMIO_LENGTH) return null;
  if (!apic.hardwareEnabled || apic.x2apic)
    return apic.vm.settings.quirkEnabled(KVM_X86_QUIRK.LAPIC_MMIO_HOLE) ? new Uint8Array(length).fill(0xff) : null;
  return readApicRegister(apic, offset, length) ?? new Uint8Array(length);
};

/** `apic_mmio_write`: true if the page took the write. Only an aligned write of 4 bytes means anything. */
export const lapicMmioWrite = (apic: Lapic, address: number, bytes: Uint8Array): boolean => {
  const offset = address - apic.baseAddress;
  if (offset < 0 || offset >= LAPIC_MMIO_LENGTH) return false;
  if (!apic.hardwareEnabled || apic.x2apic) return apic.vm.settings.quirkEnabled(KVM_X86_QUIRK.LAPIC_MMIO_HOLE);
  if (bytes.length === 4 && (offset & 0xf) === 0) writeApicRegister(apic, offset, word(bytes));
  return true;
};

/** ICR is one 64-bit register in x2APIC mode; where KVM keeps its upper half differs between vendors. */
export const x2apicIcrHigh = (apic: Lapic): number => (apic.vm.host.x2apicIcrIsSplit ? APIC.ICR2 : APIC.ICR + 4);

const readX2apicIcr = (apic: Lapic): bigint => (BigInt(apic.reg(x2apicIcrHigh(apic))) << 32n) | BigInt(apic.reg(APIC.ICR));

/** `kvm_x2apic_icr_write`. */
const writeX2apicIcr = (apic: Lapic, data: bigint): boolean => {
  if ((data & X2APIC_ICR_RESERVED_BITS) !== 0n) return false;
  const low = Number(data & 0xffff_ffffn) & ~APIC_ICR_BUSY;
  const high = Number(data >> 32n);
  apic.sendIpi(low, high);
  apic.setReg(APIC.ICR, low);
  apic.setReg(x2apicIcrHigh(apic), high);
  return true;
};

/** `kvm_x2apic_msr_read`; null: #GP. @param index 0x800 to 0x8ff */
export const x2apicMsrRead = (apic: Lapic, index: number): bigint | null => {
  if (!apic.x2apic) return null;
  const offset = (index - APIC_BASE_MSR) << 4;
  if (offset === APIC.ICR) return readX2apicIcr(apic);
  const bytes = readApicRegister(apic, offset, 4);
  return bytes === null ? null : BigInt(word(bytes));
};

/** `kvm_x2apic_msr_write`; false: #GP. */
export const x2apicMsrWrite = (apic: Lapic, index: number, data: bigint): boolean => {
  if (!apic.x2apic) return false;
  const offset = (index - APIC_BASE_MSR) << 4;
  if (offset === APIC.ICR) return writeX2apicIcr(apic, data);
  return data >> 32n === 0n && writeApicRegister(apic, offset, Number(data));
};

/** `kvm_get_lapic_tscdeadline_msr`: IA32_TSC_DEADLINE, 0 in the other timer modes. */
export const tscDeadlineMsr = (apic: Lapic): bigint =>
  apic.hardwareEnabled && apic.timer.tscDeadlineMode ? apic.timer.tscDeadline : 0n;

/** `kvm_set_lapic_tscdeadline_msr`: ignored in the other timer modes. */
export const setTscDeadlineMsr = (apic: Lapic, data: bigint): void => {
  if (!apic.hardwareEnabled || !apic.timer.tscDeadlineMode) return;
  apic.timer.stop();
  apic.timer.tscDeadline = data;
  apic.timer.start(0);
};
