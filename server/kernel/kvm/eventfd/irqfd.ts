import { Failure, failed, type Result } from '../../failure.js';
import { type EventFd, eventFdGet } from '../../fs/eventfd.js';
import { POLL } from '../../fs/file.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import type { KmemCharge } from '../../kmem.js';
import { LazyMap } from '../../lazy-map.js';
import { LazySet } from '../../lazy-set.js';
import type { Task } from '../../sched/task.js';
import { type MightSleep, WaitQueue } from '../../sched/wait.js';
import { KVM_IRQFD_FLAG } from '../../uapi/constants.js';
import { kvm_irqfd } from '../../uapi/kvm-structs.js';
import type { StructValue } from '../../uapi/struct.js';
import { copyStruct } from '../copy-struct.js';
import { KMEM_SIZE, kvmallocSize } from '../kmem-sizes.js';
import type { Vm } from '../vm.js';
import {
  KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID,
  KVM_USERSPACE_IRQ_SOURCE_ID,
  kvmRegisterIrqAckNotifier,
  kvmSetIrq,
  kvmUnregisterIrqAckNotifier,
} from '../x86/irq/irq-comm.js';

type Arguments = StructValue<typeof kvm_irqfd>;

/** `struct kvm_kernel_irqfd_resampler`: one for each GSI; lowers the line at the EOI and tells every irqfd's owner. */
class Resampler {
  readonly irqfds = new Set<IrqFd>();
  private readonly charge: KmemCharge;

  constructor(
    private readonly vm: Vm,
    readonly gsi: number,
  ) {
    this.charge = vm.kmem.charge('kvm_kernel_irqfd_resampler', KMEM_SIZE.kvm_kernel_irqfd_resampler);
    kvmRegisterIrqAckNotifier(vm, gsi, this);
  }

  free(): void {
    kvmUnregisterIrqAckNotifier(this.vm, this);
    kvmSetIrq(this.vm, KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, this.gsi, 0);
    this.charge.release();
  }

  /** `irqfd_resampler_ack`. */
  irqAcked(): void {
    kvmSetIrq(this.vm, KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, this.gsi, 0);
    for (const { resamplefd } of this.irqfds) resamplefd?.signal();
  }
}

/** `struct kvm_kernel_irqfd`: an eventfd's signal raises a GSI of a VM. */
class IrqFd {
  readonly charge: KmemCharge;
  resampler: Resampler | null = null;
  /** Interrupts raised so far. */
  injected = 0;
  /** Signals that have come since all irqfds of the VM were suspended. */
  missed = 0;
  /** What was in the eventfd when it was assigned, and has been raised since: nobody takes it out. */
  private raisedAtAssign = 0n;
  /** Takes the waiter off the eventfd again. */
  removeWaiter: () => void = () => {};

  constructor(
    private readonly vm: Vm,
    readonly eventfd: EventFd,
    readonly gsi: number,
    readonly resamplefd: EventFd | null,
  ) {
    this.charge = vm.kmem.charge('kvm_kernel_irqfd', kvmallocSize(KMEM_SIZE.kvm_kernel_irqfd));
  }

  /** Events in the eventfd that have not raised the GSI: what is left of a semaphore's count. */
  get untaken(): bigint {
    const { value } = this.eventfd;
    // Whoever reads the eventfd may have taken those too.
    return value > this.raisedAtAssign ? value - this.raisedAtAssign : 0n;
  }

  /** `eventfd_ctx_do_read`. */
  take(): bigint {
    const taken = this.eventfd.take();
    this.raisedAtAssign = this.raisedAtAssign > taken ? this.raisedAtAssign - taken : 0n;
    return taken;
  }

  /** An event that was pending before is injected, but nobody consumes it. */
  injectPending(): void {
    this.raisedAtAssign = this.eventfd.value;
    if (this.raisedAtAssign > 0n) this.inject();
  }

