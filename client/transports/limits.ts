export const KEEPALIVE_MS = 30_000;
export const KEEPALIVE_TIMEOUT_MS = 15_000;
/** HTTP/2 receive window: what lets a Dump run at the speed of the host. */
export const WINDOW_BYTES = 8 * 2 ** 20;
/** A chunk of 1 MiB and what surrounds it. */
export const MESSAGE_MAX = 4 * 2 ** 20;
