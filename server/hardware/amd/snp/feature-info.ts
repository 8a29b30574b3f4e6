import { struct, u32 } from '../byte-layout.js';

/**
 * What SNP_FEATURE_INFO writes: the features of the firmware, in the form of CPUID function 0x8000_0024, which CPUs do not have.
 * Of sub-function 0 the bits that Linux knows are known; the others, and EAX and EDX, are not verified: zeros.
 */
export const FEATURE_INFO = struct(16, { eax: u32(0), ebx: u32(4), ecx: u32(8), edx: u32(12) });

/** Bits of EBX of sub-function 0. Bit 1, not here: SEV-TIO. */
export const FEATURE_LEGACY_COMMANDS = 1 << 0;

/** Bits of ECX of sub-function 0 (`SNP_.._SUPPORTED` of `include/linux/psp-sev.h`). */
export const FEATURE = {
  /** SNP_SHUTDOWN_EX can make the CPUs consult the table no longer. */
  X86_SNP_SHUTDOWN: 1 << 1,
  /** SNP_INIT_EX can switch RAPL off, and a guest's policy can require that. */
  RAPL_DIS: 1 << 2,
  /** SNP_INIT_EX can reserve ASIDs of guests whose ciphertext the host cannot read. */
  CIPHERTEXT_HIDING: 1 << 3,
  /** Bits of a guest's policy. */
  AES_256_XTS_POLICY: 1 << 4,
  CXL_ALLOW_POLICY: 1 << 5,
} as const;

/** What the firmware of the simulated part has. */
export const FIRMWARE_FEATURES = FEATURE.X86_SNP_SHUTDOWN | FEATURE.CXL_ALLOW_POLICY;
