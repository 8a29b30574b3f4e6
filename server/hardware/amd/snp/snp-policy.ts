import { type ApiVersion, isAtLeast } from '../policy.js';
import { STATUS, type Status } from '../status.js';

/** Bits of the policy of an SNP guest (sev-firmware.md 3.15). */
export const SNP_POLICY = {
  SMT: 1n << 16n,
  /** Must be one. */
  RESERVED_ONE: 1n << 17n,
  MIGRATE_MA: 1n << 18n,
  DEBUG: 1n << 19n,
  SINGLE_SOCKET: 1n << 20n,
  CXL_ALLOW: 1n << 21n,
  MEM_AES_256_XTS: 1n << 22n,
  RAPL_DIS: 1n << 23n,
  CIPHERTEXT_HIDING_DRAM: 1n << 24n,
  PAGE_SWAP_DISABLE: 1n << 25n,
} as const;

const DEFINED = (1n << 26n) - 1n;

/** What this platform does not have: AES-256-XTS, RAPL switched off, ciphertext hiding. */
const UNAVAILABLE = SNP_POLICY.MEM_AES_256_XTS | SNP_POLICY.RAPL_DIS | SNP_POLICY.CIPHERTEXT_HIDING_DRAM;

export const hasSnpPolicy = (policy: bigint, bit: bigint): boolean => (policy & bit) !== 0n;

export interface SnpPlatformTraits {
  readonly version: ApiVersion;
  /** Whether simultaneous multithreading is on. */
  readonly smt: boolean;
}

/** Whether this platform can honour a policy. */
export function checkSnpPolicy(policy: bigint, { version, smt }: SnpPlatformTraits): Status {
  if ((policy & ~DEFINED) !== 0n) return STATUS.INVALID_PARAM;
  if (!hasSnpPolicy(policy, SNP_POLICY.RESERVED_ONE)) return STATUS.POLICY_FAILURE;
  const minimum = { major: Number((policy >> 8n) & 0xffn), minor: Number(policy & 0xffn) };
  if (!isAtLeast(version, minimum)) return STATUS.POLICY_FAILURE;
  if (smt && !hasSnpPolicy(policy, SNP_POLICY.SMT)) return STATUS.POLICY_FAILURE;
  return (policy & UNAVAILABLE) === 0n ? STATUS.SUCCESS : STATUS.POLICY_FAILURE;
}
