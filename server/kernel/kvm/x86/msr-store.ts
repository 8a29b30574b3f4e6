import { LazyMap } from '../../lazy-map.js';
import { MSR, MTRR_FIXED, MTRR_VARIABLE, MTRR_VARIABLE_RANGES } from './msr-index.js';

/** An MSR that KVM keeps as a value and otherwise does nothing with. */
interface StoredMsr {
  readonly reset: bigint;
  /** Refused by both sides where false. */
  readonly valid?: (value: bigint, hostInitiated: boolean) => boolean;
}

const U32 = 0xffff_ffffn;

/** `kvm_pat_valid`: memory types 0, 1, 4, 5, 6, 7 in each byte. */
const validPat = (value: bigint): boolean => {
  for (let byte = 0n; byte < 8n; byte++) {
    const type = Number((value >> (8n * byte)) & 0xffn);
    if (type > 7 || type === 2 || type === 3) return false;
  }
  return true;
};

const readsZero = (index: number): [number, bigint] => [index, 0n];

/** KVM_MAX_MCE_BANKS, four MSRs each. */
export const MCE_BANKS_MAX = 32;

/** `valid_mtrr_type`: 0, 1, 4, 5, 6. */
const validMtrrType = (type: bigint): boolean => type < 8n && ((0x73n >> type) & 1n) === 1n;

const validFixedMtrr = (value: bigint): boolean => {
  for (let byte = 0n; byte < 8n; byte++) if (!validMtrrType((value >> (8n * byte)) & 0xffn)) return false;
  return true;
};

const onlyZero = (value: bigint): boolean => value === 0n;
const hostOnly = (_value: bigint, hostInitiated: boolean): boolean => hostInitiated;

/** MSRs that are kept as they are, with their value at RESET. */
const STORED: ReadonlyMap<number, StoredMsr> = new Map<number, StoredMsr>([
  [MSR.SMI_COUNT, { reset: 0n, valid: hostOnly }],
  [MSR.SPEC_CTRL, { reset: 0n, valid: (value) => (value & ~0x7n) === 0n }],
  [MSR.UCODE_REV, { reset: 0x0100_0065n, valid: hostOnly }],
  // Bit 31: the guest can have CPUID faulting.
  [MSR.PLATFORM_INFO, { reset: 1n << 31n, valid: hostOnly }],
  // No CPUID offers it, so a host can only write what it would have read.
  [MSR.ARCH_CAPABILITIES, { reset: 0n, valid: (value, hostInitiated) => hostInitiated && value === 0n }],
  [MSR.MISC_FEATURES_ENABLES, { reset: 0n, valid: (value) => (value & ~1n) === 0n }],
  [MSR.MCG_CAP, { reset: BigInt(MCE_BANKS_MAX), valid: () => false }],
  [MSR.MCG_STATUS, { reset: 0n }],
  [MSR.MCG_CTL, { reset: 0n, valid: (value) => value === 0n || value === (1n << 64n) - 1n }],
  // Fast strings, and branch trace and PEBS unavailable.
  [MSR.MISC_ENABLE, { reset: 0x1801n }],
  [MSR.PAT, { reset: 0x0007_0406_0007_0406n, valid: validPat }],
  [MSR.MTRR_CAP, { reset: 0x500n | BigInt(MTRR_VARIABLE_RANGES), valid: () => false }],
  [MSR.MTRR_DEF_TYPE, { reset: 0n, valid: (value) => (value & ~0xcffn) === 0n && validMtrrType(value & 0xffn) }],
  ...MTRR_FIXED.map((index): [number, StoredMsr] => [index, { reset: 0n, valid: validFixedMtrr }]),
  ...MTRR_VARIABLE.map((index): [number, StoredMsr] => [
    index,
    // PHYSBASE has a type, PHYSMASK a valid bit.
    {
      reset: 0n,
      valid: (value) => (index % 2 === 0 ? validMtrrType(value & 0xffn) && (value & 0xf00n) === 0n : (value & 0x7ffn) === 0n),
    },
  ]),
  [MSR.AMD64_TSC_RATIO, { reset: 1n << 32n, valid: (value) => value >> 40n === 0n }],
  // Mostly bits that a guest may set without effect: FFDIS, MCI_STATUS_WREN, TSC_FREQ_SEL and the like.
  [MSR.K7_HWCR, { reset: 0n, valid: (value) => (value & ~(0x148n | (1n << 18n) | (1n << 24n))) === 0n }],
  [MSR.VM_CR, { reset: 1n << 4n, valid: (value) => (value & ~0x1fn) === 0n }],
  [MSR.VM_HSAVE_PA, { reset: 0n, valid: (value) => (value & 0xfffn) === 0n }],
  [MSR.VIRT_SPEC_CTRL, { reset: 0n, valid: (value) => (value & ~4n) === 0n }],
  // Bit 1: LFENCE serializes.
  [MSR.AMD64_DE_CFG, { reset: 2n, valid: (value) => (value & ~2n) === 0n }],
  [MSR.TSC_ADJUST, { reset: 0n }],
]);

