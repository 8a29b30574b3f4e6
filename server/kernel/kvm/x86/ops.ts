import type { CpuState } from '../../../hardware/cpu/state.js';
import type { CpuExit, MappedPage, MemoryAccess, MemoryEncryption, NestedFault } from '../../../hardware/cpu/types.js';
import type { MemoryKey } from '../../../hardware/dram.js';
import type { Gfn, Gpa } from '../../../hardware/units.js';
import type { Failure, Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import type { Page } from '../../mm/page.js';
import type { Process } from '../../process/process.js';
import type { Task } from '../../sched/task.js';
import type { MightSleep } from '../../sched/wait.js';
import type { MovePhase } from '../move-phase.js';
import type { Vcpu } from '../vcpu.js';
import type { Vm, VmType } from '../vm.js';

/** What became of an exit that only the vendor's code knows: handled (enter again), or KVM_RUN returns. */
export type VendorExit =
  | { readonly kind: 'handled' }
  | { readonly kind: 'to-user' }
  | { readonly kind: 'failed'; readonly failure: Failure };

/** How a move of an encryption context may be watched. */
export interface MoveOptions {
  /** Told each phase as it is reached. */
  readonly observer?: (phase: MovePhase) => void;
}

/**
 * `struct kvm_x86_ops`: what differs between vendors. `svm` implements it on AMD hosts, `vmx` on Intel hosts. An
 * operation that a vendor leaves out gets the errno that the generic code has for a NULL pointer.
 */
export interface KvmX86Ops {
  /** Bit n: VM type n can be created (KVM_CAP_VM_TYPES). */
  readonly supportedVmTypes: number;
  /** `vm_init`: the vendor's part of a new VM. */
  vmInit(vm: Vm): Failure | null;
  /** `vm_pre_destroy` and `vm_destroy`: after the vCPUs are gone. */
  vmDestroy(current: Task, vm: Vm): MightSleep<void>;
  vcpuCreate(vcpu: Vcpu): Failure | null;
  vcpuFree(vcpu: Vcpu): void;

  /** `mem_enc_ioctl`, with the VM gate passed and no lock held. */
  memEncIoctl?(current: Task, vm: Vm, arg: IoctlArg): MightSleep<Result<number>>;
  /** What would keep a new VM of a process from becoming an encrypted guest now, without any effect. */
  validateMemEncInit?(process: Process, encryptedState: boolean): Failure | null;
  /** `vcpu_mem_enc_ioctl`. */
  vcpuMemEncIoctl?(current: Task, vcpu: Vcpu, arg: IoctlArg): MightSleep<Result<number>>;
  /** `mem_enc_register_region`; `kvm_enc_region` has been copied in. */
  memEncRegisterRegion?(current: Task, vm: Vm, address: bigint, size: bigint): MightSleep<Result<number>>;
  memEncUnregisterRegion?(current: Task, vm: Vm, address: bigint, size: bigint): MightSleep<Result<number>>;
  /** `vm_copy_enc_context_from`: mirror of the VM behind `sourceFd`. */
  vmCopyEncContextFrom?(current: Task, vm: Vm, sourceFd: number): MightSleep<Result<number>>;
  /** `vm_move_enc_context_from`. */
  vmMoveEncContextFrom?(current: Task, vm: Vm, sourceFd: number, options?: MoveOptions): MightSleep<Result<number>>;
  /** Whether a move would be allowed now: the failure that it would meet, without any effect and without waiting. */
  validateMoveEncContextFrom?(current: Task, vm: Vm, sourceFd: number): Failure | null;

  /** `vcpu_pre_run`: refuses a vCPU that cannot run at all (EINVAL). */
  vcpuPreRun(vcpu: Vcpu): Failure | null;
  /**
   * Before every `Cpu.run`: `prepare_switch_to_guest` and the VMRUN consistency checks. 'handled': the CPU holds the
   * guest's state and may run; else EINVAL, or KVM_EXIT_FAIL_ENTRY through `to-user`.
   */
  enterGuest(vcpu: Vcpu): VendorExit;
  /** After every `Cpu.run`, before the exit is handled: state that is protected goes back to its save area. */
  leaveGuest(vcpu: Vcpu, exit: CpuExit): void;
  /**
   * VMGEXIT, TDCALL: exits that mean something only to the vendor. One that userspace has to complete leaves
   * its completion in `vcpu.arch.completion`.
   */
  handleVendorExit(current: Task, vcpu: Vcpu, exit: { readonly kind: 'vmgexit' | 'tdcall' }): MightSleep<VendorExit>;
  /** `vcpu_after_set_cpuid`: what the vendor derives from a new CPUID (the C-bit leaves `reservedGpaBits`). */
  vcpuAfterSetCpuid(vcpu: Vcpu): void;
  /**
   * `vcpu_deliver_sipi_vector`, where the state is protected and the start address cannot be set: true if it was taken care of.
   */
  deliverSipi(vcpu: Vcpu): boolean;

  /** `guest_state_protected`: registers cannot be read or written. */
  guestStateProtected(vcpu: Vcpu): boolean;
  /** `has_protected_state` of the VM: then the register ioctls are EINVAL instead of meaningless. */
  hasProtectedState(vm: Vm): boolean;
  hasPrivateMemory(vm: Vm): boolean;
  /**
   * The registers that KVM sees, and that its register ioctls read and write: the CPU's own, or KVM's stale copy where
   * the state is protected. What the VMCB shows of a protected vCPU (interrupt flag and shadow) is read from the CPU.
   */
  visibleState(vcpu: Vcpu): CpuState;
  /** How guest page tables ask for encryption on this vCPU: for the CPU at its next entry. */
  memoryEncryption(vcpu: Vcpu): MemoryEncryption;
  /** The VMCB asks for encrypted state (SEV-ES): non-automatic exits become #VC, and control registers are trapped. */
  encryptedState(vcpu: Vcpu): boolean;
  /** `sev_vcpu_has_debug_swap`: the guest has all debug registers to itself. */
  debugSwap?(vcpu: Vcpu): boolean;
  /** The key through which this vCPU's encrypted accesses go; null: it has none. */
  encryptionKey(vcpu: Vcpu): MemoryKey | null;
  /** A last look at a translation that the nested page tables give (RMP, TD ownership). */
  checkMapping?(vcpu: Vcpu, address: Gpa, page: MappedPage, access: MemoryAccess): MappedPage | NestedFault;
  /** `gmem_prepare`: a page of a guest_memfd is about to be mapped as private memory. */
  gmemPrepare?(vm: Vm, frame: Gfn, page: Page): Failure | null;
  /** `gmem_invalidate`: the page goes back to the host; false: it cannot, and nobody may use it any more. */
  gmemInvalidate?(page: Page): boolean;
  /** `sev_handle_rmp_fault`: the reverse map refuses what the nested page tables allow. */
  handleRmpFault?(vcpu: Vcpu, address: Gpa): void;
  /** `vcpu_reset`, the vendor's part. */
  vcpuReset?(vcpu: Vcpu, init: boolean): void;
  /** `guest_memory_reclaimed`: cache writeback where encrypted memory went back to the host. */
  guestMemoryReclaimed(vm: Vm): void;
  /** `dev_get_attr` of group KVM_X86_GRP_SEV on `/dev/kvm`; null: there is no such attribute. */
  sevAttribute?(attr: number): bigint | null;
  /** ASIDs that are freed and wait for a flush. */
  asidsToReclaim?(): number;
  /** `get_cpl`-independent: can this VM type be made at all, for KVM_CREATE_VM's EINVAL. */
  isVmTypeSupported(type: number): type is VmType;
}
