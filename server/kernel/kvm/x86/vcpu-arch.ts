import { Cpu } from '../../../hardware/cpu/cpu.js';
import type { CpuState } from '../../../hardware/cpu/state.js';
import type { Failure } from '../../failure.js';
import type { PageMissing } from '../../mm/missing-pages.js';
import type { Task } from '../../sched/task.js';
import { type MightSleep, WaitQueue } from '../../sched/wait.js';
import { KVM_MP_STATE, type KvmMpState } from '../../uapi/constants.js';
import type { VcpuSvm } from '../svm/vcpu-svm.js';
import type { Vcpu } from '../vcpu.js';
import { CpuMode } from './cpu-mode.js';
import { Cpuid, cpuFeatures } from './cpuid.js';
import type { Emulation } from './emulate.js';
import { EventQueue } from './events.js';
import { APIC_BASE_AT_RESET, APIC_BASE_BSP } from './irq/apic-base.js';
import { kvmCreateLapic, kvmFreeLapic } from './irq/attach.js';
import type { Lapic } from './irq/lapic.js';
import { KvmRun } from './kvm-run.js';
import { VcpuMemory } from './mmu.js';
import { MsrStore } from './msr-store.js';
import { guestTsc } from './tsc.js';

/** How a step of KVM_RUN ended: enter the guest (again), return 0 to userspace, or return an errno. */
export type Turn = 'again' | 'to-user' | Failure;

/**
 * `vcpu->arch.complete_userspace_io`: what the next KVM_RUN does first with userspace's answer to the last exit. As
 * long as it has not run, the guest has not got the result, and nothing but KVM_RUN on this vCPU can give it.
 */
export interface Completion {
  readonly kind: 'pio-in' | 'pio-out' | 'mmio' | 'msr' | 'hypercall' | 'vendor' | 'deferred';
  /** The guest waits for data: losing this completion loses an I/O result. */
  readonly wantsData: boolean;
  run(current: Task): MightSleep<Turn>;
}

/** `struct kvm_vcpu_stat`, as far as x86 counts it. */
export interface VcpuStat {
  pf_taken: number;
  pf_fixed: number;
  pf_emulate: number;
  tlb_flush: number;
  exits: number;
  io_exits: number;
  mmio_exits: number;
  signal_exits: number;
  irq_window_exits: number;
  nmi_window_exits: number;
  halt_exits: number;
  request_irq_exits: number;
  insn_emulation: number;
  insn_emulation_fail: number;
  hypercalls: number;
  irq_injections: number;
  nmi_injections: number;
}

const createVcpuStat = (): VcpuStat => ({
  ...{ pf_taken: 0, pf_fixed: 0, pf_emulate: 0, tlb_flush: 0, exits: 0, io_exits: 0, mmio_exits: 0, signal_exits: 0 },
  ...{ irq_window_exits: 0, nmi_window_exits: 0, halt_exits: 0, request_irq_exits: 0, insn_emulation: 0 },
  ...{ insn_emulation_fail: 0, hypercalls: 0, irq_injections: 0, nmi_injections: 0 },
});

/** KVM_SET_GUEST_DEBUG. */
export interface GuestDebug {
  /** Bits of KVM_GUESTDBG. */
  control: number;
  /** DR0 to DR7 in place of the guest's, with USE_HW_BP; else empty. */
  debugRegisters: readonly bigint[];
}

/** `struct kvm_vcpu_arch` of x86, and what of `struct kvm_vcpu` only KVM_RUN uses. */
export class VcpuArch {
  private madeCpu: Cpu | null = null;
  /** `struct vcpu_svm`, set by kvm_amd's `vcpu_create`; null where another vendor's module is loaded. */
  svm: VcpuSvm | null = null;
  readonly run: KvmRun;
  readonly events = new EventQueue();
  readonly msrs: MsrStore;
  readonly stat = createVcpuStat();
  /** A page that the vCPU has run into since it last entered, and whose contents the host does not have yet. */
  awaitedPage: PageMissing | null = null;
  /** `vcpu->wait`: where a halted or uninitialized vCPU sleeps. */
  readonly wait = new WaitQueue();

