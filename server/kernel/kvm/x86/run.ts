import type { CpuExit } from '../../../hardware/cpu/types.js';
import { Failure, failed, type Result } from '../../failure.js';
import type { PageMissing } from '../../mm/missing-pages.js';
import type { Task } from '../../sched/task.js';
import { type MightSleep, RESCHED } from '../../sched/wait.js';
import { KernelTimer } from '../../timer.js';
import { KVM_EXIT, KVM_MP_STATE } from '../../uapi/constants.js';
import type { CpuThrottle } from '../cpu-throttle.js';
import { REQUEST, type Vcpu } from '../vcpu.js';
import { apicBase } from './apic-base-msr.js';
import { cr8, setCr8 } from './cr8.js';
import { handleExit } from './exits.js';
import { withHostBreakpoints } from './host-breakpoints.js';
import { checkAndInjectEvents, interruptsEnabled } from './inject.js';
import { lapicSyncFromVapic, lapicSyncToVapic, missingVapicPage } from './irq/vapic.js';
import { kvmApicAcceptEvents, kvmCpuHasPendingTimer, kvmInjectPendingTimerIrqs } from './irq/vcpu-irq.js';
import { handleRequests } from './requests.js';
import { initSipi } from './reset.js';
import { acceptsUserInterrupt, readyForInterruptInjection, vcpuRunnable } from './runnable.js';
import { checkSyncRegs, storeRegs, syncRegs } from './sync-regs.js';
import type { Turn } from './vcpu-arch.js';

/** Instructions of a guest between two turns of the other tasks. */
const SLICE_INSTRUCTIONS = 50_000;
/** Exits that KVM may handle by itself between two turns of the others. */
const EXITS_PER_SLICE = 256;

const interrupted = (): Failure => new Failure('EINTR', 'SIGNAL_PENDING', 'kvm_handle_signal_exit');
const immediateExit = (): Failure =>
  new Failure('EINTR', 'IMMEDIATE_EXIT', 'kvm_arch_vcpu_ioctl_run', { field: 'immediate_exit' });

/** KVM_RUN (`kvm_arch_vcpu_ioctl_run`), under the vCPU's mutex. What it tells userspace is in the run page. */
export function* kvmArchVcpuRun(current: Task, vcpu: Vcpu): MightSleep<Result<number>> {
  const { arch } = vcpu;
  const { thread } = current;
  const blocked = thread.blocked;
  // kvm_sigset_activate(): until the end the vCPU's own mask counts.
  if (arch.signalMask !== null) thread.blocked = arch.signalMask;
  arch.run.clearFlags();
  const turn = yield* runChecked(current, vcpu);
  if (arch.run.asksForSyncRegs) storeRegs(vcpu);
  postRunSave(vcpu);
  thread.blocked = blocked;
  vcpu.vm.pause?.vcpuLeft();
  return failed(turn) ? turn : 0;
}

/** What comes before the loop, in the order of the real function. */
function* runChecked(current: Task, vcpu: Vcpu): MightSleep<Turn> {
  const { arch, vm } = vcpu;
  const { run } = arch;
  if (arch.mpState === KVM_MP_STATE.UNINITIALIZED) return yield* waitForInit(current, vcpu);
  const refused = run.asksForSyncRegs ? (checkSyncRegs(vcpu) ?? syncRegs(vcpu)) : null;
  if (refused !== null) return refused;
  if (arch.lapic === null && !setCr8(vcpu, run.cr8))
    return new Failure('EINVAL', 'CR8_RESERVED', 'kvm_arch_vcpu_ioctl_run', {
      field: 'cr8',
      given: `0x${run.cr8.toString(16)}`,
      allowed: '0 to 15',
    });
  const { completion } = arch;
  if (completion !== null) {
    arch.completion = null;
    let turn = yield* completion.run(current);
    // What was begun is completed also where userspace wants KVM_RUN back at once: it relies on that.
    while (turn === 'again' && arch.completion !== null && arch.awaitedPage !== null)
      turn = yield* vcpuAwaitPage(current, vcpu, arch.awaitedPage);
    if (turn !== 'again') return turn;
  }
  if (run.immediateExit) return immediateExit();
  if (vm.pause !== null) return signalExit(vcpu);
  const denied = preRun(vcpu) ?? vm.kernel.ops.vcpuPreRun(vcpu);
  if (denied !== null) return denied;
  return yield* vcpuRun(current, vcpu);
}

