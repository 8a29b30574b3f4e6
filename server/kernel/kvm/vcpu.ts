import type { KmemCharge } from '../kmem.js';
import { Mutex } from '../sched/mutex.js';
import type { DirtyRing } from './dirty-ring.js';
import { KMEM_SIZE } from './kmem-sizes.js';
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
  /** A timer has expired: a halted vCPU looks whether it can go on. */
  UNBLOCK: 1 << 7,
  /** The routes of level-triggered interrupts have changed: find out which EOIs an IOAPIC wants to see. */
  SCAN_IOAPIC: 1 << 8,
  /** KVM_EXIT_IOAPIC_EOI, for an IOAPIC in user space. */
  IOAPIC_EOI_EXIT: 1 << 9,
  /** KVM_EXIT_TPR_ACCESS. */
  REPORT_TPR_ACCESS: 1 << 10,
  /** Another vCPU of a SEV-SNP guest has given this one a new save area, or taken it away. */
  UPDATE_PROTECTED_GUEST_STATE: 1 << 11,
} as const;

/** `struct kvm_vcpu`. Its mutex is held for the whole of KVM_RUN; it lives as long as its VM. */
export class Vcpu {
  readonly mutex: Mutex;
  /** Bits of REQUEST. */
  private requests = 0;
  /** KVM_REQ_VM_DEAD is never cleared on this vCPU (BUGGED_ONLY). */
  stickyDeath = false;

  /** False once the last descriptor of its file is closed. */
  fileOpen = true;
  /** Position in `vm.vcpus`; -1 until it is online. */
  index = -1;
  /** Null unless the VM has KVM_CAP_DIRTY_LOG_RING. */
  dirtyRing: DirtyRing | null = null;
  private readonly charge: KmemCharge;

  constructor(
    readonly vm: Vm,
    /** KVM_CREATE_VCPU's argument: the APIC id. */
    readonly id: number,
    /** kvm_run and PIO data: real pages that userspace maps. */
    readonly runPages: RunPages,
    arch: (vcpu: Vcpu) => VcpuArch,
  ) {
    this.mutex = new Mutex(`vcpu${id}->mutex`);
    this.charge = vm.kmem.charge('kvm_vcpu', KMEM_SIZE.kvm_vcpu);
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
  /** The end of `kvm_vcpu_destroy`: what is left when the architecture has let go. */
  free(): void {
    this.dirtyRing?.free();
    this.runPages.free();
    this.charge.release();
  }
}
