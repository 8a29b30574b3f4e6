/** Simulated time of a host. Passed in: nothing below the daemon reads the machine's. */
export interface Clock {
  /** Nanoseconds since the host was started. */
  now(): bigint;
}
