import { createHmac } from 'node:crypto';

/** The labels of the firmware's key derivations (sev-firmware.md 3.1). */
export type KdfLabel =
  | 'sev-master-secret'
  | 'sev-kek'
  | 'sev-kik'
  | 'sev-chip-endorsement-key'
  | 'sev-versioned-chip-endorsement-key'
  | 'gmsg-keyreq';

const NOTHING = new Uint8Array(0);

/**
 * The key derivation function of the firmware: SP 800-108 in counter mode over HMAC-SHA-256, with counter and length as
 * little-endian 32-bit words and the label followed by one zero byte (sev-firmware.md 3.1).
 * @param length bytes to derive
 */
export function deriveKey(key: Uint8Array, label: KdfLabel, length: number, context: Uint8Array = NOTHING): Uint8Array {
  const blocks: Uint8Array[] = [];
  for (let counter = 1; (counter - 1) * 32 < length; counter++) {
    const mac = createHmac('sha256', key).update(littleEndian32(counter)).update(label).update(new Uint8Array(1));
    blocks.push(
      mac
        .update(context)
        .update(littleEndian32(length * 8))
        .digest(),
    );
  }
  return Buffer.concat(blocks).subarray(0, length);
}

/** A number as four bytes, lowest first. */
export function littleEndian32(value: number): Uint8Array {
  return Uint8Array.of(value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24);
}
