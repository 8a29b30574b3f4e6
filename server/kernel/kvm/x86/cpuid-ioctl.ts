import { Failure, failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import type { Kernel } from '../../kernel.js';
import { kvm_cpuid, kvm_cpuid_entry, kvm_cpuid_entry2, kvm_cpuid2 } from '../../uapi/x86-structs.js';
import { copyStruct } from '../copy-struct.js';
import type { Vcpu } from '../vcpu.js';
import { Cpuid, type CpuidEntry } from './cpuid.js';
import { afterSetCpuid, runtimeEntries } from './cpuid-runtime.js';
import { emulatedCpuid, supportedCpuid } from './cpuid-supported.js';

/** KVM_MAX_CPUID_ENTRIES. */
const ENTRIES_MAX = 256;

const tooMany = (given: number): Failure =>
  new Failure('E2BIG', 'TOO_MANY_CPUID_ENTRIES', 'kvm_vcpu_ioctl_set_cpuid2', {
    field: 'nent',
    given: String(given),
    allowed: String(ENTRIES_MAX),
  });

/** Virtual address widths that `kvm_check_cpuid` takes; 0 counts as not given. */
const VIRTUAL_ADDRESS_BITS: readonly number[] = [0, 48, 57];

/** `kvm_check_cpuid`. */
const checkCpuid = (entries: readonly CpuidEntry[]): Failure | null => {
  const width = (Cpuid.of(entries).find(0x8000_0008, 0)?.eax ?? 0) >>> 8;
  if (VIRTUAL_ADDRESS_BITS.includes(width & 0xff)) return null;
  return new Failure('EINVAL', 'CPUID_VIRTUAL_ADDRESS_BITS', 'kvm_check_cpuid', {
    field: 'entries[0x80000008].eax',
    given: String(width & 0xff),
    allowed: VIRTUAL_ADDRESS_BITS.join(', '),
  });
};

const sameEntry = (a: CpuidEntry, b: CpuidEntry): boolean =>
  a.function === b.function &&
  a.index === b.index &&
  a.flags === b.flags &&
  a.eax === b.eax &&
  a.ebx === b.ebx &&
  a.ecx === b.ecx &&
  a.edx === b.edx;

/** `kvm_cpuid_check_equal`: after its first entry a vCPU takes only what it has. */
const checkEqual = (vcpu: Vcpu, given: readonly CpuidEntry[]): Failure | null => {
  const present = runtimeEntries(vcpu, vcpu.arch.cpuid.entries);
  const wanted = runtimeEntries(vcpu, given);
  const equal =
    present.length === wanted.length &&
    present.every((entry, index) => {
      const other = wanted[index];
      return other !== undefined && sameEntry(entry, other);
    });
  return equal ? null : new Failure('EINVAL', 'CPUID_FIXED_AFTER_RUN', 'kvm_set_cpuid', { object: `vcpu ${vcpu.id}` });
};

/** `kvm_set_cpuid`. */
const setEntries = (vcpu: Vcpu, entries: readonly CpuidEntry[]): Result<number> => {
  if (vcpu.arch.hasRun) return checkEqual(vcpu, entries) ?? 0;
  const refused = checkCpuid(entries);
  if (refused !== null) return refused;
  afterSetCpuid(vcpu, entries);
  return 0;
};

/** KVM_SET_CPUID2. */
export const setCpuid2 = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const head = copyStruct(arg, kvm_cpuid2);
  if (failed(head)) return head;
  if (head.nent > ENTRIES_MAX) return tooMany(head.nent);
  const data = arg.user.copyIn(arg.value + BigInt(kvm_cpuid2.size), head.nent * kvm_cpuid_entry2.size);
  if (failed(data)) return data;
  return setEntries(
    vcpu,
    Array.from({ length: head.nent }, (_, index) => kvm_cpuid_entry2.decode(data, index * kvm_cpuid_entry2.size)),
  );
};

/** KVM_SET_CPUID, the old form without indices. */
export const setCpuid = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const head = copyStruct(arg, kvm_cpuid);
  if (failed(head)) return head;
  if (head.nent > ENTRIES_MAX) return tooMany(head.nent);
  const data = arg.user.copyIn(arg.value + BigInt(kvm_cpuid.size), head.nent * kvm_cpuid_entry.size);
  if (failed(data)) return data;
  return setEntries(
    vcpu,
    Array.from({ length: head.nent }, (_, index) => ({
      index: 0,
      flags: 0,
      ...kvm_cpuid_entry.decode(data, index * kvm_cpuid_entry.size),
    })),
  );
};

/** Gives as many entries as there are, or E2BIG. */
const giveEntries = (arg: IoctlArg, entries: readonly CpuidEntry[], kernelRef: string): Result<number> => {
  const head = copyStruct(arg, kvm_cpuid2);
  if (failed(head)) return head;
  if (head.nent < entries.length)
    return new Failure('E2BIG', 'CPUID_LIST_TOO_SHORT', kernelRef, {
      field: 'nent',
      given: String(head.nent),
      needed: String(entries.length),
    });
  const data = new Uint8Array(entries.length * kvm_cpuid_entry2.size);
  entries.forEach((entry, index) => {
    kvm_cpuid_entry2.write(data, entry, index * kvm_cpuid_entry2.size);
  });
  const first = arg.value + BigInt(kvm_cpuid2.size);
  return arg.user.copyOut(first, data) ?? arg.user.copyOut(arg.value, kvm_cpuid2.encode({ nent: entries.length })) ?? 0;
};

/** KVM_GET_CPUID2: what was set, as it stands now. E2BIG does not say how many there are. */
export const getCpuid2 = (vcpu: Vcpu, arg: IoctlArg): Result<number> =>
  giveEntries(arg, runtimeEntries(vcpu, vcpu.arch.cpuid.entries), 'kvm_vcpu_ioctl_get_cpuid2');

/** KVM_GET_SUPPORTED_CPUID and KVM_GET_EMULATED_CPUID. E2BIG. */
export const getSupportedCpuid = (kernel: Kernel, arg: IoctlArg): Result<number> =>
  giveEntries(arg, supportedCpuid(kernel), 'kvm_dev_ioctl_get_cpuid');
export const getEmulatedCpuid = (arg: IoctlArg): Result<number> => giveEntries(arg, emulatedCpuid(), 'kvm_dev_ioctl_get_cpuid');
