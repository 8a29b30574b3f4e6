import { Failure } from '../kernel/failure.js';
import type { Kernel } from '../kernel/kernel.js';
import type { CpuidEntry } from '../kernel/kvm/x86/cpuid.js';
import { supportedCpuid } from '../kernel/kvm/x86/cpuid-supported.js';
import { kvm_cpuid_entry2, kvm_cpuid2 } from '../kernel/uapi/x86-structs.js';
import type { GuestDescription } from './guest.js';

const REGISTERS = ['eax', 'ebx', 'ecx', 'edx'] as const;
const ALL = ~0;

/** CPUID leaves of feature bits, the bits of them that count, and not those that the guest itself switches (OSXSAVE, OSPKE). */
const FEATURE_LEAVES: readonly (Partial<Record<(typeof REGISTERS)[number], number>> & { readonly leaf: number })[] = [
  { leaf: 1, ecx: ~(1 << 27), edx: ALL },
  { leaf: 7, ebx: ALL, ecx: ~(1 << 4), edx: ALL },
  { leaf: 0x8000_0001, ecx: ALL, edx: ALL },
  { leaf: 0x8000_0007, edx: ALL },
  { leaf: 0x8000_0021, eax: ALL },
];

/** Widths of physical and linear addresses, in EAX. */
const ADDRESS_SIZES = 0x8000_0008;
const WIDTHS = [
  { what: 'physical addresses', shift: 0 },
  { what: 'linear addresses', shift: 8 },
] as const;

const refuse = (vcpu: number, { function: leaf }: CpuidEntry, missing: string): Failure =>
  new Failure('EINVAL', 'CPUID_NOT_SUPPORTED', 'server/migration', {
    vcpu: String(vcpu),
    leaf: `0x${leaf.toString(16)}`,
    missing,
  });

/** Features that are told to a guest, and that a host does not have: register and bits. */
const missingFeatures = (told: CpuidEntry, offered: CpuidEntry | undefined): string | null => {
  const masks = FEATURE_LEAVES.find(({ leaf }) => leaf === told.function);
  const found = REGISTERS.flatMap((register) => {
    const missing = (told[register] & (masks?.[register] ?? 0) & ~(offered?.[register] ?? 0)) >>> 0;
    return missing === 0 ? [] : [`${register} 0x${missing.toString(16)}`];
  });
  return found.length === 0 ? null : found.join(', ');
};

const tooWide = (told: CpuidEntry, offered: CpuidEntry | undefined): string | null => {
  if (told.function !== ADDRESS_SIZES) return null;
  for (const { what, shift } of WIDTHS) {
    const [wanted, had] = [(told.eax >>> shift) & 0xff, ((offered?.eax ?? 0) >>> shift) & 0xff];
    if (wanted > had) return `${what} of ${wanted} bits: this host has ${had}`;
  }
  return null;
};

/** EINVAL where a vCPU has been told of what this host does not have. */
export const checkCpuid = (kernel: Kernel, { vcpus }: GuestDescription): Failure | null => {
  const offered = supportedCpuid(kernel);
  for (const { id, cpuid } of vcpus) {
    const { nent } = kvm_cpuid2.decode(cpuid);
    for (let index = 0; index < nent; index++) {
      const told = kvm_cpuid_entry2.decode(cpuid, kvm_cpuid2.size + index * kvm_cpuid_entry2.size);
      const own = offered.find((each) => each.function === told.function && each.index === told.index);
      const missing = missingFeatures(told, own) ?? tooWide(told, own);
      if (missing !== null) return refuse(id, told, missing);
    }
  }
  return null;
};
