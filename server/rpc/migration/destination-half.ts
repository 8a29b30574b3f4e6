import type { ReceivedVmInit } from '../../../gen/messages.js';
import { Failure } from '../../kernel/failure.js';
import type { Kernel } from '../../kernel/kernel.js';
import type { Vm } from '../../kernel/kvm/vm.js';
import { VmFile } from '../../kernel/kvm/vm-file.js';
import type { Process } from '../../kernel/process/process.js';
import { Destination } from '../../migration/destination.js';
import type { GuestDescription } from '../../migration/guest.js';
import type { Ledger } from '../../migration/ledger.js';
import type { LocalSide, Transmit } from '../../migration/link.js';
import { type ReceivedVm, receiveGuest } from '../../migration/local-destination.js';
import type { Reason } from '../../migration/reason.js';
import type { Half } from './half.js';

export interface DestinationHalfOptions {
  readonly local: LocalSide;
  readonly kernel: Kernel;
  /** The one that gets the VM. */
  readonly process: Process;
  readonly ledger: Ledger;
  readonly transmit: Transmit;
}

/** What has been made. */
interface Arrival {
  readonly vm: Vm;
  readonly received: ReceivedVm;
}

const vmOf = ({ files }: Process, fd: number): Vm => {
  const ops = files.lookup(fd)?.ops;
  if (ops instanceof VmFile) return ops.vm;
  throw new Error(`descriptor ${fd} is no VM`);
};

const receivedView = (received: ReceivedVm): ReceivedVmInit => ({
  vm_fd: received.vmFd,
  vcpu_fds: received.vcpuFds,
  other_fds: received.otherFds,
  slots: received.slots.map(({ id, gpa, bytes, address }) => ({
    id,
    guest_phys_addr: gpa,
    memory_size: bytes,
    userspace_addr: address,
  })),
  ioeventfds: received.ioeventfds,
  irqfds: received.irqfds,
});

/** The half of the host that is to have the guest. */
export const createDestinationHalf = ({ local, kernel, process, ledger, transmit }: DestinationHalfOptions): Half => {
  let arrival: Arrival | null = null;
  let wasPrepared = false;
  const receive = (description: GuestDescription) =>
    receiveGuest(kernel, process, description, (received) => {
      // Told again with what is known only at the end, when the process may have closed the descriptor.
      arrival = { vm: arrival?.vm ?? vmOf(process, received.vmFd), received };
    });
  const machine = new Destination(local, receive, ledger, transmit);
  const giveUp = (reason: Reason): void => machine.abort(reason);
  return {
    role: 'destination',
    get vm() {
      return arrival?.vm ?? null;
    },
    get phase() {
      return machine.state.phase;
    },
    get reason() {
      const { state } = machine;
      if (state.phase === 'committed' && state.lost > 0) return 'PAGES_LOST';
      return state.phase === 'aborted' ? state.reason : '';
    },
    get detail() {
      return machine.state.phase === 'aborted' ? machine.state.detail : '';
    },
    waitsFor: null,
    get standing() {
      return machine.standing;
    },
    get ended() {
      return machine.state.phase === 'committed' || machine.state.phase === 'aborted';
    },
    get closed() {
      return machine.closed;
    },
    // A source that has heard Prepared may be in doubt: to it 'unknown' of this boot proves nothing, so it has to be told.
    get forgettable() {
      return machine.standing === 'aborted' && !wasPrepared;
    },
    connected: (stream) => machine.connected(stream),
    disconnected: (stream) => machine.disconnected(stream),
    tick: () => machine.tick(),
    receive: (frame) => {
      machine.receive(frame);
      wasPrepared ||= machine.standing === 'prepared';
    },
    pump: () => null,
    giveUp,
    giveUpIfSafe: giveUp,
    get handedOver() {
      return machine.state.phase === 'fetching';
    },
    startPostCopy: () =>
      new Failure('EINVAL', 'SESSION_IS_DESTINATION', 'simkvmd', {
        field: 'session',
        given: local.session,
        allowed: "the source's daemon",
      }),
    override: (choice) => {
      if (machine.state.phase === 'fetching' && choice === 'discard') return machine.forceLoss() ?? true;
      if (machine.standing !== 'prepared') return false;
      return (choice === 'run' ? machine.forceRun() : machine.forceAbort()) ?? true;
    },
    progress: () => ({
      pages_sent: machine.pagesReceived,
      pages_left: machine.pagesMissing,
      faults_served: machine.faults,
    }),
    received: () => (arrival === null || machine.standing === 'aborted' ? null : receivedView(arrival.received)),
  };
};
