import { DEFAULT_HOST_CONFIG } from '../../server/kernel/config.js';
import { failed, type Result } from '../../server/kernel/failure.js';
import type { Kernel } from '../../server/kernel/kernel.js';
import { createHost } from '../../server/kernel/kvm/host.js';
import type { AddressSpace } from '../../server/kernel/mm/address-space.js';
import type { Process } from '../../server/kernel/process/process.js';
import type { Task } from '../../server/kernel/sched/task.js';
import type { MightSleep } from '../../server/kernel/sched/wait.js';
import { open } from '../../server/kernel/syscalls/descriptors.js';
import { ioctl } from '../../server/kernel/syscalls/ioctl.js';
import { mmap } from '../../server/kernel/syscalls/memory.js';
import { IOCTL } from '../../server/kernel/uapi/ioctls.js';
import { MAP, PROT } from '../../server/kernel/uapi/mman.js';
import { type Figure, median } from './figure.js';
import { cpuMicroseconds } from './measure-time.js';

/** A process of a host in memory, whose calls end at once. */
export class InProcess {
  readonly kernel: Kernel = createHost(DEFAULT_HOST_CONFIG, { clock: { now: () => 0n } });
  readonly process: Process = this.kernel.spawn(null);
  readonly mm: AddressSpace;
  /** A page for the structures of ioctls. */
  readonly scratch: bigint;

  constructor() {
    const { mm } = this.process;
    if (mm === null) throw new Error('a process without memory');
    this.mm = mm;
    this.scratch = BigInt(this.map(4096));
  }

  map(length: number): number {
    const request = { address: 0n, length: BigInt(length), fd: -1, offset: 0n };
    const flags = { prot: PROT.READ | PROT.WRITE, flags: MAP.PRIVATE | MAP.ANONYMOUS | MAP.NORESERVE };
    return this.call(function* mapping(current) {
      const address = mmap(current, { ...request, ...flags });
      return failed(address) ? address : Number(address);
    });
  }

  openKvm(): number {
    const { kernel } = this;
    return this.call((current) => open(kernel, current, '/dev/kvm', 2));
  }

  ioctl(fd: number, request: number, value = 0n): number {
    const arg = { value, user: this.mm };
    return this.call((current) => ioctl(current, fd, request, arg));
  }

  private call(body: (current: Task) => MightSleep<Result<number>>): number {
    let result: Result<number> = -1;
    this.kernel.scheduler.start(this.process, 'bench', body, (value) => {
      result = value;
    });
    while (this.kernel.scheduler.run(1));
    if (failed(result)) throw new Error(`${result.errno} ${result.reason}`);
    return result;
  }
}

const CALLS = 200_000;
const ROUNDS = 7;
const TARGET = 1_000_000;

/** Calls of one thing in a second of CPU time, the median of some rounds. */
const perSecond = (call: () => void): number =>
  median(
    Array.from({ length: ROUNDS }, () => {
      const microseconds = cpuMicroseconds(() => {
        for (let left = CALLS; left > 0; left--) call();
      });
      return (CALLS * 1e6) / microseconds;
    }),
  );

/** Ioctls a second without gRPC, each as the task of its own that a call of a client is. */
export const measureInProcess = (): Figure[] => {
  const host = new InProcess();
  const kvm = host.openKvm();
  const vm = host.ioctl(kvm, IOCTL.KVM_CREATE_VM);
  const vcpu = host.ioctl(vm, IOCTL.KVM_CREATE_VCPU);
  const ioctls: readonly (readonly [string, () => void])[] = [
    ['KVM_CHECK_EXTENSION', () => host.ioctl(kvm, IOCTL.KVM_CHECK_EXTENSION, 10n)],
    ['KVM_GET_MP_STATE', () => host.ioctl(vcpu, IOCTL.KVM_GET_MP_STATE, host.scratch)],
    ['KVM_GET_REGS', () => host.ioctl(vcpu, IOCTL.KVM_GET_REGS, host.scratch)],
  ];
  return ioctls.map(([name, call]) => {
    const rate = perSecond(call);
    return {
      name: `${name} in process`,
      ours: `${(rate / 1e6).toFixed(2)} million/s`,
      baseline: `target ${TARGET / 1e6} million/s`,
      ratio: rate / TARGET,
      target: 'at least 1',
    };
  });
};
