import type { Asid } from '../units.js';
import type { LaunchDigest } from './launch-digest.js';
import type { EncryptionKey } from './memory-encryption.js';
import type { TransportKeys } from './session.js';

/**
 * The state of a legacy guest (sev-firmware.md 1.2). Each state owns the secrets that exist in it, so that leaving it
 * wipes them; `digest` outlives the launch because ATTESTATION reports it, and is zero for a guest that was received.
 */
export type GuestState =
  | { readonly kind: 'launch-update'; readonly transport: TransportKeys; readonly digest: LaunchDigest }
  | {
      readonly kind: 'launch-secret';
      readonly transport: TransportKeys;
      readonly digest: Uint8Array;
      readonly measure: Uint8Array;
    }
  | { readonly kind: 'running'; readonly digest: Uint8Array }
  | { readonly kind: 'send-update'; readonly transport: TransportKeys; readonly digest: Uint8Array }
  | { readonly kind: 'receive-update'; readonly transport: TransportKeys }
  | { readonly kind: 'sent' };

export type GuestStateKind = GuestState['kind'];
export type GuestStateOf<Kind extends GuestStateKind> = Extract<GuestState, { kind: Kind }>;

/** The numbers that GUEST_STATUS gives; 0 is UNINIT, a handle without a guest. */
export const GUEST_STATE_NUMBER: Readonly<Record<GuestStateKind, number>> = {
  'launch-update': 1,
  'launch-secret': 2,
  running: 3,
  'send-update': 4,
  'receive-update': 5,
  sent: 6,
};

/** An ASID with the guest's key in its slot. */
export interface Activation {
  readonly asid: Asid;
  readonly key: EncryptionKey;
}

/** GCTX: all that the secure processor knows of one guest. */
export interface GuestContext {
  readonly handle: number;
  readonly policy: number;
  /** The VM encryption key, 16 bytes; guests that share a key share this array. */
  readonly vek: Uint8Array;
  /** Null while inactive. */
  activation: Activation | null;
  state: GuestState;
}
