import { Cr4 } from '../../../hardware/cpu/registers.js';
import type { CpuFeatures } from '../../../hardware/cpu/types.js';
import type { HostConfig } from '../../config.js';
import { KVM_CPUID_FLAG } from '../../uapi/constants.js';
import type { StructValue } from '../../uapi/struct.js';
import type { kvm_cpuid_entry2 } from '../../uapi/x86-structs.js';

export type CpuidEntry = StructValue<typeof kvm_cpuid_entry2>;

/** The four registers that CPUID gives. */
export interface CpuidRegisters {
  readonly eax: number;
  readonly ebx: number;
  readonly ecx: number;
  readonly edx: number;
}

const NOTHING: CpuidRegisters = { eax: 0, ebx: 0, ecx: 0, edx: 0 };

/** Feature bits that KVM itself asks for: leaf, subleaf, register and bit. */
const FEATURES = {
  X2APIC: [1, 0, 'ecx', 21],
  TSC_DEADLINE_TIMER: [1, 0, 'ecx', 24],
  XSAVE: [1, 0, 'ecx', 26],
  PCID: [1, 0, 'ecx', 17],
  MCE: [1, 0, 'edx', 7],
  FSGSBASE: [7, 0, 'ebx', 0],
  TSC_ADJUST: [7, 0, 'ebx', 1],
  SMEP: [7, 0, 'ebx', 7],
  SMAP: [7, 0, 'ebx', 20],
  UMIP: [7, 0, 'ecx', 2],
  PKU: [7, 0, 'ecx', 3],
  LA57: [7, 0, 'ecx', 16],
  SVM: [0x8000_0001, 0, 'ecx', 2],
  NX: [0x8000_0001, 0, 'edx', 20],
  FXSR_OPT: [0x8000_0001, 0, 'edx', 25],
  GBPAGES: [0x8000_0001, 0, 'edx', 26],
  RDTSCP: [0x8000_0001, 0, 'edx', 27],
  LM: [0x8000_0001, 0, 'edx', 29],
  SVM_TSC_RATE_MSR: [0x8000_000a, 0, 'edx', 4],
  AUTOIBRS: [0x8000_0021, 0, 'eax', 8],
} as const satisfies Record<string, readonly [number, number, keyof CpuidRegisters, number]>;
export type CpuidFeature = keyof typeof FEATURES;

/** MAXPHYADDR of a guest whose CPUID does not say. */
const MAXPHYADDR_DEFAULT = 36;
/** MAXPHYADDR of the host, without the reduction by memory encryption. */
export const HOST_MAXPHYADDR = 48;

const AUTH: CpuidRegisters = { eax: 0, ebx: 0x6874_7541, ecx: 0x444d_4163, edx: 0x6974_6e65 };

const HYGON: CpuidRegisters = { eax: 0, ebx: 0x6f67_7948, ecx: 0x656e_6975, edx: 0x6e65_4772 };

/** Bits of CR4 that no CPUID is needed for (VME to PCE, OSFXSR, OSXMMEXCPT). */
const CR4_ALWAYS = 0x7ff;
/** Bits that a guest's CPUID has to allow. */
const CR4_BY_FEATURE: readonly (readonly [number, CpuidFeature])[] = [
  [Cr4.UMIP, 'UMIP'],
  [Cr4.LA57, 'LA57'],
  [Cr4.FSGSBASE, 'FSGSBASE'],
  [Cr4.OSXSAVE, 'XSAVE'],
  [Cr4.SMEP, 'SMEP'],
  [Cr4.SMAP, 'SMAP'],
];
/** Bits that every host has; there is no PCID or PKU in the CPU's subset. */
const CR4_HOST = CR4_ALWAYS | Cr4.UMIP | Cr4.FSGSBASE | Cr4.OSXSAVE | Cr4.SMEP | Cr4.SMAP;

/** Whether the host's CPU has tables of five levels: Sapphire Rapids has, Milan has not. */
export const hostHasLa57 = ({ vendor }: HostConfig): boolean => vendor === 'intel';

/** `max_host_virt_addr_bits`: how wide a linear address is on the host, whatever its guests are told. */
export const hostLinearAddressBits = (config: HostConfig): 48 | 57 => (hostHasLa57(config) ? 57 : 48);

