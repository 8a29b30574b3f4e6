import { Efer } from '../../../hardware/cpu/registers.js';
import { Failure, failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import type { StructValue } from '../../uapi/struct.js';
import { kvm_msr_entry, kvm_msr_list, kvm_msrs } from '../../uapi/x86-structs.js';
import { copyStruct } from '../copy-struct.js';
import type { Vcpu } from '../vcpu.js';
import { apicBase, setApicBase } from './apic-base-msr.js';
import { hostLinearAddressBits } from './cpuid.js';
import { setTscDeadlineMsr, tscDeadlineMsr, x2apicMsrRead, x2apicMsrWrite } from './irq/lapic-access.js';
import { MSR, MTRR_VARIABLE } from './msr-index.js';
import { FEATURE_MSRS, featureMsr, SAVED_MSRS } from './msr-store.js';
import { guestTsc, setGuestTsc } from './tsc.js';

/** MAX_IO_MSRS: KVM_GET_MSRS and KVM_SET_MSRS take fewer. */
const MAX_IO_MSRS = 256;

const EFER_LMA = BigInt(Efer.LMA);
const EFER_LME = BigInt(Efer.LME);
const EFER_NX = BigInt(Efer.NXE);
const EFER_SVME = 1n << 12n;
const EFER_LMSLE = 1n << 13n;
const EFER_FFXSR = 1n << 14n;
const EFER_AUTOIBRS = 1n << 21n;
/** Bits of EFER that the host has (`efer_reserved_bits` are the others). There is no nested virtualisation. */
const EFER_HOST = BigInt(Efer.SCE) | EFER_LME | EFER_LMA | EFER_NX | EFER_LMSLE | EFER_FFXSR | EFER_AUTOIBRS;

/** MSRs that hold a linear address, which has to be canonical. */
const CANONICAL: ReadonlySet<number> = new Set([MSR.FS_BASE, MSR.GS_BASE, MSR.KERNEL_GS_BASE, MSR.LSTAR, MSR.CSTAR]);
/** Those that are made canonical instead. */
const CANONICALISED: ReadonlySet<number> = new Set([MSR.SYSENTER_EIP, MSR.SYSENTER_ESP]);

const U32 = 0xffff_ffffn;

/** `__canonical_address`. An MSR takes what is canonical on the host, however wide its guest's addresses are. */
const canonical = ({ vm }: Vcpu, address: bigint): bigint =>
  BigInt.asUintN(64, BigInt.asIntN(hostLinearAddressBits(vm.kernel.config), address));

/** `__kvm_valid_efer`: what the guest's CPUID allows. */
const eferAllowed = ({ arch }: Vcpu, efer: bigint): boolean => {
  const { cpuid } = arch;
  if ((efer & EFER_AUTOIBRS) !== 0n && !cpuid.has('AUTOIBRS')) return false;
  if ((efer & EFER_FFXSR) !== 0n && !cpuid.has('FXSR_OPT')) return false;
  if ((efer & EFER_SVME) !== 0n && !cpuid.has('SVM')) return false;
  if ((efer & (EFER_LME | EFER_LMA)) !== 0n && !cpuid.has('LM')) return false;
  return (efer & EFER_NX) === 0n || cpuid.has('NX');
};

/** `set_efer`. LMA follows paging and is not written. */
const setEfer = (vcpu: Vcpu, efer: bigint, hostInitiated: boolean): boolean => {
  const { state, cpu } = vcpu.arch;
  if ((efer & ~EFER_HOST) !== 0n) return false;
  if (!hostInitiated) {
    if (!eferAllowed(vcpu, efer)) return false;
    if (state.paging && (state.efer & EFER_LME) !== (efer & EFER_LME)) return false;
  }
  state.efer = (efer & ~EFER_LMA) | (state.efer & EFER_LMA);
  cpu.flushTlb();
  return true;
};

/** `kvm_set_msr_common` and the vendor's: false where a guest gets #GP. */
export const setMsr = (vcpu: Vcpu, index: number, data: bigint, hostInitiated: boolean): boolean => {
  const { arch } = vcpu;
  if (CANONICAL.has(index) && canonical(vcpu, data) !== data) return false;
  if (MTRR_VARIABLE.includes(index) && (data & arch.cpuid.reservedGpaBits) !== 0n) return false;
  const value = CANONICALISED.has(index) ? canonical(vcpu, data) : data;
  if (index >= MSR.X2APIC_FIRST && index <= MSR.X2APIC_LAST)
    return arch.lapic !== null && x2apicMsrWrite(arch.lapic, index, value);
  switch (index) {
    case MSR.EFER:
      return setEfer(vcpu, value, hostInitiated);
    case MSR.APIC_BASE:
      return setApicBase(vcpu, value, hostInitiated);
    case MSR.TSC:
      setGuestTsc(vcpu, value);
      return true;
    case MSR.TSC_ADJUST:
      if (!arch.cpuid.has('TSC_ADJUST')) return true;
      // A guest moves its TSC by what it adds here.
      if (!hostInitiated) setGuestTsc(vcpu, guestTsc(vcpu) + value - (arch.msrs.get(index) ?? 0n));
      return arch.msrs.set(index, value, hostInitiated);
    case MSR.TSC_AUX:
      // Processors of AMD ignore the upper half, those of Intel refuse it; so does one that CPUID says nothing about.
      if (value >> 32n !== 0n && !arch.cpuid.amdCompatible) return false;
      return arch.state.writeMsr(index, value & U32);
    case MSR.TSC_DEADLINE:
      if (arch.lapic !== null) setTscDeadlineMsr(arch.lapic, value);
      return arch.lapic !== null || hostInitiated;
    case MSR.SEV_ES_GHCB:
      return false;
    default:
      return arch.state.writeMsr(index, value) || arch.msrs.set(index, value, hostInitiated);
  }
};

/** `kvm_get_msr_common` and the vendor's; null where a guest gets #GP. */
export const getMsr = (vcpu: Vcpu, index: number, hostInitiated: boolean): bigint | null => {
  const { arch, vm } = vcpu;
  if (index >= MSR.X2APIC_FIRST && index <= MSR.X2APIC_LAST) return arch.lapic === null ? null : x2apicMsrRead(arch.lapic, index);
  switch (index) {
    case MSR.APIC_BASE:
      return apicBase(vcpu);
    case MSR.TSC:
      return guestTsc(vcpu);
    case MSR.TSC_DEADLINE:
      return arch.lapic === null ? (hostInitiated ? 0n : null) : tscDeadlineMsr(arch.lapic);
    case MSR.PLATFORM_INFO:
      return hostInitiated || vm.arch.guestCanReadMsrPlatformInfo ? arch.msrs.get(index) : null;
    case MSR.SEV_ES_GHCB:
      return null;
    default:
      return arch.state.readMsr(index) ?? arch.msrs.get(index);
  }
};

// -- ioctls -----------------------------------------------------------------------------------------------------------

type MsrEntry = StructValue<typeof kvm_msr_entry>;

/** `msr_io`: does entries until one fails. Returns how many were done. EFAULT, E2BIG. */
const msrIo = (arg: IoctlArg, writeBack: boolean, one: (entry: MsrEntry) => boolean): Result<number> => {
  const head = copyStruct(arg, kvm_msrs);
  if (failed(head)) return head;
  if (head.nmsrs >= MAX_IO_MSRS)
    return new Failure('E2BIG', 'TOO_MANY_MSRS', 'msr_io', {
      field: 'nmsrs',
      given: String(head.nmsrs),
      allowed: `below ${MAX_IO_MSRS}`,
    });
  const address = arg.value + BigInt(kvm_msrs.size);
  const data = arg.user.copyIn(address, head.nmsrs * kvm_msr_entry.size);
  if (failed(data)) return data;
  let done = 0;
  while (done < head.nmsrs) {
    const entry = kvm_msr_entry.decode(data, done * kvm_msr_entry.size);
    if (!one(entry)) break;
    kvm_msr_entry.write(data, entry, done * kvm_msr_entry.size);
    done++;
  }
  return (writeBack ? arg.user.copyOut(address, data) : null) ?? done;
};

/** What userspace may read as 0 although the vCPU has no such MSR: it is in the list of those to save. */
const readsAsZero = (index: number): bigint | null => (SAVED_MSRS.includes(index) ? 0n : null);

/** KVM_GET_MSRS on a vCPU. */
export const getMsrs = (vcpu: Vcpu, arg: IoctlArg): Result<number> =>
  msrIo(arg, true, (entry) => {
    const value = getMsr(vcpu, entry.index, true) ?? readsAsZero(entry.index);
    if (value !== null) entry.data = value;
    return value !== null;
  });

/** KVM_SET_MSRS. */
export const setMsrs = (vcpu: Vcpu, arg: IoctlArg): Result<number> =>
  msrIo(
    arg,
    false,
    ({ index, data }) =>
      setMsr(vcpu, index, data, true) || (data === 0n && getMsr(vcpu, index, true) === null && SAVED_MSRS.includes(index)),
  );

/** KVM_GET_MSRS on `/dev/kvm`: feature MSRs; one that can only be saved reads as 0. */
export const getFeatureMsrs = (arg: IoctlArg): Result<number> =>
  msrIo(arg, true, (entry) => {
    const value = featureMsr(entry.index) ?? readsAsZero(entry.index);
    if (value !== null) entry.data = value;
    return value !== null;
  });

/** KVM_GET_MSR_INDEX_LIST and KVM_GET_MSR_FEATURE_INDEX_LIST: E2BIG with the count written where there is no room. */
const msrIndexList = (arg: IoctlArg, indices: readonly number[]): Result<number> => {
  const head = copyStruct(arg, kvm_msr_list);
  if (failed(head)) return head;
  const refused = arg.user.copyOut(arg.value, kvm_msr_list.encode({ nmsrs: indices.length }));
  if (refused !== null) return refused;
  if (head.nmsrs < indices.length)
    return new Failure('E2BIG', 'MSR_LIST_TOO_SHORT', 'kvm_arch_dev_ioctl', {
      field: 'nmsrs',
      given: String(head.nmsrs),
      needed: String(indices.length),
    });
  const data = new Uint8Array(Uint32Array.from(indices).buffer);
  return arg.user.copyOut(arg.value + BigInt(kvm_msr_list.size), data) ?? 0;
};

export const getMsrIndexList = (arg: IoctlArg): Result<number> => msrIndexList(arg, SAVED_MSRS);
export const getMsrFeatureIndexList = (arg: IoctlArg): Result<number> => msrIndexList(arg, FEATURE_MSRS);
