import type { Clock } from '../../../clock.js';
import { KernelTimer, type TimerQueue } from '../../../timer.js';
import { APIC_LVT_TIMER } from './apic-registers.js';

/** `min_timer_period_us` of kvm.ko: a guest cannot have a periodic timer that is faster. */
export const MIN_TIMER_PERIOD_NS = 200_000n;

/** What the timer needs from its APIC and the APIC's vCPU. */
export interface LapicTimerHost {
  readonly clock: Clock;
  readonly timers: TimerQueue;
  /** Nanoseconds of one cycle of the APIC bus (KVM_CAP_X86_APIC_BUS_CYCLES_NS). */
  readonly busCycleNs: number;
  /** `kvm_read_l1_tsc`. */
  readonly guestTsc: bigint;
  /** `virtual_tsc_khz`. */
  readonly tscKhz: number;
  /** The time has come: KVM_REQ_UNBLOCK, and a kick if it was found by the timer and not by the vCPU itself. */
  timerExpired(kick: boolean): void;
}

/** A kHz is a cycle in so many nanoseconds. */
const NS_PER_MS = 1_000_000n;

/**
 * `struct kvm_timer` of a local APIC, the software timer of lapic.c (`start_sw_timer`): one-shot, periodic and
 * TSC-deadline mode as a deadline of the host's clock. Timer advance is not modelled: nothing here is late.
 */
export class LapicTimer {
  /** Out of APIC_LVT_TIMER. */
  mode: number = APIC_LVT_TIMER.ONESHOT;
  /** Bits of LVTT that hold the mode; none until the guest has a CPUID (`kvm_vcpu_after_set_cpuid`). */
  modeMask = 0;
  /** Expiries that have not been turned into an interrupt yet; 0 or 1. */
  pending = 0;
  /** IA32_TSC_DEADLINE; 0: not armed. */
  tscDeadline = 0n;
  /** From TDCR: 1 to 128. */
  divideCount = 2;
  private period = 0n;
  private target = 0n;
  private readonly timer: KernelTimer;

  constructor(private readonly host: LapicTimerHost) {
    this.timer = new KernelTimer(host.timers, (now) => this.fired(now));
  }

  get oneshot(): boolean {
    return this.mode === APIC_LVT_TIMER.ONESHOT;
  }

  get periodic(): boolean {
    return this.mode === APIC_LVT_TIMER.PERIODIC;
  }

  get tscDeadlineMode(): boolean {
    return this.mode === APIC_LVT_TIMER.TSCDEADLINE;
  }

  /** `hrtimer_cancel` alone. */
  stop(): void {
    this.timer.cancel();
  }

  /** `cancel_apic_timer`. */
  cancel(): void {
    this.timer.cancel();
    this.pending = 0;
  }

  /** `apic_update_lvtt`. @returns true if the initial count has to be cleared: to or from TSC-deadline mode */
  setMode(lvtt: number): boolean {
    const mode = lvtt & this.modeMask;
    if (mode === this.mode) return false;
    const reset = this.tscDeadlineMode !== (mode === APIC_LVT_TIMER.TSCDEADLINE);
    if (reset) {
      this.cancel();
      this.period = 0n;
      this.tscDeadline = 0n;
    }
    this.mode = mode;
    this.limitPeriod();
    return reset;
  }

  /** `update_divide_count`. */
  setDivide(tdcr: number): void {
    const shift = (((tdcr & 0x3) | ((tdcr & 0x8) >> 1)) + 1) & 0x7;
    this.divideCount = 1 << shift;
  }

  /** A new divisor while the timer runs (`update_target_expiration`): what remains is counted at the new rate. */
  changeDivide(tdcr: number, initialCount: number): void {
    const before = this.divideCount;
    this.setDivide(tdcr);
    if (this.divideCount === before || this.period === 0n) return;
    this.timer.cancel();
    this.period = this.countToNs(initialCount);
    this.limitPeriod();
    const now = this.host.clock.now();
    const remaining = this.target > now ? this.target - now : 0n;
    this.target = now + (remaining * BigInt(this.divideCount)) / BigInt(before);
    this.restart();
  }

  /**
   * `__start_apic_timer`. @param count count to begin with: the initial count, or what was left of it when a saved state
   * is put back; more than the initial count means the initial count
   */
  start(initialCount: number, count: number = initialCount): void {
    this.pending = 0;
    if (!this.tscDeadlineMode) {
      this.period = this.countToNs(initialCount);
      if (this.period === 0n) return;
      this.limitPeriod();
      this.target = this.host.clock.now() + this.firstDelta(count === initialCount ? this.period : this.countToNs(count));
    }
    this.restart();
  }

  /** Time to the first expiry; a periodic timer whose count had just run out begins anew. */
  private firstDelta(left: bigint): bigint {
    if (left > this.period || (left === 0n && this.periodic)) return this.period;
    return left;
  }

  /** `apic_get_tmcct`: the current count. */
  currentCount(initialCount: number): number {
    if (this.tscDeadlineMode || initialCount === 0 || this.period === 0n) return 0;
    const now = this.host.clock.now();
    const remaining = this.target > now ? this.target - now : 0n;
    return Number((remaining % this.period) / BigInt(this.host.busCycleNs * this.divideCount));
  }

  /** After the interrupt has been delivered (`kvm_apic_inject_pending_timer_irqs`). */
  delivered(): void {
    if (this.tscDeadlineMode) this.tscDeadline = 0n;
    else if (this.oneshot) {
      this.tscDeadline = 0n;
      this.target = 0n;
    }
  }

  private countToNs(count: number): bigint {
    return BigInt(count) * BigInt(this.host.busCycleNs * this.divideCount);
  }

  private limitPeriod(): void {
    if (this.periodic && this.period !== 0n && this.period < MIN_TIMER_PERIOD_NS) this.period = MIN_TIMER_PERIOD_NS;
  }

  /** `restart_apic_timer`, `start_sw_timer`. */
  private restart(): void {
    if (!this.periodic && this.pending > 0) return;
    if (this.tscDeadlineMode) this.startTscDeadline();
    else this.startPeriod();
  }

  private startPeriod(): void {
    const now = this.host.clock.now();
    if (now > this.target) {
      this.expire(false);
      if (this.oneshot) return;
      this.advancePeriod(now);
    }
    this.timer.start(this.target);
  }

  private startTscDeadline(): void {
    if (this.tscDeadline === 0n || this.host.tscKhz === 0) return;
    const tsc = this.host.guestTsc;
    if (this.tscDeadline <= tsc) {
      this.expire(false);
      return;
    }
    const ns = ((this.tscDeadline - tsc) * NS_PER_MS) / BigInt(this.host.tscKhz);
    this.timer.start(this.host.clock.now() + ns);
  }

  /** `apic_timer_expired`: at most one expiry waits. */
  private expire(fromTimer: boolean): void {
    if (this.pending > 0) return;
    this.pending = 1;
    this.host.timerExpired(fromTimer);
  }

  /** `apic_timer_fn`. */
  private fired(now: bigint): bigint | null {
    this.expire(true);
    if (!this.periodic) return null;
    this.advancePeriod(now);
    return this.target;
  }

  /** `advance_periodic_target_expiration`: ticks that were missed are not made up for. */
  private advancePeriod(now: bigint): void {
    this.target += this.period;
    if (this.target < now) this.target = now;
  }
}
