import { Mutex } from '../sched/mutex.js';
import type { RunPages } from './run-pages.js';
import type { Vm } from './vm.js';
import type { VcpuArch } from './x86/vcpu-arch.js';

/** `KVM_REQ_*`: things a vCPU must do before it enters the guest again, lowest first. */
export const REQUEST = {
  VM_DEAD: 1 << 0,
  TLB_FLUSH: 1 << 1,
  DIRTY_RING_SOFT_FULL: 1 << 2,
  TRIPLE_FAULT: 1 << 3,
  EVENT: 1 << 4,
  NMI: 1 << 5,
  UNHALT: 1 << 6,
} as const;

/** `struct kvm_vcpu`. Its mutex is held for the whole of KVM_RUN; it lives as long as its VM. */
export class Vcpu {
  readonly mutex: Mutex;
  /** Bits of REQUEST. */
  private requests = 0;
  /** KVM_REQ_VM_DEAD is never cleared on this vCPU (BUGGED_ONLY). */
  stickyDeath = false;

  constructor(
    readonly vm: Vm,
    /** KVM_CREATE_VCPU's argument: the APIC id. */
    readonly id: number,
    /** Position in `vm.vcpus`. */
    readonly index: number,
    /** kvm_run, PIO data and coalesced-MMIO ring: real pages that userspace maps. */
    readonly runPages: RunPages,
    arch: (vcpu: Vcpu) => VcpuArch,
  ) {
    this.mutex = new Mutex(`vcpu${id}->mutex`);
    this.arch = arch(this);
  }

  readonly arch: VcpuArch;

  /** `kvm_make_request`. */
  request(bit: number): void {
    this.requests |= bit;
  }

  /** `kvm_test_request`. */
  testRequest(bit: number): boolean {
    return (this.requests & bit) !== 0;
  }

  /** `kvm_check_request`: looks and clears. */
  checkRequest(bit: number): boolean {
    if ((this.requests & bit) === 0) return false;
    if (!(bit === REQUEST.VM_DEAD && this.stickyDeath)) this.requests &= ~bit;
    return true;
  }
}
