import type { Pfn } from '../../units.js';
import type { Activation } from '../guest-context.js';
import type { IdBlock } from './id-block.js';

/** What a guest has from SNP_LAUNCH_START on (sev-firmware.md 2.11). */
export interface SnpLaunch {
  readonly policy: bigint;
  /** The VM encryption key, 16 bytes. */
  readonly vek: Uint8Array;
  /** Keys of the guest's messages to the firmware, one for each VMPL, 32 bytes. */
  readonly vmpcks: readonly Uint8Array[];
  /** The sequence number of the last message under each of them. */
  readonly messageCounts: bigint[];
  /** VM root key, from which derived keys may come. */
  readonly vmrk: Uint8Array;
  /** Offline encryption key, under which pages are swapped out, 32 bytes; and how often it was used. */
  readonly oek: Uint8Array;
  oekUses: bigint;
  /** Metadata entry of the last page of metadata that was swapped out, if its place is the context. */
  rootEntry: Uint8Array;
  readonly reportId: Uint8Array;
  readonly launchTcb: bigint;
  readonly gosvw: Uint8Array;
  readonly tscKhz: number;
  /** The launch digest, which SNP_LAUNCH_UPDATE extends. */
  digest: Uint8Array;
}

/** What SNP_LAUNCH_FINISH adds. */
export interface SnpLaunchEnd {
  readonly hostData: Uint8Array;
  /** Null: launched without an ID block. */
  readonly idBlock: IdBlock | null;
  readonly vcekDisabled: boolean;
}

export type SnpGuestState =
  | { readonly kind: 'init' }
  | { readonly kind: 'launch'; readonly launch: SnpLaunch }
  | { readonly kind: 'running'; readonly launch: SnpLaunch; readonly end: SnpLaunchEnd };

export type SnpGuestStateKind = SnpGuestState['kind'];
export type SnpGuestStateOf<Kind extends SnpGuestStateKind> = Extract<SnpGuestState, { kind: Kind }>;

/** The numbers that SNP_GUEST_STATUS gives. */
export const SNP_GUEST_STATE_NUMBER: Readonly<Record<SnpGuestStateKind, number>> = { init: 0, launch: 1, running: 2 };

/** GCTX of an SNP guest; the page that it stands in takes the place of a handle. */
export interface SnpGuest {
  readonly page: Pfn;
  /** Null while inactive. */
  activation: Activation | null;
  state: SnpGuestState;
}
