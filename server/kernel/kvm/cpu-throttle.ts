import type { Vcpu } from './vcpu.js';
import type { Vm } from './vm.js';

/** Shorter absences than this are saved up: the host's timers are no finer. */
const SHORTEST_NS = 1_000_000n;

/**
 * Keeps vCPUs out of the guest for a part of their time, so that they write more slowly than a migration copies. QEMU does it
 * by a timer that makes its vCPU threads sleep (`cpu_throttle_set`); here it is KVM_RUN itself that stays out, by the clock of
 * the host, for the daemon has no hold on the VMM's threads. It lasts as long as it is in `vm.arch.throttle`.
 */
export class CpuThrottle {
  /** Nanoseconds that each vCPU has to stay out. */
  private readonly owed = new Map<Vcpu, bigint>();

  /** @param percent of a vCPU's time, 1 to 99 */
  constructor(private readonly percent: number) {}

  /** Those that stay out come back at once. */
  static end(vm: Vm): void {
    if (vm.arch.throttle === null) return;
    vm.arch.throttle = null;
    for (const { arch } of vm.vcpus) arch.kick();
  }

  /** A vCPU was in the guest for so long. */
  ran(vcpu: Vcpu, ns: bigint): void {
    this.owed.set(vcpu, (this.owed.get(vcpu) ?? 0n) + (ns * BigInt(this.percent)) / BigInt(100 - this.percent));
  }

  owes(vcpu: Vcpu): boolean {
    return (this.owed.get(vcpu) ?? 0n) >= SHORTEST_NS;
  }

  /** @returns nanoseconds for which it is to stay out now */
  take(vcpu: Vcpu): bigint {
    const ns = this.owed.get(vcpu) ?? 0n;
    this.owed.delete(vcpu);
    return ns;
  }
}
