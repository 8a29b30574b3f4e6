import type { EventFd } from '../fs/eventfd.js';
import type { Vcpu } from '../kvm/vcpu.js';
import type { Vm } from '../kvm/vm.js';
import { APIC } from '../kvm/x86/irq/apic-registers.js';
import type { Findings } from './findings.js';

/** Interrupts of one controller that wait for the guest, by vector (local APIC) or pin (PICs). */
interface Waiting {
  readonly pending: ReadonlySet<number>;
  readonly served: ReadonlySet<number>;
}

const NONE: Waiting = { pending: new Set(), served: new Set() };

/** One signal of an eventfd, and the VMs into which irqfds have put it. */
interface Signal {
  readonly eventfd: EventFd;
  readonly gsi: number;
  readonly vms: Vm[];
}

const list = (numbers: Iterable<number>): string => [...numbers].map((number) => `0x${number.toString(16)}`).join(', ');
const without = (set: ReadonlySet<number>, ...others: readonly ReadonlySet<number>[]): number[] =>
  [...set].filter((number) => !others.some((other) => other.has(number)));

const joined = ({ pending, served }: Waiting, accepted: ReadonlySet<number> | null | undefined): Waiting => ({
  pending: new Set([...pending, ...(accepted ?? [])]),
  served,
});

const ofApic = (vcpu: Vcpu): Waiting => {
  const { lapic } = vcpu.arch;
  if (lapic === null) return NONE;
  return { pending: lapic.page.vectors(APIC.IRR), served: lapic.page.vectors(APIC.ISR) };
};

const ofPic = (vm: Vm): Waiting => {
  const pic = vm.arch.irq.chips?.pic;
  return pic === undefined ? NONE : { pending: pic.pendingEdges, served: pic.inService };
};

/**
 * Interrupts across a move: each has to reach the guest exactly once. A signal that an irqfd of the VM takes which the guest
 * has left is lost. So is an interrupt that waited in the source's controllers, or that the destination's accepted after
 * the move, and that the destination's do not hold when the guest goes on there; one that they hold and that neither
 * waited nor was accepted is delivered for the second time.
 */
export class InterruptLedger {
  /** VMs whose guest has left, and the VM to which it went. */
  private readonly left = new WeakMap<Vm, Vm>();
  /** vCPUs with which a moved guest goes on, and what waited in its local APIC. Checked once, at the next entry. */
  private readonly expectedApic = new WeakMap<Vcpu, Waiting>();
  /** The same for PICs, by VM. */
  private readonly expectedPic = new WeakMap<Vm, Waiting>();
  /** The last signal: irqfds that follow without having taken anything from the counter belong to it. */
  private signal: Signal | null = null;

  constructor(private readonly findings: Findings) {}

  /** A guest moves; the controllers of both VMs are as they were. */
  moving(source: Vm, destination: Vm): void {
    this.settle();
    this.left.delete(destination);
    this.left.set(source, destination);
    for (const vcpu of source.vcpus) {
      const waiting = this.takeApic(vcpu);
      const successor = destination.vcpus.find(({ id }) => id === vcpu.id);
      if (successor === undefined || successor.arch.lapic === null) continue;
      this.expectedApic.set(successor, waiting);
      successor.arch.lapic.watched = new Set();
    }
    const waiting = this.takePic(source);
    const pic = destination.arch.irq.chips?.pic;
    if (pic === undefined) return;
    this.expectedPic.set(destination, waiting);
    pic.watched = new Set();
  }

  /** What waits in a vCPU's local APIC; if the guest has never entered there, what ought to. */
  private takeApic(vcpu: Vcpu): Waiting {
    const owed = this.expectedApic.get(vcpu);
    this.expectedApic.delete(vcpu);
    return owed === undefined ? ofApic(vcpu) : joined(owed, vcpu.arch.lapic?.watched);
  }

  private takePic(vm: Vm): Waiting {
    const owed = this.expectedPic.get(vm);
    this.expectedPic.delete(vm);
    return owed === undefined ? ofPic(vm) : joined(owed, vm.arch.irq.chips?.pic.watched);
  }

  /**
   * An irqfd has put a signal into its VM. Before 6.17 several VMs may have an irqfd on one eventfd: one takes the count,
   * and the others find it empty and inject all the same.
   * @param taken what it took from the counter
   */
  injected(vm: Vm, gsi: number, eventfd: EventFd, taken: bigint): void {
    if (taken > 0n || this.signal?.eventfd !== eventfd) {
      this.settle();
      this.signal = { eventfd, gsi, vms: [] };
    }
    this.signal?.vms.push(vm);
  }

  /** A vCPU enters the guest. */
  entered(vcpu: Vcpu): void {
    const { vm } = vcpu;
    const expectedPic = this.expectedPic.get(vm);
    const pic = vm.arch.irq.chips?.pic;
    if (expectedPic !== undefined && pic !== undefined) {
      this.expectedPic.delete(vm);
      this.compare(vm, `pins of the PICs of vm ${vm.id}`, expectedPic, pic.watched ?? new Set(), ofPic(vm));
      pic.watched = null;
    }
    const expected = this.expectedApic.get(vcpu);
    if (expected === undefined) return;
    this.expectedApic.delete(vcpu);
    const { lapic } = vcpu.arch;
    this.compare(vm, `vectors of vcpu ${vcpu.id} of vm ${vm.id}`, expected, lapic?.watched ?? new Set(), ofApic(vcpu));
    if (lapic !== null) lapic.watched = null;
  }

  /** A call is over: every irqfd on the last signal has seen it. */
  callEnded(): void {
    this.settle();
  }

  private compare(vm: Vm, what: string, before: Waiting, accepted: ReadonlySet<number>, now: Waiting): void {
    const lost = without(new Set([...before.pending, ...accepted]), now.pending, now.served);
    if (lost.length > 0)
      this.findings.report(
        'guest',
        'INTERRUPT_LOST',
        `${what}: ${list(lost)} waited for the guest and did not come along`,
        vm.id,
      );
    const doubled = without(now.pending, before.pending, accepted);
    if (doubled.length > 0)
      this.findings.report('guest', 'INTERRUPT_DOUBLED', `${what}: ${list(doubled)} had been delivered before the move`, vm.id);
  }

  private settle(): void {
    const { signal } = this;
    this.signal = null;
    const [vm] = signal?.vms ?? [];
    if (signal === null || vm === undefined || signal.vms.some((reached) => !this.left.has(reached))) return;
    this.findings.report(
      'guest',
      'INTERRUPT_LOST',
      `an irqfd of vm ${vm.id} took a signal for gsi ${signal.gsi}, but the guest has moved to vm ${this.left.get(vm)?.id}`,
      vm.id,
    );
  }
}
