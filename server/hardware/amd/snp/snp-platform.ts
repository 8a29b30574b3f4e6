import type { Pfn } from '../../units.js';
import type { SnpGuest } from './snp-guest.js';

/** The state of the SEV-SNP platform; it is another machine than that of the legacy platform (sev-firmware.md 1.4). */
export type SnpPlatform = { readonly kind: 'uninit' } | SnpInitialised;

export interface SnpInitialised {
  readonly kind: 'init';
  /** By the page of their context. */
  readonly guests: Map<Pfn, SnpGuest>;
}

export type SnpPlatformStateKind = SnpPlatform['kind'];

/** The numbers that SNP_PLATFORM_STATUS gives. */
export const SNP_PLATFORM_STATE_NUMBER: Readonly<Record<SnpPlatformStateKind, number>> = { uninit: 0, init: 1 };

/** What SNP_CONFIG sets. */
export interface SnpConfig {
  /** The version that reports claim and the VCEK is derived from; at most the committed one. */
  readonly reportedTcb: bigint;
  readonly maskChipId: boolean;
  readonly maskChipKey: boolean;
}