  mpState: KvmMpState;
  /** Null without an in-kernel local APIC. */
  lapic: Lapic | null = null;
  /** IA32_APIC_BASE where userspace keeps the APIC; else the Lapic has it. */
  apicBase: bigint;
  cpuid = Cpuid.EMPTY;
  /** Bits of a guest physical address that must be zero (`reserved_gpa_bits`); the vendor takes the C-bit out. */
  reservedGpaBits: bigint;

  completion: Completion | null = null;
  /** The instruction whose MMIO or string I/O is under way. */
  emulation: Emulation | null = null;
  readonly guestDebug: GuestDebug = { control: 0, debugRegisters: [] };
  /** KVM_SET_SIGNAL_MASK; null: the thread's own mask counts. */
  signalMask: ReadonlySet<number> | null = null;
  /** KVM_TPR_ACCESS_REPORTING. */
  tprAccessReporting = false;
  /** The access of which KVM_REQ_REPORT_TPR_ACCESS shall tell. */
  tprAccess: { readonly isWrite: boolean } | null = null;

  /** TSC of the guest less that of the host. */
  tscOffset = 0n;
  tscKhz: number;

  /** Inside KVM_RUN and between entry and exit, also while other tasks have their turn. */
  inGuest = false;
  /** `kvm_vcpu_has_run`: CPUID is fixed from then on. */
  hasRun = false;
  /** How the CPU has been set up for its last entry. */
  readonly cpuMode = new CpuMode();

  constructor(readonly vcpu: Vcpu) {
    const { vm } = vcpu;
    this.reservedGpaBits = this.cpuid.reservedGpaBits;
    this.tscKhz = vm.arch.defaultTscKhz;
    this.run = new KvmRun(vcpu.runPages);
    this.msrs = new MsrStore();
    const bsp = vcpu.id === vm.arch.bspVcpuId;
    this.apicBase = bsp ? APIC_BASE_AT_RESET | APIC_BASE_BSP : APIC_BASE_AT_RESET;
    this.mpState = !vm.arch.irqchipInKernel || bsp ? KVM_MP_STATE.RUNNABLE : KVM_MP_STATE.UNINITIALIZED;
  }

  /**
   * The CPU with its registers and caches: made for whoever first looks at a register or enters the guest. Until then it is
   * as RESET leaves it, and a host can have thousands of vCPUs that nobody has run yet.
   */
  get cpu(): Cpu {
    this.madeCpu ??= this.makeCpu();
    return this.madeCpu;
  }

  private makeCpu(): Cpu {
    const { vcpu, cpuid } = this;
    return new Cpu({
      memory: new VcpuMemory(vcpu),
      features: cpuFeatures(cpuid, vcpu.vm.kernel.config),
      readTsc: () => guestTsc(vcpu),
    });
  }

  /** Instructions that the guest has executed. */
  get executed(): number {
    return this.madeCpu?.executed ?? 0;
  }

  /** Memslots, nested entries or keys have changed: see `Cpu.flushTlb`. */
  flushTlb(): void {
    this.madeCpu?.flushTlb();
  }

  /** The registers that KVM sees: not the guest's where its state is protected. */
  get state(): CpuState {
    return this.vcpu.vm.kernel.ops.visibleState(this.vcpu);
  }

  /** `kvm_vcpu_kick` and `kvm_vcpu_wake_up`. */
  kick(): void {
    this.wait.wakeAll();
  }

  /** CPUID has changed. */
  updateFeatures(): void {
    this.madeCpu?.setFeatures(cpuFeatures(this.cpuid, this.vcpu.vm.kernel.config));
  }
}

/** `kvm_arch_vcpu_create`: what may fail, and what needs the vCPU as a whole. */
export const kvmArchVcpuCreate = (vcpu: Vcpu): Failure | null => {
  kvmCreateLapic(vcpu);
  const refused = vcpu.vm.kernel.ops.vcpuCreate(vcpu);
  if (refused !== null) kvmFreeLapic(vcpu);
  return refused;
};

/** `kvm_arch_vcpu_destroy`. */
export const kvmArchVcpuDestroy = (vcpu: Vcpu): void => {
  vcpu.vm.kernel.ops.vcpuFree(vcpu);
  kvmFreeLapic(vcpu);
};
