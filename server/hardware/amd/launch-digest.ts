import { createHash, createHmac, type Hash } from 'node:crypto';
import { littleEndian32 } from './kdf.js';
import { MAC_CONTEXT } from './packet.js';
import type { ApiVersion } from './policy.js';

/**
 * The launch digest of a legacy guest: SHA-256 over the plaintext of every LAUNCH_UPDATE_DATA and LAUNCH_UPDATE_VMSA in
 * the order of the calls (sev-firmware.md 3.5). Addresses, lengths and call boundaries are not part of it.
 */
export class LaunchDigest {
  private readonly hash: Hash = createHash('sha256');

  update(plaintext: Uint8Array): void {
    this.hash.update(plaintext);
  }

  /** The digest so far. */
  value(): Uint8Array {
    return this.hash.copy().digest();
  }
}

export interface FirmwareVersion extends ApiVersion {
  readonly build: number;
}

/** What LAUNCH_MEASURE authenticates to the guest owner. */
export interface Measured {
  readonly firmware: FirmwareVersion;
  readonly policy: number;
  readonly digest: Uint8Array;
  readonly mnonce: Uint8Array;
}

/** The 32 bytes of a launch measurement, an HMAC under the transport integrity key (API 0.17 and later). */
export function launchMeasurement(tik: Uint8Array, { firmware, policy, digest, mnonce }: Measured): Uint8Array {
  const { major, minor, build } = firmware;
  const mac = createHmac('sha256', tik).update(Uint8Array.of(MAC_CONTEXT.MEASURE, major, minor, build));
  return mac.update(littleEndian32(policy)).update(digest).update(mnonce).digest();
}
