import { equal, u32Bytes } from './bytes.js';
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
const MEASURE_CONTEXT = 4;

/** The measurement that firmware 0.17 or later makes of a launch: MEASURE (32 bytes) for a nonce of its own (16 bytes). */
export const launchMeasurement = (
  tik: Uint8Array,
  { apiMajor, apiMinor, build, policy, digest }: Measured,
  mnonce: Uint8Array,
): Uint8Array => hmac(tik, Uint8Array.of(MEASURE_CONTEXT, apiMajor, apiMinor, build), u32Bytes(policy), digest, mnonce);

/** Whether a measurement (48 bytes) is that of a launch with this digest, on a platform that has the transport keys. */
export const verifyMeasurement = (measurement: Uint8Array, tik: Uint8Array, measured: Measured): boolean =>
  measurement.length === MEASUREMENT_LENGTH &&
  equal(launchMeasurement(tik, measured, measurement.subarray(MEASURE)), measurement.subarray(0, MEASURE));
