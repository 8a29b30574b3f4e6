import { Cr4 } from '../../../hardware/cpu/registers.js';
import { KVM_CPUID_FLAG } from '../../uapi/constants.js';
import type { Vcpu } from '../vcpu.js';
import { apicBase } from './apic-base-msr.js';
import { Cpuid, type CpuidEntry, type CpuidRegisters } from './cpuid.js';
import { MSR_IA32_APICBASE_ENABLE } from './irq/apic-base.js';
import { FXSAVE_BYTES, XSAVE_HEADER_BYTES } from './xsave.js';

const BIT = { APIC: 1 << 9, XSAVE: 1 << 26, OSXSAVE: 1 << 27 } as const;

const withBit = (word: number, bit: number, on: boolean): number => (on ? word | bit : word & ~bit) >>> 0;

/** `kvm_update_cpuid_runtime`: bits of a leaf that follow the vCPU's registers. */
const atRuntime = (vcpu: Vcpu, entry: CpuidEntry): CpuidEntry => {
  const { state } = vcpu.arch;
  if (entry.function === 1) {
    const osxsave = (entry.ecx & BIT.XSAVE) !== 0 && (state.cr4 & BigInt(Cr4.OSXSAVE)) !== 0n;
    return {
      ...entry,
      ecx: (entry.ecx & BIT.XSAVE) === 0 ? entry.ecx : withBit(entry.ecx, BIT.OSXSAVE, osxsave),
      edx: withBit(entry.edx, BIT.APIC, (apicBase(vcpu) & MSR_IA32_APICBASE_ENABLE) !== 0n),
    };
  }
  // Size of an XSAVE area with what XCR0 enables; x87 and SSE are always in it.
  const sized = entry.function === 0xd && (entry.flags & KVM_CPUID_FLAG.SIGNIFCANT_INDEX) !== 0 && entry.index === 0;
  return sized ? { ...entry, ebx: FXSAVE_BYTES + XSAVE_HEADER_BYTES } : entry;
};

/** The entries as they stand now: what KVM_GET_CPUID2 gives. */
export const runtimeEntries = (vcpu: Vcpu, entries: readonly CpuidEntry[]): CpuidEntry[] =>
  entries.map((entry) => atRuntime(vcpu, entry));

/** What CPUID gives the guest. */
export const cpuidForGuest = (vcpu: Vcpu, leaf: number, index: number): CpuidRegisters => {
  const { cpuid } = vcpu.arch;
  const entry = cpuid.find(leaf, index);
  return entry === undefined ? cpuid.query(leaf, index) : atRuntime(vcpu, entry);
};

/** `kvm_vcpu_after_set_cpuid`: everything that follows from a new CPUID. */
export const afterSetCpuid = (vcpu: Vcpu, entries: readonly CpuidEntry[]): void => {
  const { arch } = vcpu;
  arch.cpuid = Cpuid.of(entries);
  arch.reservedGpaBits = arch.cpuid.reservedGpaBits;
  arch.updateFeatures();
  arch.lapic?.afterSetCpuid(arch.cpuid.has('TSC_DEADLINE_TIMER'));
  vcpu.vm.kernel.ops.vcpuAfterSetCpuid(vcpu);
};
