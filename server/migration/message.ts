import type { FrameRun, GuestDescription, PageBatch } from './guest.js';
import type { Reason } from './reason.js';

/** Version of the protocol. A peer may speak any from the oldest on. */
export const PROTOCOL_VERSION = 2;
/** The oldest version that is understood: the first one describes a guest without all that it has been told. */
export const PROTOCOL_VERSION_MIN = 2;

/** Why nothing comes of it with a peer that speaks another one. */
export const protocolVersion = (given: number): Reason => ({
  reason: 'PROTOCOL_VERSION',
  detail: `the other daemon speaks version ${given} of the protocol, this one ${PROTOCOL_VERSION_MIN} to ${PROTOCOL_VERSION}`,
});

/**
 * What one side tells the other, in order and exactly once (`link.ts` sees to it). `S` is the source, `D` the destination.
 */
export type Message =
  /** S: what is to come. */
  | { readonly kind: 'offer'; readonly guest: GuestDescription }
  /** D: there is room for it; what the source's platform needs to know of this one (certificates). */
  | { readonly kind: 'accept'; readonly target: Uint8Array }
  /** S: what the destination's platform needs in order to begin (the firmware's session). */
  | { readonly kind: 'start'; readonly opening: Uint8Array }
  /** S: guest memory. */
  | { readonly kind: 'pages'; readonly batch: PageBatch }
  /** S: what is left of the guest beside its memory. */
  | { readonly kind: 'state'; readonly state: Uint8Array }
  /** S: post-copy: frames that follow once the guest runs. They are not written here any more. */
  | { readonly kind: 'owed'; readonly runs: readonly FrameRun[] }
  /** S: everything has been sent that the guest needs in order to run. */
  | { readonly kind: 'prepare' }
  /** D: everything is here, and only Commit is missing. */
  | { readonly kind: 'prepared' }
  /** S: the guest is yours. */
  | { readonly kind: 'commit' }
  /** D: the guest is mine, and that is on disk. */
  | { readonly kind: 'committed' }
  /** D: post-copy: somebody touches these frames, and waits. */
  | { readonly kind: 'wanted'; readonly gfns: readonly number[] }
  /** D: post-copy: no frame is missing any more. */
  | { readonly kind: 'complete' }
  /** S: destroy your copy, if you have not committed. */
  | ({ readonly kind: 'abort' } & Reason)
  /** D: my copy is destroyed. */
  | ({ readonly kind: 'aborted' } & Reason);

/** Where a side stands with a session: the answer to 'who owns the guest?'. */
export const STANDINGS = [
  'unknown',
  'sending',
  'in-doubt',
  'serving',
  'sent',
  'stayed',
  'receiving',
  'prepared',
  'committed',
  'aborted',
] as const;
export type Standing = (typeof STANDINGS)[number];

interface FrameHead {
  /** Number of the migration; both daemons use the same. */
  readonly session: string;
  /** New at each start of the sender's daemon. */
  readonly boot: string;
}

/** What goes over the wire. */
export type Frame =
  /** Asks the other side where it stands: at each connection, and whenever a side is in doubt. */
  | (FrameHead & { readonly kind: 'ask'; readonly version: number; readonly number: number })
  /** The answer. Only one to a question asked late enough proves anything, for an old one may have been under way for long. */
  | (FrameHead & {
      readonly kind: 'standing';
      /** Number of the question. */
      readonly answers: number;
      readonly standing: Standing;
      /** Of the store in which this daemon keeps Commit records over a restart; null: it has none. */
      readonly ledger: string | null;
      /** Messages that have arrived here. */
      readonly received: number;
    })
  | (FrameHead & { readonly kind: 'data'; readonly sequence: number; readonly message: Message })
  | (FrameHead & { readonly kind: 'ack'; readonly received: number })
  /** S: knows that D has committed, which need not be remembered any longer. */
  | (FrameHead & { readonly kind: 'settled' });
