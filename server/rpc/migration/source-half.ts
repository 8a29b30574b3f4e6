import { failed, type Result } from '../../kernel/failure.js';
import type { Vm } from '../../kernel/kvm/vm.js';
import type { SourceGuest } from '../../migration/guest.js';
import type { Ledger } from '../../migration/ledger.js';
import type { CopyLimits } from '../../migration/limits.js';
import type { LocalSide, Transmit } from '../../migration/link.js';
import { createSourceGuest } from '../../migration/local-source.js';
import { because, type Reason } from '../../migration/reason.js';
import { Source, type SourceState } from '../../migration/source.js';
import type { Half } from './half.js';

export interface SourceHalfOptions {
  readonly local: LocalSide;
  readonly vm: Vm;
  readonly ledger: Ledger;
  readonly limits: CopyLimits;
  readonly transmit: Transmit;
  /** Something has happened that nobody has called for: the vCPUs have stopped. */
  readonly stirred: () => void;
}

/** What nobody did, and can do anything about. */
const LOST = because('GUEST_LOST', 'the destination had committed, and has restarted since: what a daemon has, ends with it');

const endOf = (state: SourceState): Reason => {
  if (state.phase === 'stayed') return state;
  return state.phase === 'sent' && state.lost ? LOST : because('');
};

/** The half of the host that has the guest. A failure says why the guest cannot be sent. */
export const createSourceHalf = ({ local, vm, ledger, limits, transmit, stirred }: SourceHalfOptions): Result<Half> => {
  const guest = createSourceGuest(vm, local.session);
  if (failed(guest)) return guest;
  const stop: typeof guest.stop = (stopped) =>
    guest.stop((failure) => {
      stopped(failure);
      stirred();
    });
  const stirring: SourceGuest = {
    ...guest,
    stop,
    get waitsFor() {
      return guest.waitsFor;
    },
  };
  const machine = new Source(local, stirring, ledger, limits, transmit);
  const giveUp = (reason: Reason): void => machine.cancel(reason);
  return {
    role: 'source',
    vm,
    get phase() {
      return machine.state.phase;
    },
    get reason() {
      return endOf(machine.state).reason;
    },
    get detail() {
      return endOf(machine.state).detail;
    },
    get waitsFor() {
      return machine.waitsFor;
    },
    get standing() {
      return machine.standing;
    },
    get ended() {
      return machine.standing === 'sent' || machine.standing === 'stayed';
    },
    get closed() {
      return machine.closed;
    },
    // A destination that hears 'unknown' of the boot that sent to it gives its copy up, as it would after 'stayed'.
    get forgettable() {
      return machine.standing === 'stayed';
    },
    connected: (stream) => machine.connected(stream),
    disconnected: (stream) => machine.disconnected(stream),
    tick: (nowMs) => machine.tick(nowMs),
    receive: (frame, nowMs) => machine.receive(frame, nowMs),
    pump: (nowMs, stream) => machine.pump(nowMs, stream),
    giveUp,
    giveUpIfSafe: (reason) => {
      if (machine.standing === 'sending') giveUp(reason);
    },
    get handedOver() {
      return machine.standing === 'serving';
    },
    startPostCopy: () => machine.startPostCopy(),
    override: (choice) => {
      const { standing } = machine;
      if (standing !== 'in-doubt' && !(standing === 'serving' && choice === 'discard')) return false;
      return (choice === 'run' ? machine.forceRun(local.session) : machine.forceSent(local.session)) ?? true;
    },
    progress: (nowMs) => {
      const statistics = machine.statistics(nowMs);
      return {
        round: statistics.round,
        pages_sent: statistics.pagesSent,
        pages_left: statistics.pagesLeft,
        bytes_sent: statistics.bytesSent,
        bytes_per_second: statistics.bytesPerSecond,
        dirty_pages_per_second: statistics.dirtyPagesPerSecond,
        expected_downtime_ms: statistics.expectedDowntimeMs,
        downtime_ms: statistics.downtimeMs,
        throttle_percent: statistics.throttlePercent,
        faults_served: statistics.faultsServed,
      };
    },
    received: () => null,
  };
};
