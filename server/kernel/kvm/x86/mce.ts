import { Vector } from '../../../hardware/cpu/registers.js';
import { Failure, failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import { kvm_x86_mce } from '../../uapi/x86-structs.js';
import { copyStruct } from '../copy-struct.js';
import { REQUEST, type Vcpu } from '../vcpu.js';
import { copyU64In, copyU64Out } from './copy-word.js';
import { queueException } from './inject.js';
import { MSR } from './msr-index.js';
import { MCE_BANKS_MAX } from './msr-store.js';

/** Bits of MCG_CAP that KVM supports: MCG_CTL is there, software error recovery. */
const SUPPORTED_MCG_CAP = (1n << 8n) | (1n << 24n);
/** Number of banks, and of extended registers. */
const MCG_COUNTS = 0xff_00ffn;
const MCG_CTL_P = 1n << 8n;
const MCG_CMCI_P = 1n << 10n;
const MCG_STATUS_MCIP = 4n;
const STATUS = { VAL: 1n << 63n, OVER: 1n << 62n, UC: 1n << 61n } as const;
const ALL = (1n << 64n) - 1n;

const refuse = (reason: string, field: string, given: bigint, kernelRef: string): Failure =>
  new Failure('EINVAL', reason, kernelRef, { field, given: `0x${given.toString(16)}` });

/** KVM_X86_GET_MCE_CAP_SUPPORTED, on `/dev/kvm`. */
export const getMceCapSupported = (arg: IoctlArg): Result<number> => copyU64Out(arg.user, arg.value, SUPPORTED_MCG_CAP) ?? 0;

/** KVM_X86_SETUP_MCE. EINVAL: no bank or more than 32, or a bit that KVM does not support. */
export const setupMce = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const capabilities = copyU64In(arg.user, arg.value);
  if (failed(capabilities)) return capabilities;
  const banks = Number(capabilities & 0xffn);
  if (banks === 0 || banks > MCE_BANKS_MAX || (capabilities & ~(SUPPORTED_MCG_CAP | MCG_COUNTS)) !== 0n)
    return refuse('MCG_CAP_UNSUPPORTED', 'mcg_cap', capabilities, 'kvm_vcpu_ioctl_x86_setup_mce');
  const { msrs, lapic } = vcpu.arch;
  msrs.put(MSR.MCG_CAP, capabilities);
  if ((capabilities & MCG_CTL_P) !== 0n) msrs.put(MSR.MCG_CTL, ALL);
  msrs.mceBanks = banks;
  for (let bank = 0; bank < banks; bank++) msrs.put(MSR.MC0_CTL + 4 * bank, ALL);
  lapic?.afterSetMcgCap((capabilities & MCG_CMCI_P) !== 0n);
  return 0;
};

/** KVM_X86_SET_MCE: a machine check for the guest. An uncorrected one is #MC, or a shutdown where that cannot be taken. */
export const setMce = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const mce = copyStruct(arg, kvm_x86_mce);
  if (failed(mce)) return mce;
  const { msrs, state } = vcpu.arch;
  const msr = (index: number): bigint => msrs.get(index) ?? 0n;
  if (mce.bank >= msrs.mceBanks || (mce.status & STATUS.VAL) === 0n)
    return refuse('MCE_BANK', 'bank', BigInt(mce.bank), 'kvm_vcpu_ioctl_x86_set_mce');
  const first = MSR.MC0_CTL + 4 * mce.bank;
  const uncorrected = (mce.status & STATUS.UC) !== 0n;
  const disabled = (msr(MSR.MCG_CAP) & MCG_CTL_P) !== 0n && msr(MSR.MCG_CTL) !== ALL;
  if (uncorrected && (disabled || msr(first) !== ALL)) return 0;
  if (uncorrected && ((msr(MSR.MCG_STATUS) & MCG_STATUS_MCIP) !== 0n || (state.cr4 & CR4_MCE) === 0n)) {
    vcpu.request(REQUEST.TRIPLE_FAULT);
    return 0;
  }
  const occupied = (msr(first + 1) & STATUS.VAL) !== 0n;
  if (!uncorrected && occupied && (msr(first + 1) & STATUS.UC) !== 0n) {
    msrs.put(first + 1, msr(first + 1) | STATUS.OVER);
    return 0;
  }
  msrs.put(first + 1, mce.status | (occupied ? STATUS.OVER : 0n));
  msrs.put(first + 2, mce.addr);
  msrs.put(first + 3, mce.misc);
  if (!uncorrected) return 0;
  msrs.put(MSR.MCG_STATUS, mce.mcg_status);
  queueException(vcpu, Vector.MC);
  return 0;
};

/** Not among the bits that the CPU itself looks at. */
const CR4_MCE = 1n << 6n;
