/**
 * When a guest may be handed over before all of its memory has been copied (QEMU's `postcopy-ram`): not at all; when somebody
 * asks for it (`migrate-start-postcopy`); then, and where the rounds are over and it would be stopped for too long; at once.
 */
export type PostCopyMode = 'never' | 'on-request' | 'after-rounds' | 'at-once';

/** How long to go on copying while the guest runs, and what the copying may take. */
export interface CopyLimits {
  /** Milliseconds that the guest may be stopped, as far as that can be foreseen. */
  readonly downtimeMs: number;
  /** Rounds after which it is stopped in any case. */
  readonly rounds: number;
  /** Bytes of guest memory a second while the guest runs; null: as fast as it goes. */
  readonly bandwidth: number | null;
  /**
   * Bytes of guest memory a second that can be sent while it is stopped: the downtime is foreseen at this rate (QEMU's
   * `avail-switchover-bandwidth`). Null: at the rate of the copying, which `bandwidth` may hold back.
   */
  readonly switchoverBandwidth: number | null;
  /** Slows the vCPUs down where they write faster than is copied. */
  readonly autoConverge: boolean;
  /** Streams that the pages go over: as many as whoever drives the session opens. */
  readonly streams: number;
  /** Compresses pages that travel in the clear; sealed ones cannot be made smaller. */
  readonly compress: boolean;
  readonly postCopy: PostCopyMode;
  /** Pages of one message. */
  readonly batchPages: number;
}

export const DEFAULT_LIMITS: CopyLimits = {
  downtimeMs: 300,
  rounds: 30,
  bandwidth: null,
  switchoverBandwidth: null,
  autoConverge: false,
  streams: 1,
  compress: false,
  postCopy: 'never',
  batchPages: 256,
};
