import type { Failure } from '../../failure.js';
import type { CpuThrottle } from '../cpu-throttle.js';
import type { SevInfo } from '../svm/sev-info.js';
import type { Vm } from '../vm.js';
import { createVmIrq } from './irq/attach.js';
import type { VmIrq } from './irq/vm-irq.js';
import { TdpMmu } from './mmu.js';
import type { MsrFilter } from './msr-filter.js';
import { SharedFrames } from './shared-frames.js';
import { TSC_KHZ } from './tsc.js';

/** `enum kvm_irqchip_mode`: where the interrupt controllers of a VM live. */
export type IrqchipMode = 'none' | 'kernel' | 'split';

/** `KVM_MAX_VCPUS` of the default configuration [M]. */
export const KVM_MAX_VCPUS = 1024;
/** `KVM_MAX_VCPU_IDS`: four ids for each vCPU, for sparse APIC ids. */
export const KVM_MAX_VCPU_IDS = 4 * KVM_MAX_VCPUS;

/**
 * `struct kvm_arch` of x86: what KVM_ENABLE_CAP and the x86 ioctls of the VM fd set. The interrupt controllers' own
 * state is theirs.
 */
export class VmArch {
  readonly mmu: TdpMmu;
  /** What the guest has said of its pages by KVM_HC_MAP_GPA_RANGE. */
  readonly sharedFrames = new SharedFrames();
  /** Interrupt controllers, routing, the map of local APICs. */
  readonly irq: VmIrq;
  /** `kvm_svm.sev_info`, set by kvm_amd's `vm_init`; null where another vendor's module is loaded. */
  sev: SevInfo | null = null;

  irqchipMode: IrqchipMode = 'none';
  /** KVM_SET_BOOT_CPU_ID: the vCPU that starts as bootstrap processor. */
  bspVcpuId = 0;
  maxVcpus = KVM_MAX_VCPUS;
  /** KVM_CAP_MAX_VCPU_ID; 0: not set yet. The first vCPU makes KVM_MAX_VCPU_IDS of it. */
  maxVcpuIds = 0;

  /** KVM_CAP_DISABLE_QUIRKS(2): bits of KVM_X86_QUIRK that are switched off. */
  disabledQuirks = 0;
  /** KVM_CAP_X86_DISABLE_EXITS: bits of KVM_X86_DISABLE_EXITS. */
  disabledExits = 0;
  /** KVM_CAP_X2APIC_API. */
  x2apicFormat = false;
  x2apicBroadcastQuirkDisabled = false;
  /** KVM_CAP_X86_APIC_BUS_CYCLES_NS. */
  apicBusCycleNs = 1;
  /** KVM_CAP_EXCEPTION_PAYLOAD. */
  exceptionPayload = false;
  /** KVM_CAP_X86_TRIPLE_FAULT_EVENT. */
  tripleFaultEvent = false;
  /** KVM_CAP_MSR_PLATFORM_INFO. */
  guestCanReadMsrPlatformInfo = true;
  /** KVM_CAP_EXIT_HYPERCALL: bit n, hypercall n goes to userspace. */
  hypercallExitMask = 0n;
  /** KVM_CAP_EXIT_ON_EMULATION_FAILURE. */
  exitOnEmulationError = false;
  /** KVM_CAP_X86_USER_SPACE_MSR: bits of KVM_MSR_EXIT_REASON. */
  userSpaceMsrMask = 0;
  /** KVM_X86_SET_MSR_FILTER; null: everything is allowed. */
  msrFilter: MsrFilter | null = null;

  /** KVM_SET_TSC_KHZ on the VM: what a new vCPU starts with. */
  defaultTscKhz = TSC_KHZ;
  /** KVM_PRE_FAULT_MEMORY may map pages already; with hardware-private memory only once the launch is over. */
  preFaultAllowed = true;

  /** Added to the host's clock to give the guest's (KVM_SET_CLOCK), nanoseconds. */
  kvmclockOffset = 0n;

  /** The daemon slows the vCPUs down. */
  throttle: CpuThrottle | null = null;

  constructor(readonly vm: Vm) {
    this.mmu = new TdpMmu(vm);
    this.irq = createVmIrq(vm, this);
  }

  /** `irqchip_in_kernel`: full or split. */
  get irqchipInKernel(): boolean {
    return this.irqchipMode !== 'none';
  }

  /** `pic_in_kernel`, `ioapic_in_kernel`: the full one. */
  get picInKernel(): boolean {
    return this.irqchipMode === 'kernel';
  }

  quirkEnabled(quirk: number): boolean {
    return (this.disabledQuirks & quirk) === 0;
  }
}

/** `kvm_arch_init_vm`, without the vendor's part; also what `Vm`'s constructor calls. */
export const createVmArch = (vm: Vm): VmArch => new VmArch(vm);

/** `kvm_arch_init_vm`'s second half: after it the address space's changes reach the VM. Undone by `kvmArchDestroyVm`. */
export const kvmArchInitVm = (vm: Vm): Failure | null => {
  const refused = vm.kernel.ops.vmInit(vm);
  if (refused !== null) return refused;
  vm.arch.mmu.init();
  return null;
};
