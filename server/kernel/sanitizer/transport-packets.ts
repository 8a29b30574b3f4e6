import type { Vm } from '../kvm/vm.js';
import type { Findings } from './findings.js';
import { PacketLog } from './packet-log.js';

/** So many packets of guests of this host are remembered at least; the oldest are forgotten first, so many at a time. */
const GENERATION = 2 ** 18;

/** One that this host has sent. */
interface Sent {
  readonly gpa: number | null;
  /** Counts the packets of this host. */
  readonly order: number;
}

/** What a guest that is being received has got. */
interface Receiving {
  readonly seen: PacketLog;
  /** Order of the newest packet of this host for each address. */
  readonly newest: Map<number, number>;
}

const nameOf = (gpa: number | null): string =>
  gpa === null ? 'an address of no memslot' : `guest address 0x${gpa.toString(16)}`;

/**
 * The packets of SEND_UPDATE_DATA and RECEIVE_UPDATE_DATA. The firmware binds them to their session and to nothing else: it
 * takes one a second time, an old one after a new one, or one for another address, and the guest gets memory that it
 * never had. A packet of another host can be told only when it is repeated: what it was made from is known where it was sent.
 */
export class TransportPackets {
  /** Packets that guests of this host were sent in, by generations. */
  private sentBefore = new PacketLog();
  private sentNow = new PacketLog();
  /** How many were sent before the first of `sentNow`. */
  private older = 0;
  private readonly receiving = new WeakMap<Vm, Receiving>();

  constructor(private readonly findings: Findings) {}

  /** @param gpa of the guest memory that the packet holds; null: no memslot has it */
  sent(header: Uint8Array, gpa: number | null): void {
    if (this.sentNow.size === GENERATION) {
      this.sentBefore = this.sentNow;
      this.sentNow = new PacketLog();
      this.older += GENERATION;
    }
    this.sentNow.add(header, gpa);
  }

  /** The firmware has taken a packet. */
  received(vm: Vm, header: Uint8Array, gpa: number | null): void {
    const { seen, newest } = this.sessionOf(vm);
    const before = seen.add(header, gpa);
    if (before !== -1) this.report('PACKET_REPEATED', vm, gpa, `it had been received for ${nameOf(seen.gpa(before))} before`);
    const sent = this.findSent(header);
    if (sent === null || gpa === null) return;
    const { gpa: from, order } = sent;
    if (from !== null && from !== gpa) this.report('PACKET_MISPLACED', vm, gpa, `it holds ${nameOf(from)}`);
    else if (order < (newest.get(gpa) ?? 0)) this.report('PACKET_OUT_OF_ORDER', vm, gpa, 'a newer one had been received before');
    else newest.set(gpa, order);
  }

  /** RECEIVE_FINISH: the firmware takes no more packets for this guest. */
  finished(vm: Vm): void {
    this.receiving.delete(vm);
  }

  private findSent(header: Uint8Array): Sent | null {
    const { sentNow, sentBefore, older } = this;
    const now = sentNow.find(header);
    if (now !== -1) return { gpa: sentNow.gpa(now), order: older + now };
    const before = sentBefore.find(header);
    return before === -1 ? null : { gpa: sentBefore.gpa(before), order: older - GENERATION + before };
  }

  private sessionOf(vm: Vm): Receiving {
    const known = this.receiving.get(vm);
    if (known !== undefined) return known;
    const session = { seen: new PacketLog(), newest: new Map<number, number>() };
    this.receiving.set(vm, session);
    return session;
  }

  private report(kind: string, vm: Vm, gpa: number | null, why: string): void {
    this.findings.report('guest', kind, `vm ${vm.id} received a packet for ${nameOf(gpa)}, but ${why}`, vm.id);
  }
}