/** A vCPU that waits for INIT and SIPI: EAGAIN once they have come, for userspace is to call again. */
function* waitForInit(current: Task, vcpu: Vcpu): MightSleep<Turn> {
  const { arch } = vcpu;
  if (arch.run.immediateExit) return immediateExit();
  yield* vcpuSleep(current, vcpu);
  kvmApicAcceptEvents(vcpu, initSipi);
  if (!mustLeave(current, vcpu)) return new Failure('EAGAIN', 'VCPU_WAS_UNINITIALIZED', 'kvm_arch_vcpu_ioctl_run');
  return signalExit(vcpu);
}

/** `kvm_handle_signal_exit`. */
const signalExit = ({ arch }: Vcpu): Turn => {
  arch.run.exitReason = KVM_EXIT.INTR;
  arch.stat.signal_exits++;
  return interrupted();
};

/** A signal, or the pause of the whole VM, which to a vCPU looks like one. */
const mustLeave = (current: Task, { vm }: Vcpu): boolean => current.thread.signalPending || vm.pause !== null;

/** `kvm_x86_vcpu_pre_run`. */
const preRun = ({ arch }: Vcpu): Failure | null =>
  arch.mpState === KVM_MP_STATE.SIPI_RECEIVED
    ? new Failure('EINVAL', 'VCPU_IN_SIPI_RECEIVED', 'kvm_x86_vcpu_pre_run', { mp_state: String(arch.mpState) })
    : null;

/** `vcpu_run`. */
function* vcpuRun(current: Task, vcpu: Vcpu): MightSleep<Turn> {
  const { arch, vm } = vcpu;
  arch.run.exitReason = KVM_EXIT.UNKNOWN;
  let exits = 0;
  for (;;) {
    // The host's timers come as interrupts, which end a guest's slice at the latest.
    vm.kernel.timers.advance(vm.kernel.clock.now());
    if (arch.awaitedPage !== null) {
      const turn = yield* vcpuAwaitPage(current, vcpu, arch.awaitedPage);
      if (turn !== 'again') return turn;
    }
    const running = arch.mpState === KVM_MP_STATE.RUNNABLE;
    if (running && vm.arch.throttle?.owes(vcpu)) yield* stayOut(current, vcpu, vm.arch.throttle);
    const step = running ? yield* vcpuEnterGuest(current, vcpu) : { turn: yield* vcpuBlock(current, vcpu), sliceOver: false };
    if (step.turn !== 'again') return step.turn;
    vcpu.checkRequest(REQUEST.UNBLOCK);
    if (kvmCpuHasPendingTimer(vcpu)) kvmInjectPendingTimerIrqs(vcpu);
    if (arch.run.requestInterruptWindow && !vm.arch.picInKernel && readyForInterruptInjection(vcpu)) {
      arch.run.exitReason = KVM_EXIT.IRQ_WINDOW_OPEN;
      arch.stat.request_irq_exits++;
      return 'to-user';
    }
    if (mustLeave(current, vcpu)) return signalExit(vcpu);
    if (!step.sliceOver && ++exits < EXITS_PER_SLICE) continue;
    exits = 0;
    yield RESCHED;
  }
}

interface Step {
  readonly turn: Turn;
  /** The guest has used up its instructions: others have their turn now. */
  readonly sliceOver: boolean;
}

const stop = (turn: Turn): Step => ({ turn, sliceOver: false });

/** `vcpu_enter_guest`: requests, events, entry, exit. */
function* vcpuEnterGuest(current: Task, vcpu: Vcpu): MightSleep<Step> {
  const { arch, vm } = vcpu;
  const { ops, costs, clock } = vm.kernel;
  const requested = handleRequests(vcpu);
  if (requested !== 'again') return stop(requested);
  if (vcpu.checkRequest(REQUEST.EVENT)) {
    kvmApicAcceptEvents(vcpu, initSipi);
    if (arch.mpState !== KVM_MP_STATE.RUNNABLE) return stop('again');
  }
  // kvm_vcpu_exit_request(): nothing goes into a guest that is not entered.
  if (mustLeave(current, vcpu)) return stop('again');
  vm.arch.mmu.load();
  const entry = ops.enterGuest(vcpu);
  if (entry.kind !== 'handled') return stop(entry.kind === 'failed' ? entry.failure : 'to-user');
  arch.awaitedPage = missingVapicPage(vcpu);
  if (arch.awaitedPage !== null) return stop('again');
  arch.cpuMode.apply(vcpu);
  const windowWanted = arch.run.requestInterruptWindow && !vm.arch.picInKernel && acceptsUserInterrupt(vcpu);
  checkAndInjectEvents(vcpu, windowWanted);
  lapicSyncToVapic(vcpu);
  // The APIC's TPR may have changed behind the register's back.
  if (arch.lapic !== null) arch.cpu.state.cr8 = BigInt(arch.lapic.cr8);
  arch.hasRun = true;
  arch.inGuest = true;
  const { throttle } = vm.arch;
  const entered = throttle === null ? 0n : clock.now();
  const exit = withHostBreakpoints(vcpu, () => arch.cpu.run(SLICE_INSTRUCTIONS));
  throttle?.ran(vcpu, clock.now() - entered);
  completeEvents(vcpu, exit);
  ops.leaveGuest(vcpu, exit);
  lapicSyncFromVapic(vcpu);
  if (exit.kind === 'budget') return { turn: 'again', sliceOver: true };
  arch.inGuest = false;
  arch.stat.exits++;
  costs.charge('vm_entry');
  costs.charge('vm_exit');
  return stop(yield* handleExit(current, vcpu, exit));
}

