import { cpuid8000001f } from '../../../hardware/amd/cpuid-8000001f.js';
import type { HostConfig } from '../../config.js';
import type { Kernel } from '../../kernel.js';
import { KVM_CPUID_FLAG } from '../../uapi/constants.js';
import { type CpuidEntry, type CpuidRegisters, HOST_MAXPHYADDR, hostHasLa57, hostLinearAddressBits } from './cpuid.js';

/** KVM's own leaves: the signature, and the paravirtual features, of which there are none. */
const KVM_CPUID_SIGNATURE = 0x4000_0000;
const KVM_CPUID_FEATURES = 0x4000_0001;

const bits = (...numbers: readonly number[]): number => numbers.reduce((word, bit) => (word | (1 << bit)) >>> 0, 0);

const entry = (leaf: number, registers: Partial<CpuidRegisters>, index: number | null = null): CpuidEntry => ({
  function: leaf,
  index: index ?? 0,
  flags: index === null ? 0 : KVM_CPUID_FLAG.SIGNIFCANT_INDEX,
  ...{ eax: 0, ebx: 0, ecx: 0, edx: 0 },
  ...registers,
});

/** Twelve characters as EBX, EDX, ECX; KVM's own signature as EBX, ECX, EDX. */
const words = (text: string): number[] =>
  [0, 4, 8].map((at) => [0, 1, 2, 3].reduce((word, i) => word + (text.charCodeAt(at + i) || 0) * 256 ** i, 0));

const brand = (text: string): CpuidEntry[] =>
  [0, 1, 2].map((part) => {
    const at = (i: number): number =>
      [0, 1, 2, 3].reduce((word, byte) => word + (text.charCodeAt(16 * part + 4 * i + byte) || 0) * 256 ** byte, 0);
    return entry(0x8000_0002 + part, { eax: at(0), ebx: at(1), ecx: at(2), edx: at(3) });
  });

/** FPU, VME, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE36, CLFSH, MMX, FXSR, SSE, SSE2. */
const LEAF_1_EDX = bits(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26);
/** CX16, X2APIC, POPCNT, TSC_DEADLINE_TIMER, HYPERVISOR. */
const LEAF_1_ECX = bits(13, 21, 23, 24, 31);
/** FSGSBASE, TSC_ADJUST, SMEP, ERMS, SMAP. */
const LEAF_7_EBX = bits(0, 1, 7, 9, 20);
/** UMIP. */
const LEAF_7_ECX = bits(2);
const LA57 = bits(16);
/** SYSCALL, NX, GBPAGES, RDTSCP, LM, on top of what leaf 1 has. */
const LEAF_80000001_EDX = bits(11, 20, 26, 27, 29);

interface CpuModel {
  readonly vendor: string;
  readonly brand: string;
  /** Family, model, stepping. */
  readonly signature: number;
  readonly maxBasic: number;
  readonly maxExtended: number;
  /** Leaf 0x80000001 repeats these bits of leaf 1's EDX (AMD only). */
  readonly mirroredEdx: number;
  /** LAHF_LM and what else the vendor has there. */
  readonly extendedEcx: number;
}

/**
 * An EPYC 7763 (Milan), cut down to the CPU's subset of instructions: no XSAVE, AVX, AES, BMI. What cannot be left out of
 * long mode is there, though the subset does not compute with it: x87, MMX, SSE.
 */
const EPYC: CpuModel = {
  vendor: 'AuthenticAMD',
  brand: 'AMD EPYC 7763 64-Core Processor',
  signature: 0x00a0_0f11,
  maxBasic: 0x10,
  maxExtended: 0x8000_0021,
  mirroredEdx: LEAF_1_EDX & 0x0183_f3ff,
  extendedEcx: bits(0, 4),
};

/** A Xeon Platinum 8480 (Sapphire Rapids), cut down likewise. */
const XEON: CpuModel = {
  vendor: 'GenuineIntel',
  brand: 'Intel(R) Xeon(R) Platinum 8480+',
  signature: 0x0008_06f8,
  maxBasic: 0x20,
  maxExtended: 0x8000_0008,
  mirroredEdx: 0,
  extendedEcx: bits(0),
};

/** CPUID of the kind of host that this is. */
const modelOf = ({ vendor }: HostConfig): CpuModel => (vendor === 'amd' ? EPYC : XEON);

/**
 * KVM_GET_SUPPORTED_CPUID (`__do_cpuid_func`): what of the host's CPU a guest can have. A VMM may set it as it is.
 */
export const supportedCpuid = (kernel: Kernel): CpuidEntry[] => {
  const { config } = kernel;
  const model = modelOf(config);
  const [ebx = 0, edx = 0, ecx = 0] = words(model.vendor);
  const [kvmEbx = 0, kvmEcx = 0, kvmEdx = 0] = words('KVMKVMKVM');
  return [
    entry(0, { eax: model.maxBasic, ebx, ecx, edx }),
    entry(1, { eax: model.signature, ebx: 8 << 8, ecx: LEAF_1_ECX, edx: LEAF_1_EDX }),
    entry(6, { eax: bits(2) }),
    entry(7, { ebx: LEAF_7_EBX, ecx: LEAF_7_ECX | (hostHasLa57(config) ? LA57 : 0) }, 0),
    entry(KVM_CPUID_SIGNATURE, { eax: KVM_CPUID_FEATURES, ebx: kvmEbx, ecx: kvmEcx, edx: kvmEdx }),
    entry(KVM_CPUID_FEATURES, {}),
    entry(0x8000_0000, { eax: model.maxExtended, ...(config.vendor === 'amd' ? { ebx, ecx, edx } : {}) }),
    entry(0x8000_0001, { eax: model.signature, ecx: model.extendedEcx, edx: (LEAF_80000001_EDX | model.mirroredEdx) >>> 0 }),
    ...brand(model.brand),
    entry(0x8000_0007, { edx: bits(8) }),
    entry(0x8000_0008, {
      eax: HOST_MAXPHYADDR | (hostLinearAddressBits(config) << 8) | (HOST_MAXPHYADDR << 16),
      ecx: config.cpus - 1,
    }),
    ...(config.vendor === 'amd' ? amdLeaves(kernel) : []),
  ];
};

const amdLeaves = ({ config, amd }: Kernel): CpuidEntry[] => [
  ...(config.sev.enabled && amd !== null ? [memoryEncryption(config)] : []),
  entry(0x8000_0021, { eax: bits(0, 2, 6) }),
];

/** Leaf 0x8000001F as a guest gets it: without SME, the flush MSR and VMPLs, and with no reduction of its addresses. */
const memoryEncryption = ({ sev }: HostConfig): CpuidEntry => {
  const { eax, ebx, ecx, edx } = cpuid8000001f({ count: sev.asids, minSev: sev.minSevAsid });
  const offered = bits(1) | (sev.es ? bits(3) : 0) | (sev.snp ? bits(4) : 0) | bits(10);
  return entry(0x8000_001f, { eax: (eax & offered) >>> 0, ebx: ebx & 0x3f, ecx, edx });
};

/**
 * KVM_GET_EMULATED_CPUID (`__do_cpuid_func_emulated`): instructions that KVM emulates where the host lacks them: MOVBE, RDPID.
 */
export const emulatedCpuid = (): CpuidEntry[] => [entry(0, { eax: 7 }), entry(1, {}), entry(7, {}, 0)];