/** `cr4_reserved_bits`: what the host itself cannot do. */
export const hostCr4Reserved = (config: HostConfig): number => ~(CR4_HOST | (hostHasLa57(config) ? Cr4.LA57 : 0)) >>> 0;

/** What KVM_SET_CPUID2 has set (`vcpu->arch.cpuid_entries`), and what follows from it. */
export class Cpuid {
  readonly maxPhyAddr: number;
  /** `reserved_gpa_bits` before the vendor has seen them. */
  readonly reservedGpaBits: bigint;
  /** `cr4_guest_rsvd_bits`; none as long as CPUID has never been set. */
  readonly cr4GuestReserved: number;

  private constructor(
    readonly entries: readonly CpuidEntry[],
    set: boolean,
  ) {
    this.maxPhyAddr = this.queryMaxPhyAddr();
    this.reservedGpaBits = ((1n << 64n) - 1n) & ~((1n << BigInt(this.maxPhyAddr)) - 1n);
    let allowed = CR4_ALWAYS;
    for (const [bit, feature] of CR4_BY_FEATURE) if (this.has(feature)) allowed |= bit;
    this.cr4GuestReserved = set ? ~allowed >>> 0 : 0;
  }

  /** Before the first KVM_SET_CPUID2. */
  static readonly EMPTY = new Cpuid([], false);

  static of(entries: readonly CpuidEntry[]): Cpuid {
    return new Cpuid(entries, true);
  }

  /** `kvm_find_cpuid_entry_index`. */
  find(leaf: number, index: number): CpuidEntry | undefined {
    return this.entries.find(
      (entry) => entry.function === leaf && ((entry.flags & KVM_CPUID_FLAG.SIGNIFCANT_INDEX) === 0 || entry.index === index),
    );
  }

  has(feature: CpuidFeature): boolean {
    const [leaf, index, register, bit] = FEATURES[feature];
    return (((this.find(leaf, index)?.[register] ?? 0) >>> bit) & 1) === 1;
  }

  /** `guest_cpuid_is_amd_compatible`: the vendor is AMD or Hygon. */
  get amdCompatible(): boolean {
    const vendor = this.find(0, 0);
    return (
      vendor !== undefined &&
      [AUTH, HYGON].some(({ ebx, ecx, edx }) => vendor.ebx === ebx && vendor.ecx === ecx && vendor.edx === edx)
    );
  }

  /** `kvm_cpuid`: what the instruction gives. Out of range: zero on AMD, the highest basic leaf on Intel. */
  query(leaf: number, index: number): CpuidRegisters {
    return this.find(leaf, index) ?? this.outOfRange(leaf, index) ?? NOTHING;
  }

  /** `get_out_of_range_cpuid_entry`. */
  private outOfRange(leaf: number, index: number): CpuidEntry | undefined {
    const basic = this.find(0, 0);
    if (basic === undefined || (basic.ebx === AUTH.ebx && basic.ecx === AUTH.ecx && basic.edx === AUTH.edx)) return undefined;
    const base = leaf >= 0x4000_0000 && leaf <= 0x4fff_ffff ? (leaf & 0xffff_ff00) >>> 0 : (leaf & 0x8000_0000) >>> 0;
    const range = this.find(base, 0);
    if (range !== undefined && range.eax >= leaf) return undefined;
    return this.find(basic.eax, index);
  }

  /** `cpuid_query_maxphyaddr`. */
  private queryMaxPhyAddr(): number {
    if ((this.find(0x8000_0000, 0)?.eax ?? 0) < 0x8000_0008) return MAXPHYADDR_DEFAULT;
    const leaf = this.find(0x8000_0008, 0);
    return leaf === undefined ? MAXPHYADDR_DEFAULT : leaf.eax & 0xff;
  }
}

/**
 * What the CPU needs to know. Physical addresses are as wide as the host's: with nested paging nobody looks at the
 * guest's MAXPHYADDR when its page tables are walked.
 */
export const cpuFeatures = (cpuid: Cpuid, config: HostConfig): CpuFeatures => ({
  physicalAddressBits: HOST_MAXPHYADDR,
  cr4Reserved: (hostCr4Reserved(config) | cpuid.cr4GuestReserved) >>> 0,
  gigabytePages: true,
  noExecute: true,
});