  /** `irqfd_inject`. Nothing here asks whether the VM is dead. */
  inject(): void {
    this.injected++;
    if (this.resampler !== null) {
      kvmSetIrq(this.vm, KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, this.gsi, 1);
      return;
    }
    kvmSetIrq(this.vm, KVM_USERSPACE_IRQ_SOURCE_ID, this.gsi, 1);
    kvmSetIrq(this.vm, KVM_USERSPACE_IRQ_SOURCE_ID, this.gsi, 0);
  }
}

/** `kvm->irqfds`: a VM's irqfds, which leave it one after the other in the background. */
export class IrqFds {
  private readonly items = new LazySet<IrqFd>();
  private readonly resamplers = new LazyMap<number, Resampler>();
  /** irqfds that are inactive and whose shutdown work has not finished. */
  private shuttingDown = 0;
  private suspended = false;
  private readonly shutDown = new WaitQueue();

  constructor(private readonly vm: Vm) {}

  get size(): number {
    return this.items.size;
  }

  [Symbol.iterator](): IterableIterator<IrqFd> {
    return this.items[Symbol.iterator]();
  }

  /** `kvm_irqfd_register`: installs the waiter, unless the eventfd has one already (EBUSY), and then the irqfd itself. */
  register(irqfd: IrqFd): Failure | null {
    const { exclusiveIrqfd } = this.vm.kernel.config;
    const { queue } = irqfd.eventfd;
    const taken = exclusiveIrqfd ? queue.hasExclusive : [...this.items].some(({ eventfd }) => eventfd === irqfd.eventfd);
    if (taken)
      return new Failure('EBUSY', 'EVENTFD_HAS_IRQFD', 'kvm_irqfd_register', {
        object: `vm ${this.vm.id}`,
        same_vm: String([...this.items].some(({ eventfd }) => eventfd === irqfd.eventfd)),
      });
    irqfd.removeWaiter = queue.addCallback((events) => this.wakeup(irqfd, events), exclusiveIrqfd);
    this.items.add(irqfd);
    return null;
  }

  /** The resampler of a GSI, made for its first irqfd. */
  joinResampler(irqfd: IrqFd): void {
    let resampler = this.resamplers.get(irqfd.gsi);
    if (resampler === undefined) {
      resampler = new Resampler(this.vm, irqfd.gsi);
      this.resamplers.set(irqfd.gsi, resampler);
    }
    resampler.irqfds.add(irqfd);
    irqfd.resampler = resampler;
  }

  /** `irqfd_resampler_shutdown`. */
  leaveResampler(irqfd: IrqFd): void {
    const { resampler } = irqfd;
    if (resampler === null) return;
    irqfd.resampler = null;
    resampler.irqfds.delete(irqfd);
    if (resampler.irqfds.size > 0) return;
    this.resamplers.delete(resampler.gsi);
    resampler.free();
  }

  /**
   * Lets every signal stay in its eventfd, which is the VMM's, as if the irqfd were off its wait queue; nobody else can have the
   * eventfd meanwhile. It is what a VMM that hands its guest over does with its devices.
   */
  suspend(): void {
    this.suspended = true;
  }

  /** Raises the GSIs of the signals that have come meanwhile, as far as nobody has read them. */
  resume(): void {
    this.suspended = false;
    for (const irqfd of [...this.items]) {
      for (; irqfd.missed > 0 && irqfd.untaken > 0n; irqfd.missed--) this.wakeup(irqfd, POLL.IN);
      irqfd.missed = 0;
    }
  }

  /** `irqfd_deactivate`: nobody finds it any more; the rest is done by a worker. */
  deactivate(irqfd: IrqFd): void {
    this.items.delete(irqfd);
    this.shuttingDown++;
    const irqfds = this;
    const { suspended } = this;
    this.vm.kernel.work('irqfd_shutdown', function* shutdown(current) {
      yield* irqfds.vm.srcu.synchronize(current);
      irqfd.removeWaiter();
      // eventfd_ctx_remove_wait_queue() empties the counter, so that no later reader sees what the VM was told.
      if (!suspended && irqfd.eventfd.take() > 0n) irqfd.eventfd.queue.wakeAll(POLL.OUT);
      irqfds.leaveResampler(irqfd);
      irqfd.charge.release();
      irqfds.shuttingDown--;
      irqfds.shutDown.wakeAll();
    });
  }

