import { Failure, failed, type Result } from '../failure.js';
import type { IoctlArg } from '../fs/ioctl-arg.js';
import type { Kernel } from '../kernel.js';
import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import { KVM_CAP, type KvmCapName } from '../uapi/capabilities.js';
import {
  GUEST_MEMFD_FLAG,
  KVM_CLOCK,
  KVM_DIRTY_LOG,
  KVM_GUESTDBG,
  KVM_HC,
  KVM_MEMORY_ATTRIBUTE,
  KVM_PAGE_OFFSET,
  KVM_SYNC_X86_VALID_FIELDS,
  KVM_X2APIC_API,
  KVM_X86_QUIRK,
} from '../uapi/constants.js';
import { kvm_enable_cap } from '../uapi/kvm-structs.js';
import type { StructValue } from '../uapi/struct.js';
import { kvm_xsave } from '../uapi/x86-structs.js';
import { copyStruct } from './copy-struct.js';
import { enableManualDirtyLogProtect } from './dirty-log.js';
import { enableDirtyLogRing, KVM_DIRTY_RING_BYTES_MAX } from './dirty-ring.js';
import { supportedGuestMemfdFlags } from './guest-memfd.js';
import { supportedMemoryAttributes } from './memory-attributes.js';
import { KVM_USER_MEM_SLOTS } from './memslots.js';
import { readonlyMemAllowed } from './set-memory-region.js';
import type { Vm } from './vm.js';
import { DISABLE_EXITS_MASK, kvmArchVmEnableCap } from './x86/enable-cap.js';
import { KVM_MAX_VCPU_IDS, KVM_MAX_VCPUS } from './x86/vm-arch.js';

/** KVM_MAX_IRQ_ROUTES. */
const MAX_IRQ_ROUTES = 4096;
/** KVM_MAX_MCE_BANKS. */
const MCE_BANKS = 32;
const U32_MAX = 0xffff_ffffn;

/** Capabilities that are simply there, whatever the VM. */
const PRESENT: readonly KvmCapName[] = [
  'IRQCHIP',
  'HLT',
  'MMU_SHADOW_CACHE_CONTROL',
  'USER_MEMORY',
  'SET_TSS_ADDR',
  'VAPIC',
  'EXT_CPUID',
  'CLOCKSOURCE',
  'PIT',
  'NOP_IO_DELAY',
  'MP_STATE',
  'SYNC_MMU',
  'DESTROY_MEMORY_REGION_WORKS',
  'USER_NMI',
  'SET_GUEST_DEBUG',
  'REINJECT_CONTROL',
  'IRQ_INJECT_STATUS',
  'JOIN_MEMORY_REGIONS_WORKS',
  'IRQFD',
  'PIT2',
  'SET_BOOT_CPU_ID',
  'PIT_STATE2',
  'IOEVENTFD',
  'SET_IDENTITY_MAP_ADDR',
  'INTERNAL_ERROR_DATA',
  'VCPU_EVENTS',
  'PCI_SEGMENT',
  'DEBUGREGS',
  'X86_ROBUST_SINGLESTEP',
  'ENABLE_CAP',
  'XSAVE',
  'XCRS',
  'ASYNC_PF',
  'GET_TSC_KHZ',
  'ONE_REG',
  'TSC_DEADLINE_TIMER',
  'KVMCLOCK_CTRL',
  'SIGNAL_MSI',
  'IRQFD_RESAMPLE',
  'DEVICE_CTRL',
  'EXT_EMUL_CPUID',
  'IOAPIC_POLARITY_IGNORED',
  'ENABLE_CAP_VM',
  'IOEVENTFD_NO_LENGTH',
  'CHECK_EXTENSION_VM',
  'DISABLE_QUIRKS',
  'SPLIT_IRQCHIP',
  'IOEVENTFD_ANY_LENGTH',
  'VCPU_ATTRIBUTES',
  'IMMEDIATE_EXIT',
  'GET_MSR_FEATURES',
  'MSR_PLATFORM_INFO',
  'COALESCED_PIO',
  'EXCEPTION_PAYLOAD',
  'HALT_POLL',
  'ASYNC_PF_INT',
  'LAST_CPU',
  'X86_USER_SPACE_MSR',
  'X86_MSR_FILTER',
  'ENFORCE_PV_FEATURE_CPUID',
  // Both say 1 on every x86 host; only KVM_ENABLE_CAP tells whether it works.
  'VM_COPY_ENC_CONTEXT_FROM',
  'VM_MOVE_ENC_CONTEXT_FROM',
  'SREGS2',
  'BINARY_STATS_FD',
  'EXIT_ON_EMULATION_FAILURE',
  'SYS_ATTRIBUTES',
  'SYSTEM_EVENT_DATA',
  'X86_TRIPLE_FAULT_EVENT',
  'VM_DISABLE_NX_HUGE_PAGES',
  'USER_MEMORY2',
  'MEMORY_FAULT_INFO',
  'GUEST_MEMFD',
  'PRE_FAULT_MEMORY',
  'X86_APIC_BUS_CYCLES_NS',
  'X86_GUEST_MODE',
];

