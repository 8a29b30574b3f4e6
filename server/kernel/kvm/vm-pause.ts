import { Failure } from '../failure.js';
import type { Task } from '../sched/task.js';
import { type MightSleep, WaitQueue } from '../sched/wait.js';
import { IOCTL } from '../uapi/ioctls.js';
import type { Vcpu } from './vcpu.js';
import type { Vm } from './vm.js';
import { kvmArchVcpuCompleteIo, kvmArchVcpuOpenExit } from './x86/complete-io.js';

/** By these userspace raises an interrupt of the guest. */
const INTERRUPTS: ReadonlySet<number> = new Set([IOCTL.KVM_IRQ_LINE, IOCTL.KVM_IRQ_LINE_STATUS, IOCTL.KVM_SIGNAL_MSI]);

/**
 * A VM whose vCPUs are stopped under their mutexes, between two instructions and with no I/O half done, so that all of its
 * state can be read. It is what a VMM does to its vCPU threads before it migrates (a signal, KVM_RUN until the exit in flight
 * is completed, then a barrier), made by the daemon for it: a vCPU in KVM_RUN leaves with EINTR, as by a signal; one whose last
 * exit was a write is completed without its VMM, and one whose exit userspace has to answer is waited for. Until `release`
 * kvm->lock and the mutexes are held, so every KVM_RUN, vCPU ioctl and KVM_CREATE_VCPU waits, and goes on afterwards as if
 * nothing had been. So does an ioctl that raises an interrupt: the irqchip may have been read.
 */
export class VmPause {
  private readonly changed = new WaitQueue();
  private after: ((current: Task) => MightSleep<void>) | null = null;
  private letGo = false;
  private held = false;
  /** The vCPU whose mutex, or whose VMM, is waited for; 'vm': kvm->lock. */
  private waited: Vcpu | 'vm' | null = 'vm';

  private constructor(private readonly vm: Vm) {}

  /** @param held called once everything is held, at once if no vCPU is in the way; not after a `release` that came before */
  static begin(vm: Vm, held: () => void): VmPause {
    if (vm.pause !== null) throw new Error(`vm ${vm.id} is paused already`);
    const pause = new VmPause(vm.get());
    vm.pause = pause;
    for (const { arch } of vm.vcpus) arch.kick();
    vm.kernel.work(`pause of vm ${vm.id}`, (current) => pause.hold(current, held));
    return pause;
  }

  /**
   * Lets the vCPUs go on, or gives up waiting for them.
   * @param after what is to be done before, with all locks held
   */
  release(after: ((current: Task) => MightSleep<void>) | null = null): void {
    this.after = after;
    this.letGo = true;
    this.changed.wakeAll();
  }

  /** Whether a VM ioctl has to wait until the pause is over. */
  delays(request: number): boolean {
    return this.held && INTERRUPTS.has(request);
  }

  /** Waits until the VM goes on, here or elsewhere. EINTR: a signal came first. */
  *over(current: Task): MightSleep<Failure | null> {
    const { changed, vm } = this;
    const site = 'vm_pause(interrupt)';
    while (vm.pause === this)
      if (current.thread.signalPending || (yield { kind: 'interruptible', queue: changed, site }) === 'signal')
        return new Failure('EINTR', 'SIGNAL_PENDING', site);
    return null;
  }

  /** For people: what keeps the vCPUs from being stopped. Null: they are. */
  get waitsFor(): string | null {
    const { waited } = this;
    if (waited === null) return null;
    if (waited === 'vm') return `a call that holds kvm->lock of vm ${this.vm.id}`;
    const exit = kvmArchVcpuOpenExit(waited);
    if (exit === null) return `a call on vcpu ${waited.id}`;
    return `the VMM: vcpu ${waited.id} has left KVM_RUN (${exit}), and its exit is completed by the next KVM_RUN`;
  }

  /** A vCPU has left KVM_RUN: its I/O may be complete now. */
  vcpuLeft(): void {
    this.changed.wakeAll();
  }

  private *hold(current: Task, held: () => void): MightSleep<void> {
    const { vm } = this;
    yield* vm.lock.lock(current);
    const locked: Vcpu[] = [];
    for (const vcpu of vm.vcpus) {
      this.waited = vcpu;
      if (yield* this.lockQuiet(current, vcpu)) locked.push(vcpu);
    }
    this.waited = null;
    this.held = !this.letGo;
    if (this.held) held();
    while (!this.letGo) yield { kind: 'uninterruptible', queue: this.changed, site: 'vm_pause' };
    if (this.after !== null) yield* this.after(current);
    vm.pause = null;
    for (const vcpu of locked) vcpu.mutex.unlock(current);
    vm.lock.unlock(current);
    this.changed.wakeAll();
    yield* vm.put(current);
  }

  /** Takes the mutex of a vCPU at a moment at which nothing of its I/O is open. False: the pause was given up. */
  private *lockQuiet(current: Task, vcpu: Vcpu): MightSleep<boolean> {
    while (!this.letGo) {
      yield* vcpu.mutex.lock(current);
      if (!this.letGo && (yield* kvmArchVcpuCompleteIo(current, vcpu))) return true;
      vcpu.mutex.unlock(current);
      // `release` may have come during either wait, and wakes nobody a second time.
      if (!this.letGo) yield { kind: 'uninterruptible', queue: this.changed, site: 'vm_pause(io)' };
    }
    return false;
  }
}