  /** `flush_workqueue(irqfd_cleanup_wq)`: no interrupt comes from an inactive irqfd afterwards. */
  *flush(): MightSleep<void> {
    while (this.shuttingDown > 0) yield { kind: 'uninterruptible', queue: this.shutDown, site: 'flush_workqueue' };
  }

  /** `kvm_irqfd_release`: the VM's file is closed, or a dismantling takes irqfds along. */
  *release(): MightSleep<void> {
    for (const irqfd of [...this.items]) this.deactivate(irqfd);
    yield* this.flush();
  }

  /** `irqfd_wakeup`. */
  private wakeup(irqfd: IrqFd, events: number): boolean {
    let consumed = false;
    if (events & POLL.IN && this.suspended) irqfd.missed++;
    else if (events & POLL.IN) {
      const taken = irqfd.take();
      irqfd.inject();
      this.vm.kernel.sanitizer.interrupts.injected(this.vm, irqfd.gsi, irqfd.eventfd, taken);
      consumed = true;
    }
    if (events & POLL.HUP && this.items.has(irqfd)) this.deactivate(irqfd);
    return consumed;
  }
}

/** `kvm_arch_irqfd_allowed`, and then `kvm_irqfd_assign` in its order. The GSI is not looked up. */
const assign = (current: Task, vm: Vm, args: Arguments): Failure | null => {
  const resample = (args.flags & KVM_IRQFD_FLAG.RESAMPLE) !== 0;
  if (!(resample ? vm.arch.picInKernel : vm.arch.irqchipInKernel))
    return new Failure('EINVAL', resample ? 'IRQFD_RESAMPLE_NEEDS_IRQCHIP' : 'IRQFD_NEEDS_IRQCHIP', 'kvm_arch_irqfd_allowed', {
      object: `vm ${vm.id}`,
      irqchip: vm.arch.irqchipMode,
    });
  const eventfd = eventFdGet(current, args.fd | 0, 'fd');
  if (failed(eventfd)) return eventfd;
  const resamplefd = resample ? eventFdGet(current, args.resamplefd | 0, 'resamplefd') : null;
  if (failed(resamplefd)) return resamplefd;
  const irqfd = new IrqFd(vm, eventfd, args.gsi, resamplefd);
  if (resample) vm.irqfds.joinResampler(irqfd);
  const refused = vm.irqfds.register(irqfd);
  if (refused !== null) {
    vm.irqfds.leaveResampler(irqfd);
    irqfd.charge.release();
    return refused;
  }
  irqfd.injectPending();
  return null;
};

/** `kvm_irqfd_deassign`: 0 also if nothing matched. */
function* deassign(current: Task, vm: Vm, args: Arguments): MightSleep<Failure | null> {
  const eventfd = eventFdGet(current, args.fd | 0, 'fd');
  if (failed(eventfd)) return eventfd;
  for (const irqfd of [...vm.irqfds]) if (irqfd.eventfd === eventfd && irqfd.gsi === args.gsi) vm.irqfds.deactivate(irqfd);
  yield* vm.irqfds.flush();
  return null;
}

/** KVM_IRQFD (`kvm_irqfd`). */
export function* kvmIrqfd(current: Task, vm: Vm, arg: IoctlArg): MightSleep<Result<number>> {
  const args = copyStruct(arg, kvm_irqfd);
  if (failed(args)) return args;
  const valid = KVM_IRQFD_FLAG.DEASSIGN | KVM_IRQFD_FLAG.RESAMPLE;
  if ((args.flags & ~valid) !== 0)
    return new Failure('EINVAL', 'IRQFD_FLAGS', 'kvm_irqfd', {
      field: 'flags',
      given: `0x${args.flags.toString(16)}`,
      allowed: `0x${valid.toString(16)}`,
    });
  const refused = args.flags & KVM_IRQFD_FLAG.DEASSIGN ? yield* deassign(current, vm, args) : assign(current, vm, args);
  return refused ?? 0;
}
