/** Bits of the policy word of a legacy guest (sev-firmware.md 3.9). Bits 15:6 are reserved. */
export const POLICY = {
  /** DBG_DECRYPT and DBG_ENCRYPT are refused. */
  NODBG: 1 << 0,
  /** The guest's key is not shared with another guest. */
  NOKS: 1 << 1,
  /** The guest must be SEV-ES. */
  ES: 1 << 2,
  /** The guest may not be sent to another platform. */
  NOSEND: 1 << 3,
  /** The guest may be sent only to platforms with the same owner. */
  DOMAIN: 1 << 4,
  /** The guest may be sent only to platforms whose chain ends in AMD's root. */
  SEV: 1 << 5,
} as const;

export interface ApiVersion {
  readonly major: number;
  readonly minor: number;
}

/** The lowest version of the SEV API that a policy accepts. */
export const policyApi = (policy: number): ApiVersion => ({ major: (policy >>> 16) & 0xff, minor: policy >>> 24 });

export const hasPolicy = (policy: number, bit: number): boolean => (policy & bit) !== 0;

export const isAtLeast = (version: ApiVersion, minimum: ApiVersion): boolean =>
  version.major > minimum.major || (version.major === minimum.major && version.minor >= minimum.minor);
