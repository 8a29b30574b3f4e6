import { describe, expect, it } from 'vitest';
import { CpuThrottle } from '../../../../server/kernel/kvm/cpu-throttle.js';
import type { Task } from '../../../../server/kernel/sched/task.js';
import { ioctl } from '../../../../server/kernel/syscalls/ioctl.js';
import { IOCTL } from '../../../../server/kernel/uapi/ioctls.js';
import { Guest } from './x86/guest.js';

/** `inc word [0x2000]; jmp` back. */
const LOOP = 'ff060020 ebfa';
const US = 1000n;

/** A guest in an endless loop, on a host where an instruction takes 20 ns and nothing else takes any time but sleep. */
class LoopingGuest {
  readonly guest = new Guest().program(LOOP);
  readonly task: Task;
  private sleptNs = 0n;

  constructor(throttle: CpuThrottle | null) {
    const { process, kernel, vcpuFd, mm, vm, vcpu } = this.guest;
    Object.defineProperty(this.guest, 'time', { get: () => this.sleptNs + 20n * BigInt(vcpu.arch.cpu.executed) });
    vm.arch.throttle = throttle;
    const run = (current: Task) => ioctl(current, vcpuFd, IOCTL.KVM_RUN, { value: 0n, user: mm });
    this.task = kernel.scheduler.start(process.process, 'ioctl KVM_RUN', run, () => {});
  }

  step(): void {
    const { clock, timers, scheduler } = this.guest.kernel;
    const deadline = timers.nextDeadline();
    if (this.task.state.kind === 'sleeping' && deadline !== null) this.sleptNs += deadline - clock.now();
    timers.advance(clock.now());
    scheduler.run(1);
  }

  /** @returns instructions that the guest has executed meanwhile */
  runUntil(us: bigint): number {
    const { cpu } = this.guest.vcpu.arch;
    const before = cpu.executed;
    while (this.guest.time < us * US) this.step();
    return cpu.executed - before;
  }
}

describe('a throttled vCPU', () => {
  it('has the part of its time that is left to it', () => {
    const full = new LoopingGuest(null).runUntil(100_000n);
    for (const percent of [20, 50, 90]) {
      const share = new LoopingGuest(new CpuThrottle(percent)).runUntil(100_000n) / full;
      expect(share).toBeCloseTo((100 - percent) / 100, 1);
    }
  });

  it('leaves KVM_RUN at once for a signal while it stays out', () => {
    const looping = new LoopingGuest(new CpuThrottle(99));
    const { guest, task } = looping;
    while (task.state.kind !== 'sleeping') looping.step();
    expect(task.state.site).toBe('cpu_throttle');
    expect(guest.vcpu.arch.inGuest).toBe(false);
    task.signal(10);
    looping.step();
    expect(task.state.kind).toBe('done');
  });

  it('goes on at full speed when the throttle is taken away', () => {
    const looping = new LoopingGuest(new CpuThrottle(99));
    const throttled = looping.runUntil(150_000n);
    CpuThrottle.end(looping.guest.vm);
    expect(looping.runUntil(300_000n)).toBeGreaterThan(10 * throttled);
  });
});
