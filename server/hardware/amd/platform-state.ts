import type { GuestContext } from './guest-context.js';
import type { PlatformIdentity } from './identity.js';

/** The state of the SEV platform (sev-firmware.md 1.1): WORKING is INIT with at least one guest context. */
export type PlatformState = { readonly kind: 'uninit' } | InitialisedPlatform;

export interface InitialisedPlatform {
  kind: 'init' | 'working';
  /** Whether SEV-ES guests are possible: INIT was given a trusted memory region for their save areas' integrity. */
  readonly es: boolean;
  identity: PlatformIdentity;
  readonly guests: Map<number, GuestContext>;
}

export type PlatformStateKind = PlatformState['kind'];

/** The numbers that PLATFORM_STATUS gives. */
export const PLATFORM_STATE_NUMBER: Readonly<Record<PlatformStateKind, number>> = { uninit: 0, init: 1, working: 2 };