/** `svm_complete_interrupts`: what was injected has been delivered, unless the exit interrupted its delivery. */
const completeEvents = (vcpu: Vcpu, exit: CpuExit): void => {
  const { events, cpu } = vcpu.arch;
  if (cpu.pendingEvent !== null) {
    // Not even begun: it stays in KVM's queue and goes in with the next entry.
    cpu.pendingEvent = null;
    return;
  }
  events.delivered();
  if (exit.kind !== 'nested-fault' || exit.delivering === null || exit.delivering.type === 'software') return;
  events.requeue(exit.delivering);
  vcpu.request(REQUEST.EVENT);
};

/** A throttled vCPU has run for its share: it stays out for the rest, unless it is wanted outside. */
function* stayOut(current: Task, vcpu: Vcpu, throttle: CpuThrottle): MightSleep<void> {
  const { arch, vm } = vcpu;
  const { clock, timers } = vm.kernel;
  const until = clock.now() + throttle.take(vcpu);
  const timer = new KernelTimer(timers, () => {
    arch.kick();
    return null;
  });
  arch.inGuest = false;
  timer.start(until);
  while (clock.now() < until && vm.arch.throttle === throttle && !mustLeave(current, vcpu))
    yield { kind: 'interruptible', queue: arch.wait, site: 'cpu_throttle' };
  timer.cancel();
}

/**
 * A vCPU has touched a page whose contents are still to come (`hva_to_pfn` with FOLL_INTERRUPTIBLE over a userfaultfd): it sleeps
 * until they have, unless it is wanted outside (KVM_PFN_ERR_SIGPENDING). Then the guest makes the access again, or KVM goes on
 * with the instruction that it emulates.
 */
function* vcpuAwaitPage(current: Task, vcpu: Vcpu, page: PageMissing): MightSleep<Turn> {
  const { arch } = vcpu;
  arch.inGuest = false;
  if (page.pending) {
    const stopWaiting = page.onArrival(() => arch.kick());
    while (page.pending && !mustLeave(current, vcpu)) yield { kind: 'interruptible', queue: arch.wait, site: 'handle_userfault' };
    stopWaiting();
  }
  if (page.pending) return signalExit(vcpu);
  arch.awaitedPage = null;
  const { completion } = arch;
  arch.completion = null;
  return completion === null ? 'again' : yield* completion.run(current);
}

/** `vcpu_block`: a halted vCPU sleeps until there is something for it. */
function* vcpuBlock(current: Task, vcpu: Vcpu): MightSleep<Turn> {
  const { arch } = vcpu;
  arch.inGuest = false;
  if (!vcpuRunnable(vcpu)) {
    yield* vcpuSleep(current, vcpu);
    if (!vcpuRunnable(vcpu)) return 'again';
  }
  kvmApicAcceptEvents(vcpu, initSipi);
  if (arch.mpState === KVM_MP_STATE.HALTED || arch.mpState === KVM_MP_STATE.AP_RESET_HOLD) arch.mpState = KVM_MP_STATE.RUNNABLE;
  return 'again';
}

/** `kvm_vcpu_block`. KVM_REQ_VM_DEAD does not wake a sleeper. */
function* vcpuSleep(current: Task, vcpu: Vcpu): MightSleep<void> {
  const { arch } = vcpu;
  while (!vcpuRunnable(vcpu) && !kvmCpuHasPendingTimer(vcpu) && !mustLeave(current, vcpu)) {
    if (vcpu.checkRequest(REQUEST.UNBLOCK)) return;
    yield { kind: 'interruptible', queue: arch.wait, site: 'kvm_vcpu_block' };
  }
}

/** `post_kvm_run_save`. */
const postRunSave = (vcpu: Vcpu): void => {
  const { arch, vm } = vcpu;
  arch.inGuest = false;
  const ready = vm.arch.picInKernel || readyForInterruptInjection(vcpu);
  arch.run.save(interruptsEnabled(vcpu), ready, cr8(vcpu), apicBase(vcpu));
};
