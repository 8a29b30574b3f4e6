import { blob, struct, u32, u64 } from '../byte-layout.js';
import { deriveKey } from '../kdf.js';
import type { SnpLaunch, SnpLaunchEnd } from './snp-guest.js';

/** A guest's request for a key that only it, or guests like it, can have again (sev-firmware.md 3.11). */
export const KEY_REQUEST = struct(32, {
  rootKeySelect: u32(0),
  guestFieldSelect: u64(8),
  vmpl: u32(16),
  guestSvn: u32(20),
  tcbVersion: u64(24),
});

/** Bits of GUEST_FIELD_SELECT: what of the guest goes into the key. */
export const GUEST_FIELD = {
  POLICY: 1n << 0n,
  IMAGE_ID: 1n << 1n,
  FAMILY_ID: 1n << 2n,
  MEASUREMENT: 1n << 3n,
  GUEST_SVN: 1n << 4n,
  TCB_VERSION: 1n << 5n,
} as const;

export const GUEST_FIELDS_DEFINED = 0x3fn;

/** What is mixed into the root key; fields that were not selected are zero. */
const KEY_MIX = struct(184, {
  rootKeySelect: u32(0),
  guestFieldSelect: u64(8),
  vmpl: u32(16),
  guestSvn: u32(20),
  tcbVersion: u64(24),
  policy: u64(32),
  imageId: blob(40, 16),
  familyId: blob(56, 16),
  measurement: blob(72, 48),
  hostData: blob(120, 32),
  idKey: blob(152, 32),
});

const KEY_LENGTH = 32;

/**
 * The key for a request that has been checked. The mix and the derivation are a model: AMD's are not public, and only that the
 * same guest gets the same key and that every selected field matters can be relied on.
 */
export function deriveGuestKey(
  root: Uint8Array,
  request: Uint8Array,
  { policy, digest }: SnpLaunch,
  { hostData, idBlock }: SnpLaunchEnd,
): Uint8Array {
  const selected = KEY_REQUEST.guestFieldSelect.get(request);
  const has = (bit: bigint): boolean => (selected & bit) !== 0n;
  const mix = new Uint8Array(KEY_MIX.size);
  // Bit 0, VMRK or not: which endorsement key it is the root itself says.
  KEY_MIX.rootKeySelect.set(mix, KEY_REQUEST.rootKeySelect.get(request) & 1);
  KEY_MIX.guestFieldSelect.set(mix, selected);
  KEY_MIX.vmpl.set(mix, KEY_REQUEST.vmpl.get(request));
  if (has(GUEST_FIELD.GUEST_SVN)) KEY_MIX.guestSvn.set(mix, KEY_REQUEST.guestSvn.get(request));
  if (has(GUEST_FIELD.TCB_VERSION)) KEY_MIX.tcbVersion.set(mix, KEY_REQUEST.tcbVersion.get(request));
  if (has(GUEST_FIELD.POLICY)) KEY_MIX.policy.set(mix, policy);
  if (has(GUEST_FIELD.MEASUREMENT)) KEY_MIX.measurement.set(mix, digest);
  KEY_MIX.hostData.set(mix, hostData);
  if (idBlock !== null) {
    if (has(GUEST_FIELD.IMAGE_ID)) KEY_MIX.imageId.set(mix, idBlock.imageId);
    if (has(GUEST_FIELD.FAMILY_ID)) KEY_MIX.familyId.set(mix, idBlock.familyId);
    KEY_MIX.idKey.set(mix, idBlock.idKeyDigest.subarray(0, 32));
  }
  return deriveKey(root, 'gmsg-keyreq', KEY_LENGTH, mix);
}
