import type { MigrationProgressInit, ReceivedVmInit } from '../../../gen/messages.js';
import type { Failure } from '../../kernel/failure.js';
import type { Vm } from '../../kernel/kvm/vm.js';
import type { ChannelRole } from '../../migration/channel.js';
import type { Frame, Standing } from '../../migration/message.js';
import type { Reason } from '../../migration/reason.js';

/** What an operator may decide where the protocol cannot. */
export type OverrideChoice = 'run' | 'discard';

/** One of the two sides of a session, as those see it who drive it and show it. */
export interface Half {
  readonly role: ChannelRole;
  readonly phase: string;
  /** Why it ended as it did; empty where it has not, or where it went well. */
  readonly reason: string;
  /** More of that, for people. */
  readonly detail: string;
  /** For people: what the migration waits for that neither daemon can do. Null: nothing. */
  readonly waitsFor: string | null;
  readonly standing: Standing;
  /** It has ended, whether or not the other side knows. */
  readonly ended: boolean;
  /** Nothing is left to be said. */
  readonly closed: boolean;
  /** Whether the peer may forget it without harm: an end that says nothing new to one who does not know the session. */
  readonly forgettable: boolean;
  /** The VM that it is about, once there is one. */
  readonly vm: Vm | null;
  connected(stream: number): void;
  disconnected(stream: number): void;
  tick(nowMs: number): void;
  receive(frame: Frame, nowMs: number): void;
  /** Sends pages over a stream. @returns milliseconds until there may be more; null: not before something has come */
  pump(nowMs: number, stream: number): number | null;
  /** Gives the migration up, as far as this side may. */
  giveUp(reason: Reason): void;
  /** What to call where the channel has been broken: the same, where nothing can be in doubt. */
  giveUpIfSafe(reason: Reason): void;
  /** The guest runs at the destination, and some of its memory is still at the source: nothing can be given up any more. */
  readonly handedOver: boolean;
  /** Hands the guest over before all of its memory. EINVAL, EBUSY: it cannot (any more). */
  startPostCopy(): Failure | null;
  /** @returns false: the session is not in doubt, so there is nothing to decide; a failure: it could not be recorded, so it is not done */
  override(choice: OverrideChoice): Failure | boolean;
  progress(nowMs: number): MigrationProgressInit;
  received(): ReceivedVmInit | null;
}
