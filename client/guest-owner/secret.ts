import { randomBytes } from 'node:crypto';
import { guid, padded, requireLength, u32Bytes } from './bytes.js';
import { counterMode, hmac } from './kdf.js';
import { MEASUREMENT_LENGTH, TRANSPORT_KEY_LENGTH } from './measurement.js';
import type { TransportKeys } from './session.js';

/** A packet for KVM_SEV_LAUNCH_SECRET. */
export interface SecretPacket {
  /** `hdr_uaddr`, 52 bytes. */
  readonly header: Uint8Array;
  /** `trans_uaddr`; as long as the guest memory that it fills. */
  readonly data: Uint8Array;
}

/** One entry of a secret table: what it is, by GUID, and the secret. */
export interface Secret {
  readonly guid: string;
  readonly data: Uint8Array;
}

/** GUID of the table that OVMF and the guest look for in injected memory. */
const SECRET_TABLE = '1e74f542-71dd-4d66-963e-ef4287ff173b';
const ENTRY_HEADER = 20;
/** What LAUNCH_SECRET takes at once. */
const SECRET_LENGTH_MAX = 16 * 1024;
const SECRET_CONTEXT = 1;
const NO_FLAGS = u32Bytes(0);

/** The table that a guest finds its secrets in, padded to whole blocks. @throws RangeError if a GUID is none */
export const secretTable = (secrets: readonly Secret[]): Uint8Array => {
  const entries = secrets.flatMap(({ guid: id, data }) => [guid(id), u32Bytes(ENTRY_HEADER + data.length), data]);
  const length = secrets.reduce((sum, { data }) => sum + ENTRY_HEADER + data.length, ENTRY_HEADER);
  return padded(Buffer.concat([guid(SECRET_TABLE), u32Bytes(length), ...entries]), 16);
};

/**
 * Seals `plaintext` (whole blocks of 16 bytes) for the guest whose launch gave `measurement`, and no other: its packet is
 * refused by every other launch.
 * @throws RangeError if something has a length that it cannot have
 */
export const sealSecret = (
  { tek, tik }: TransportKeys,
  measurement: Uint8Array,
  plaintext: Uint8Array,
  iv: Uint8Array = randomBytes(16),
): SecretPacket => {
  if (plaintext.length === 0 || plaintext.length % 16 !== 0)
    throw new RangeError(`a secret has whole blocks of 16 bytes, and this one has ${plaintext.length} bytes`);
  if (plaintext.length > SECRET_LENGTH_MAX)
    throw new RangeError(`the secret has ${plaintext.length} bytes with its table, and the firmware takes ${SECRET_LENGTH_MAX}`);
  requireLength('the measurement', measurement, MEASUREMENT_LENGTH);
  requireLength('the encryption key (TEK)', tek, TRANSPORT_KEY_LENGTH);
  requireLength('the integrity key (TIK)', tik, TRANSPORT_KEY_LENGTH);
  const data = counterMode(tek, iv, plaintext);
  const lengths = Buffer.concat([u32Bytes(plaintext.length), u32Bytes(data.length)]);
  const mac = hmac(tik, Uint8Array.of(SECRET_CONTEXT), NO_FLAGS, iv, lengths, data, measurement.subarray(0, 32));
  return { header: Buffer.concat([NO_FLAGS, iv, mac]), data };
};
