import { describe, expect, it } from 'vitest';
import { failed, type Result } from '../../../../../server/kernel/failure.js';
import type { Task } from '../../../../../server/kernel/sched/task.js';
import { ioctl } from '../../../../../server/kernel/syscalls/ioctl.js';
import { IOCTL } from '../../../../../server/kernel/uapi/ioctls.js';
import { kvm_regs, kvm_sregs } from '../../../../../server/kernel/uapi/x86-structs.js';
import { CODE, Guest } from './guest.js';

const SIGUSR1 = 10;
const KVM_CAP_NR_VCPUS = 9n;
/** inc dword ptr [di]; jmp back to it. */
const COUNT_FOR_EVER = '66ff05 ebfb';
const COUNTERS = [0x2000, 0x2004, 0x2008] as const;
const TURNS = 60;

/** Three vCPUs that count without end, each in a counter of its own. */
class Counting {
  readonly guest = new Guest().program(COUNT_FOR_EVER);
  /** What has come back, by vCPU. */
  readonly results = new Map<number, Result<number>>();
  private readonly tasks: readonly Task[];

  constructor() {
    const { guest } = this;
    const state = kvm_sregs.encode(guest.sregs);
    const vcpus = COUNTERS.map((counter, id) => {
      const fd = id === 0 ? guest.vcpuFd : guest.process.createVcpu(guest.vmFd, id).fd;
      guest.must(fd, IOCTL.KVM_SET_SREGS, state);
      guest.must(fd, IOCTL.KVM_SET_REGS, kvm_regs.encode({ rip: BigInt(CODE), rdi: BigInt(counter), rflags: 2n }));
      return fd;
    });
    this.tasks = vcpus.map((fd, id) => this.start(fd, IOCTL.KVM_RUN, 0n, (result) => this.results.set(id, result)));
  }

  /** An ioctl that is not waited for: with such guests a host never comes to rest. */
  start(fd: number, request: number, value: bigint, done: (result: Result<number>) => void): Task {
    const { process, kernel, mm } = this.guest;
    const body = (current: Task) => ioctl(current, fd, request, { value, user: mm });
    return kernel.scheduler.start(process.process, 'test', body, done);
  }

  turns(count: number): void {
    for (let left = count; left > 0; left--) this.guest.kernel.scheduler.run(1);
  }

  get counters(): number[] {
    return COUNTERS.map((counter) => Buffer.from(this.guest.read(counter, 4), 'hex').readUInt32LE());
  }

  kick(id: number): void {
    this.tasks[id]?.signal(SIGUSR1);
  }

  end(): void {
    for (const [id] of COUNTERS.entries()) this.kick(id);
    this.guest.kernel.scheduler.run();
  }
}

describe('guests without end', () => {
  it('take turns: none is ahead of another by more than a slice', () => {
    const counting = new Counting();
    counting.turns(TURNS);
    const { counters } = counting;
    const slice = Math.max(...counters) / (TURNS / COUNTERS.length);
    expect(Math.min(...counters)).toBeGreaterThan(0);
    expect(Math.max(...counters) - Math.min(...counters)).toBeLessThanOrEqual(2 * slice);
    counting.end();
  });

  it('let other calls of their process go on', () => {
    const counting = new Counting();
    counting.turns(5);
    let answer: Result<number> = -1;
    counting.start(counting.guest.vmFd, IOCTL.KVM_CHECK_EXTENSION, KVM_CAP_NR_VCPUS, (result) => {
      answer = result;
    });
    expect(answer).toBeGreaterThan(0);
    expect(counting.results.size).toBe(0);
    counting.end();
  });

  it('stop at the next turn of the one that is kicked, and the others go on', () => {
    const counting = new Counting();
    counting.turns(TURNS);
    counting.kick(1);
    counting.turns(COUNTERS.length);
    const result = counting.results.get(1);
    expect(failed(result) && result.errno).toBe('EINTR');
    expect([...counting.results.keys()]).toEqual([1]);
    counting.end();
  });

  it('come as far in as many turns, each time', () => {
    const far = (): number[] => {
      const counting = new Counting();
      counting.turns(TURNS + 1);
      const { counters } = counting;
      counting.end();
      return counters;
    };
    expect(far()).toEqual(far());
  });
});