/** MSRs that real processors have and guests try: they read as what makes a guest leave them alone (`kvm_get_msr_common`). */
const CONSTANT: ReadonlyMap<number, bigint> = new Map<number, bigint>([
  ...[MSR.P5_MC_ADDR, MSR.P5_MC_TYPE, MSR.PLATFORM_ID, MSR.EBL_CR_POWERON, MSR.PERF_CTL].map(readsZero),
  ...[MSR.RAPL_POWER_UNIT, MSR.PKG_ENERGY_STATUS, MSR.DRAM_ENERGY_STATUS, MSR.PP0_ENERGY_STATUS, MSR.PP1_ENERGY_STATUS].map(
    readsZero,
  ),
  ...[
    MSR.AMD64_SYSCFG,
    MSR.AMD64_NB_CFG,
    MSR.K8_INT_PENDING_MSG,
    MSR.FAM10H_MMIO_CONF_BASE,
    MSR.K8_TSEG_ADDR,
    MSR.K8_TSEG_MASK,
  ].map(readsZero),
  ...[MSR.AMD64_DC_CFG, MSR.AMD64_TW_CFG, MSR.AMD64_BU_CFG2, MSR.F15H_EX_CFG].map(readsZero),
  // Core clock ratio 1.
  [MSR.EBC_FREQUENCY_ID, 1n << 24n],
  // 100 MHz.
  [MSR.FSB_FREQ, 3n],
  // TSC increments by tick, and a current multiplier of 4.
  [MSR.PERF_STATUS, 1000n | (4n << 40n)],
  [MSR.K7_CLK_CTL, 0x2000_0000n],
]);

/** Writes that are taken and forgotten (`kvm_set_msr_common`). */
const WRITES_IGNORED: ReadonlySet<number> = new Set([
  ...[MSR.UCODE_WRITE, MSR.AMD64_PATCH_LOADER, MSR.AMD64_NB_CFG, MSR.AMD64_BU_CFG2, MSR.AMD64_DC_CFG, MSR.AMD64_TW_CFG],
  ...[MSR.F15H_EX_CFG, MSR.K7_CLK_CTL],
]);

/** Values of the MSRs that a vCPU has beside those of the CPU. */
export class MsrStore {
  private readonly values = new LazyMap<number, bigint>();
  /** Banks of machine checks that KVM_X86_SETUP_MCE has made. */
  mceBanks = MCE_BANKS_MAX;

  /** Null: no such MSR. */
  get(index: number): bigint | null {
    const known = STORED.get(index);
    if (known !== undefined) return this.values.get(index) ?? known.reset;
    return this.isMceBank(index) ? (this.values.get(index) ?? 0n) : (CONSTANT.get(index) ?? null);
  }

  /** @returns false for an unknown MSR or a value that it does not take */
  set(index: number, value: bigint, hostInitiated: boolean): boolean {
    if (this.isMceBank(index)) return this.setMceBank(index, value, hostInitiated);
    if (WRITES_IGNORED.has(index) || (!hostInitiated && index === MSR.UCODE_REV)) return true;
    if (index === MSR.FAM10H_MMIO_CONF_BASE) return onlyZero(value);
    const known = STORED.get(index);
    if (known === undefined) return false;
    if (known.valid?.(value, hostInitiated) === false) return false;
    this.values.set(index, value);
    return true;
  }

  /** KVM's own writes, which nothing refuses. */
  put(index: number, value: bigint): void {
    this.values.set(index, value);
  }

  /** RESET, not INIT. */
  reset(): void {
    this.values.clear();
  }

  private isMceBank(index: number): boolean {
    return index >= MSR.MC0_CTL && index < MSR.MC0_CTL + 4 * this.mceBanks;
  }

  /** `set_msr_mce`: CTL is all or nothing, STATUS can only be cleared by the guest. */
  private setMceBank(index: number, value: bigint, hostInitiated: boolean): boolean {
    const register = index % 4;
    if (register === 0 && value !== 0n && (value | (1n << 10n) | 1n) !== (1n << 64n) - 1n) return false;
    if (register === 1 && value !== 0n && !hostInitiated) return false;
    this.values.set(index, value);
    return true;
  }
}

/** `kvm_get_feature_msr`: what a VMM may read of the host before it has a vCPU. Null: no feature MSR. */
export const featureMsr = (index: number): bigint | null => {
  if (!FEATURE_MSRS.includes(index)) return null;
  const known = STORED.get(index);
  return known === undefined ? 0n : index === MSR.UCODE_REV ? known.reset << 32n : known.reset & U32;
};

/** KVM_GET_MSR_FEATURE_INDEX_LIST. */
export const FEATURE_MSRS: readonly number[] = [MSR.ARCH_CAPABILITIES, MSR.UCODE_REV, MSR.AMD64_DE_CFG, MSR.PLATFORM_INFO];

/** KVM_GET_MSR_INDEX_LIST: what makes up a vCPU's state, for whoever saves it. */
export const SAVED_MSRS: readonly number[] = [
  ...[MSR.SYSENTER_CS, MSR.SYSENTER_ESP, MSR.SYSENTER_EIP, MSR.STAR, MSR.CSTAR, MSR.KERNEL_GS_BASE, MSR.SYSCALL_MASK, MSR.LSTAR],
  ...[MSR.TSC, MSR.PAT, MSR.VM_HSAVE_PA, MSR.TSC_AUX, MSR.SPEC_CTRL],
  ...[MSR.MTRR_DEF_TYPE, ...MTRR_FIXED, ...MTRR_VARIABLE],
  ...[MSR.TSC_ADJUST, MSR.TSC_DEADLINE, MSR.ARCH_CAPABILITIES, MSR.MISC_ENABLE, MSR.MCG_STATUS, MSR.MCG_CTL, MSR.SMI_COUNT],
  ...[MSR.PLATFORM_INFO, MSR.MISC_FEATURES_ENABLES, MSR.VIRT_SPEC_CTRL, MSR.AMD64_TSC_RATIO, MSR.K7_HWCR],
];
