/** Numbers of the MSRs that KVM keeps or looks at (arch/x86/include/asm/msr-index.h, uapi/asm/kvm_para.h). */
export const MSR = {
  TSC: 0x10,
  APIC_BASE: 0x1b,
  SMI_COUNT: 0x34,
  TSC_ADJUST: 0x3b,
  SPEC_CTRL: 0x48,
  UCODE_REV: 0x8b,
  PLATFORM_INFO: 0xce,
  MTRR_CAP: 0xfe,
  ARCH_CAPABILITIES: 0x10a,
  MISC_FEATURES_ENABLES: 0x140,
  SYSENTER_CS: 0x174,
  SYSENTER_ESP: 0x175,
  SYSENTER_EIP: 0x176,
  MCG_CAP: 0x179,
  MCG_STATUS: 0x17a,
  MCG_CTL: 0x17b,
  MISC_ENABLE: 0x1a0,
  MTRR_PHYSBASE0: 0x200,
  MTRR_FIX64K: 0x250,
  MTRR_FIX16K_80000: 0x258,
  MTRR_FIX16K_A0000: 0x259,
  MTRR_FIX4K_C0000: 0x268,
  MTRR_FIX4K_F8000: 0x26f,
  PAT: 0x277,
  MTRR_DEF_TYPE: 0x2ff,
  MC0_CTL: 0x400,
  TSC_DEADLINE: 0x6e0,
  X2APIC_FIRST: 0x800,
  X2APIC_LAST: 0x8ff,
  EFER: 0xc000_0080,
  STAR: 0xc000_0081,
  LSTAR: 0xc000_0082,
  CSTAR: 0xc000_0083,
  SYSCALL_MASK: 0xc000_0084,
  FS_BASE: 0xc000_0100,
  GS_BASE: 0xc000_0101,
  KERNEL_GS_BASE: 0xc000_0102,
  TSC_AUX: 0xc000_0103,
  AMD64_TSC_RATIO: 0xc000_0104,
  K7_HWCR: 0xc001_0015,
  AMD64_PATCH_LOADER: 0xc001_0020,
  VM_CR: 0xc001_0114,
  VM_HSAVE_PA: 0xc001_0117,
  VIRT_SPEC_CTRL: 0xc001_011f,
  SEV_ES_GHCB: 0xc001_0130,
  AMD64_DE_CFG: 0xc001_1029,
} as const;

/** Variable-range MTRRs that KVM gives a guest (KVM_NR_VAR_MTRR). */
export const MTRR_VARIABLE_RANGES = 8;

/** Fixed-range MTRRs in order of address. */
export const MTRR_FIXED: readonly number[] = [
  MSR.MTRR_FIX64K,
  MSR.MTRR_FIX16K_80000,
  MSR.MTRR_FIX16K_A0000,
  ...Array.from({ length: MSR.MTRR_FIX4K_F8000 - MSR.MTRR_FIX4K_C0000 + 1 }, (_, index) => MSR.MTRR_FIX4K_C0000 + index),
];

/** `PHYSBASEn` and `PHYSMASKn`. */
export const MTRR_VARIABLE: readonly number[] = Array.from(
  { length: 2 * MTRR_VARIABLE_RANGES },
  (_, index) => MSR.MTRR_PHYSBASE0 + index,
);