/** A capability's value on a VM, or on `/dev/kvm` (null). */
type Value = (kernel: Kernel, vm: Vm | null) => number;

const allOf = (bits: Readonly<Record<string, number>>): number => Object.values(bits).reduce((mask, bit) => mask | bit, 0);

/** Capabilities with a value of their own. */
const VALUES: Readonly<Partial<Record<KvmCapName, Value>>> = {
  NR_VCPUS: ({ config }) => Math.min(config.cpus, KVM_MAX_VCPUS),
  MAX_VCPUS: (_kernel, vm) => vm?.arch.maxVcpus ?? KVM_MAX_VCPUS,
  MAX_VCPU_ID: () => KVM_MAX_VCPU_IDS,
  NR_MEMSLOTS: () => KVM_USER_MEM_SLOTS,
  COALESCED_MMIO: () => KVM_PAGE_OFFSET.COALESCED_MMIO,
  IRQ_ROUTING: () => MAX_IRQ_ROUTES,
  MCE: () => MCE_BANKS,
  SYNC_REGS: () => KVM_SYNC_X86_VALID_FIELDS,
  READONLY_MEM: (_kernel, vm) => (vm === null || readonlyMemAllowed(vm) ? 1 : 0),
  MANUAL_DIRTY_LOG_PROTECT2: () => KVM_DIRTY_LOG.MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG.INITIALLY_SET,
  ADJUST_CLOCK: () => allOf(KVM_CLOCK),
  X2APIC_API: () => allOf(KVM_X2APIC_API),
  X86_DISABLE_EXITS: () => DISABLE_EXITS_MASK,
  DISABLE_QUIRKS2: () => allOf(KVM_X86_QUIRK),
  EXIT_HYPERCALL: () => 1 << KVM_HC.MAP_GPA_RANGE,
  SET_GUEST_DEBUG2: () => allOf(KVM_GUESTDBG),
  DIRTY_LOG_RING: () => KVM_DIRTY_RING_BYTES_MAX,
  DIRTY_LOG_RING_ACQ_REL: () => KVM_DIRTY_RING_BYTES_MAX,
  XSAVE2: () => kvm_xsave.size,
  MEMORY_ATTRIBUTES: (_kernel, vm) => (vm === null ? KVM_MEMORY_ATTRIBUTE.PRIVATE : supportedMemoryAttributes(vm)),
  GUEST_MEMFD_FLAGS: (_kernel, vm) =>
    vm === null ? GUEST_MEMFD_FLAG.MMAP | GUEST_MEMFD_FLAG.INIT_SHARED : supportedGuestMemfdFlags(vm),
  VM_TYPES: ({ ops }) => ops.supportedVmTypes,
};

const isCapName = (name: string): name is KvmCapName => name in KVM_CAP;

const CAPABILITIES: ReadonlyMap<number, Value> = new Map<number, Value>([
  ...PRESENT.map((name): [number, Value] => [KVM_CAP[name], () => 1]),
  ...Object.entries(VALUES).flatMap(([name, value]): [number, Value][] => (isCapName(name) ? [[KVM_CAP[name], value]] : [])),
]);

/**
 * KVM_CHECK_EXTENSION on `/dev/kvm` (`vm` null) or on a VM: `kvm_vm_ioctl_check_extension_generic` and x86's. Never fails;
 * 0 for what is unknown. All 64 bits of the number count.
 */
export const checkExtension = (kernel: Kernel, vm: Vm | null, number: bigint): number =>
  number > U32_MAX ? 0 : (CAPABILITIES.get(Number(number))?.(kernel, vm) ?? 0);

type EnableCap = StructValue<typeof kvm_enable_cap>;

/** KVM_ENABLE_CAP on a VM (`kvm_vm_ioctl_enable_cap_generic`): what it does not know goes on to x86. */
export function* enableVmCap(current: Task, vm: Vm, arg: IoctlArg): MightSleep<Result<number>> {
  const cap = copyStruct(arg, kvm_enable_cap);
  if (failed(cap)) return cap;
  const argument = cap.args[0] ?? 0n;
  switch (cap.cap) {
    case KVM_CAP.MANUAL_DIRTY_LOG_PROTECT2:
      return enableManualDirtyLogProtect(vm, cap.flags, argument);
    case KVM_CAP.HALT_POLL:
      return enableHaltPoll(vm, cap, argument);
    case KVM_CAP.DIRTY_LOG_RING:
    case KVM_CAP.DIRTY_LOG_RING_ACQ_REL:
      return yield* enableDirtyLogRing(current, vm, argument);
    default:
      return yield* kvmArchVmEnableCap(current, vm, cap);
  }
}

const enableHaltPoll = (vm: Vm, { flags }: EnableCap, argument: bigint): Result<number> => {
  if (flags !== 0 || argument > U32_MAX)
    return new Failure('EINVAL', 'HALT_POLL_ARGUMENT', 'kvm_vm_ioctl_enable_cap_generic', {
      field: flags !== 0 ? 'flags' : 'args[0]',
      allowed: flags !== 0 ? '0' : '32 bits',
    });
  vm.maxHaltPollNs = Number(argument);
  return 0;
};
