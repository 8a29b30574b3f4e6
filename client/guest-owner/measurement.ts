import { equal, requireLength, u32Bytes } from './bytes.js';
import { hmac } from './kdf.js';

/** What KVM_SEV_LAUNCH_MEASURE authenticates to the owner. */
export interface Measured {
  /** Version of the platform's firmware, as SEV_PLATFORM_STATUS says it. */
  readonly apiMajor: number;
  readonly apiMinor: number;
  readonly build: number;
  readonly policy: number;
  /** The launch digest that is expected, 32 bytes. */
  readonly digest: Uint8Array;
}

/** MEASURE, then MNONCE. */
export const MEASUREMENT_LENGTH = 48;
const MEASURE = 32;
const DIGEST_LENGTH = 32;
/** Bytes of TEK and of TIK. */
export const TRANSPORT_KEY_LENGTH = 16;
const MEASURE_CONTEXT = 4;

/** The measurement that firmware 0.17 or later makes of a launch: MEASURE (32 bytes) for a nonce of its own (16 bytes). */
export const launchMeasurement = (
  tik: Uint8Array,
  { apiMajor, apiMinor, build, policy, digest }: Measured,
  mnonce: Uint8Array,
): Uint8Array => hmac(tik, Uint8Array.of(MEASURE_CONTEXT, apiMajor, apiMinor, build), u32Bytes(policy), digest, mnonce);

/**
 * Whether a measurement (48 bytes) is that of a launch with this digest, on a platform that has the transport keys.
 * @throws RangeError if something has a length that it cannot have, or a number of the version is above 255
 */
export const verifyMeasurement = (measurement: Uint8Array, tik: Uint8Array, measured: Measured): boolean => {
  requireLength('the measurement', measurement, MEASUREMENT_LENGTH);
  requireLength('the integrity key (TIK)', tik, TRANSPORT_KEY_LENGTH);
  requireLength('the expected launch digest', measured.digest, DIGEST_LENGTH);
  const { apiMajor, apiMinor, build } = measured;
  for (const [name, value] of Object.entries({ apiMajor, apiMinor, build }))
    if (!Number.isInteger(value) || value < 0 || value > 255)
      throw new RangeError(`${name} is ${value}, and is a byte: 0 to 255`);
  return equal(launchMeasurement(tik, measured, measurement.subarray(MEASURE)), measurement.subarray(0, MEASURE));
};
