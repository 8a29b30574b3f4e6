import type { Vm } from '../kvm/vm.js';
import type { Findings } from './findings.js';

/** Where the MAC stands in a packet's header. The IV is under it, so that it is another one for each packet, whatever that holds. */
const MAC = { offset: 20, length: 16 } as const;
/** Packets of guests of this host that are remembered; the oldest are forgotten first. */
const SENT_MAX = 2 ** 18;

interface Sent {
  readonly gpa: number | null;
  /** Counts the packets of this host. */
  readonly order: number;
}

const nameOf = (gpa: number | null): string =>
  gpa === null ? 'an address of no memslot' : `guest address 0x${gpa.toString(16)}`;

/**
 * The packets of SEND_UPDATE_DATA and RECEIVE_UPDATE_DATA. The firmware binds them to their session and to nothing else: it
 * takes one a second time, an old one after a new one, or one for another address, and the guest gets memory that it
 * never had. A packet of another host can be told only when it is repeated: what it was made from is known where it was sent.
 */
export class TransportPackets {
  private readonly sentHere = new Map<string, Sent>();
  private readonly receiving = new WeakMap<
    Vm,
    { readonly seen: Map<string, number | null>; readonly newest: Map<number, number> }
  >();
  private packets = 0;

  constructor(private readonly findings: Findings) {}

  /** @param gpa of the guest memory that the packet holds; null: no memslot has it */
  sent(header: Uint8Array, gpa: number | null): void {
    this.sentHere.set(macOf(header), { gpa, order: ++this.packets });
    if (this.sentHere.size <= SENT_MAX) return;
    for (const oldest of this.sentHere.keys()) {
      this.sentHere.delete(oldest);
      return;
    }
  }

  /** The firmware has taken a packet. */
  received(vm: Vm, header: Uint8Array, gpa: number | null): void {
    const { seen, newest } = this.sessionOf(vm);
    const mac = macOf(header);
    const before = seen.get(mac);
    const sent = this.sentHere.get(mac);
    seen.set(mac, gpa);
    if (before !== undefined) this.report('PACKET_REPEATED', vm, gpa, `it had been received for ${nameOf(before)} before`);
    if (sent === undefined || gpa === null) return;
    const { gpa: from, order } = sent;
    if (from !== null && from !== gpa) this.report('PACKET_MISPLACED', vm, gpa, `it holds ${nameOf(from)}`);
    else if (order < (newest.get(gpa) ?? 0)) this.report('PACKET_OUT_OF_ORDER', vm, gpa, 'a newer one had been received before');
    else newest.set(gpa, order);
  }

  /** RECEIVE_FINISH: the firmware takes no more packets for this guest. */
  finished(vm: Vm): void {
    this.receiving.delete(vm);
  }

  private sessionOf(vm: Vm) {
    const known = this.receiving.get(vm);
    if (known !== undefined) return known;
    const session = { seen: new Map<string, number | null>(), newest: new Map<number, number>() };
    this.receiving.set(vm, session);
    return session;
  }

  private report(kind: string, vm: Vm, gpa: number | null, why: string): void {
    this.findings.report('guest', kind, `vm ${vm.id} received a packet for ${nameOf(gpa)}, but ${why}`, vm.id);
  }
}

const macOf = (header: Uint8Array): string =>
  Buffer.from(header.buffer, header.byteOffset + MAC.offset, MAC.length).toString('latin1');
