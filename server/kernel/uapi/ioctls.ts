import { io, ior, iow, iowr, SEV_IOC_TYPE } from './ioc.js';
import {
  kvm_irq_level,
  kvm_irq_routing,
  kvm_irq_routing_entry,
  kvm_irq_routing_xen_evtchn,
  kvm_irqchip,
  kvm_msi,
  kvm_pit_config,
  kvm_pit_state,
  kvm_pit_state2,
  kvm_reinject_control,
} from './irq-structs.js';
import {
  kvm_clear_dirty_log,
  kvm_coalesced_mmio_zone,
  kvm_create_device,
  kvm_create_guest_memfd,
  kvm_device_attr,
  kvm_dirty_log,
  kvm_enable_cap,
  kvm_enc_region,
  kvm_interrupt,
  kvm_ioeventfd,
  kvm_irqfd,
  kvm_memory_attributes,
  kvm_mp_state,
  kvm_one_reg,
  kvm_pre_fault_memory,
  kvm_reg_list,
  kvm_signal_mask,
  kvm_tpr_access_ctl,
  kvm_translation,
  kvm_userspace_memory_region,
  kvm_userspace_memory_region2,
  kvm_vapic_addr,
} from './kvm-structs.js';
import { kvm_sev_cmd, sev_issue_cmd } from './sev-structs.js';
import type { Fields, Struct } from './struct.js';
import {
  kvm_clock_data,
  kvm_cpuid,
  kvm_cpuid_entry,
  kvm_cpuid_entry2,
  kvm_cpuid2,
  kvm_debugregs,
  kvm_fpu,
  kvm_guest_debug,
  kvm_hyperv_eventfd,
  kvm_lapic_state,
  kvm_msr_entry,
  kvm_msr_filter,
  kvm_msr_list,
  kvm_msrs,
  kvm_nested_state,
  kvm_pmu_event_filter,
  kvm_regs,
  kvm_sregs,
  kvm_sregs2,
  kvm_vcpu_events,
  kvm_x86_mce,
  kvm_xcrs,
  kvm_xen_attr,
  kvm_xen_hvm_config,
  kvm_xsave,
} from './x86-structs.js';

/** The kinds of file that take ioctls here. */
export type IoctlFd = 'system' | 'vm' | 'vcpu' | 'device' | 'sev';

/** Which way the argument's bytes really go, whatever the request number says. */
export type IoctlDirection = 'in' | 'out' | 'inout';

/** The third argument: ignored, a value, or the address of a structure, which elements may follow. */
export type IoctlArgKind =
  | { readonly kind: 'none' }
  | { readonly kind: 'value' }
  | {
      readonly kind: 'struct';
      readonly direction: IoctlDirection;
      /** As the header calls it; `__u64` for a bare word. */
      readonly name: string;
      /** Bytes, without the elements that follow. */
      readonly size: number;
      readonly struct: Struct<Fields> | null;
      /** The field that counts the elements behind the structure, and the size of one. */
      readonly tail: { readonly count: string; readonly size: number } | null;
    };

export interface IoctlEntry {
  readonly request: number;
  /** The kinds of file whose handler knows the request; any other gives its errno for an unknown one. */
  readonly fds: readonly IoctlFd[];
  readonly arg: IoctlArgKind;
}

const SYSTEM = ['system'] as const;
const VM = ['vm'] as const;
const VCPU = ['vcpu'] as const;

const NONE: IoctlArgKind = { kind: 'none' };
const VALUE: IoctlArgKind = { kind: 'value' };
const word = (direction: IoctlDirection): IoctlArgKind => ({
  kind: 'struct',
  direction,
  name: '__u64',
  size: 8,
  struct: null,
  tail: null,
});
const struct = <F extends Fields>(
  direction: IoctlDirection,
  type: Struct<F>,
  tail: { count: keyof F & string; size: number } | null = null,
): IoctlArgKind => ({ kind: 'struct', direction, name: type.name, size: type.size, struct: type, tail });

/** Every ioctl of KVM on x86, and that of `/dev/sev`, under the name that the headers give it. */
const TABLE = {
  KVM_GET_API_VERSION: { request: io(0x00), fds: SYSTEM, arg: VALUE },
  KVM_CREATE_VM: { request: io(0x01), fds: SYSTEM, arg: VALUE },
  KVM_GET_MSR_INDEX_LIST: {
    request: iowr(0x02, kvm_msr_list.size),
    fds: SYSTEM,
    arg: struct('inout', kvm_msr_list, { count: 'nmsrs', size: 4 }),
  },
  KVM_CHECK_EXTENSION: { request: io(0x03), fds: ['system', 'vm'], arg: VALUE },
  KVM_GET_VCPU_MMAP_SIZE: { request: io(0x04), fds: SYSTEM, arg: VALUE },
  KVM_GET_SUPPORTED_CPUID: {
    request: iowr(0x05, kvm_cpuid2.size),
    fds: SYSTEM,
    arg: struct('inout', kvm_cpuid2, { count: 'nent', size: kvm_cpuid_entry2.size }),
  },
  KVM_GET_EMULATED_CPUID: {
    request: iowr(0x09, kvm_cpuid2.size),
    fds: SYSTEM,
    arg: struct('inout', kvm_cpuid2, { count: 'nent', size: kvm_cpuid_entry2.size }),
  },
  KVM_GET_MSR_FEATURE_INDEX_LIST: {
    request: iowr(0x0a, kvm_msr_list.size),
    fds: SYSTEM,
    arg: struct('inout', kvm_msr_list, { count: 'nmsrs', size: 4 }),
  },
  KVM_CREATE_VCPU: { request: io(0x41), fds: VM, arg: VALUE },
  KVM_GET_DIRTY_LOG: { request: iow(0x42, kvm_dirty_log.size), fds: VM, arg: struct('in', kvm_dirty_log) },
  KVM_SET_NR_MMU_PAGES: { request: io(0x44), fds: VM, arg: VALUE },
  KVM_GET_NR_MMU_PAGES: { request: io(0x45), fds: VM, arg: NONE },
  KVM_SET_USER_MEMORY_REGION: {
    request: iow(0x46, kvm_userspace_memory_region.size),
    fds: VM,
    arg: struct('in', kvm_userspace_memory_region),
  },
  KVM_SET_TSS_ADDR: { request: io(0x47), fds: VM, arg: VALUE },
  KVM_SET_IDENTITY_MAP_ADDR: { request: iow(0x48, 8), fds: VM, arg: word('in') },
  KVM_SET_USER_MEMORY_REGION2: {
    request: iow(0x49, kvm_userspace_memory_region2.size),
    fds: VM,
    arg: struct('in', kvm_userspace_memory_region2),
  },
  KVM_CREATE_IRQCHIP: { request: io(0x60), fds: VM, arg: NONE },
  KVM_IRQ_LINE: { request: iow(0x61, kvm_irq_level.size), fds: VM, arg: struct('in', kvm_irq_level) },
  KVM_GET_IRQCHIP: { request: iowr(0x62, kvm_irqchip.size), fds: VM, arg: struct('inout', kvm_irqchip) },
  /** Direction as in the header, which has it wrong; so SET_PIT and the two encryption regions. */
  KVM_SET_IRQCHIP: { request: ior(0x63, kvm_irqchip.size), fds: VM, arg: struct('in', kvm_irqchip) },
  KVM_CREATE_PIT: { request: io(0x64), fds: VM, arg: NONE },
  KVM_GET_PIT: { request: iowr(0x65, kvm_pit_state.size), fds: VM, arg: struct('out', kvm_pit_state) },
  KVM_SET_PIT: { request: ior(0x66, kvm_pit_state.size), fds: VM, arg: struct('in', kvm_pit_state) },
  KVM_IRQ_LINE_STATUS: { request: iowr(0x67, kvm_irq_level.size), fds: VM, arg: struct('inout', kvm_irq_level) },
  KVM_REGISTER_COALESCED_MMIO: {
    request: iow(0x67, kvm_coalesced_mmio_zone.size),
    fds: VM,
    arg: struct('in', kvm_coalesced_mmio_zone),
  },
  KVM_UNREGISTER_COALESCED_MMIO: {
    request: iow(0x68, kvm_coalesced_mmio_zone.size),
    fds: VM,
    arg: struct('in', kvm_coalesced_mmio_zone),
  },
  KVM_SET_GSI_ROUTING: {
    request: iow(0x6a, kvm_irq_routing.size),
    fds: VM,
    arg: struct('in', kvm_irq_routing, { count: 'nr', size: kvm_irq_routing_entry.size }),
  },
  /** The number says that there is no argument, but it is a pointer. */
  KVM_REINJECT_CONTROL: { request: io(0x71), fds: VM, arg: struct('in', kvm_reinject_control) },
  KVM_IRQFD: { request: iow(0x76, kvm_irqfd.size), fds: VM, arg: struct('in', kvm_irqfd) },
  KVM_CREATE_PIT2: { request: iow(0x77, kvm_pit_config.size), fds: VM, arg: struct('in', kvm_pit_config) },
  KVM_SET_BOOT_CPU_ID: { request: io(0x78), fds: VM, arg: VALUE },
  KVM_IOEVENTFD: { request: iow(0x79, kvm_ioeventfd.size), fds: VM, arg: struct('in', kvm_ioeventfd) },
  /** Xen, Hyper-V and nested guests are not simulated: their requests are known and refused as an unknown one. */
  KVM_XEN_HVM_CONFIG: { request: iow(0x7a, kvm_xen_hvm_config.size), fds: VM, arg: struct('in', kvm_xen_hvm_config) },
  KVM_SET_CLOCK: { request: iow(0x7b, kvm_clock_data.size), fds: VM, arg: struct('in', kvm_clock_data) },
  KVM_GET_CLOCK: { request: ior(0x7c, kvm_clock_data.size), fds: VM, arg: struct('out', kvm_clock_data) },
  KVM_RUN: { request: io(0x80), fds: VCPU, arg: VALUE },
  KVM_GET_REGS: { request: ior(0x81, kvm_regs.size), fds: VCPU, arg: struct('out', kvm_regs) },
  KVM_SET_REGS: { request: iow(0x82, kvm_regs.size), fds: VCPU, arg: struct('in', kvm_regs) },
  KVM_GET_SREGS: { request: ior(0x83, kvm_sregs.size), fds: VCPU, arg: struct('out', kvm_sregs) },
  KVM_SET_SREGS: { request: iow(0x84, kvm_sregs.size), fds: VCPU, arg: struct('in', kvm_sregs) },
  KVM_TRANSLATE: { request: iowr(0x85, kvm_translation.size), fds: VCPU, arg: struct('inout', kvm_translation) },
  KVM_INTERRUPT: { request: iow(0x86, kvm_interrupt.size), fds: VCPU, arg: struct('in', kvm_interrupt) },
  KVM_GET_MSRS: {
    request: iowr(0x88, kvm_msrs.size),
    fds: ['system', 'vcpu'],
    arg: struct('inout', kvm_msrs, { count: 'nmsrs', size: kvm_msr_entry.size }),
  },
  KVM_SET_MSRS: {
    request: iow(0x89, kvm_msrs.size),
    fds: VCPU,
    arg: struct('in', kvm_msrs, { count: 'nmsrs', size: kvm_msr_entry.size }),
  },
  KVM_SET_CPUID: {
    request: iow(0x8a, kvm_cpuid.size),
    fds: VCPU,
    arg: struct('in', kvm_cpuid, { count: 'nent', size: kvm_cpuid_entry.size }),
  },
  KVM_SET_SIGNAL_MASK: {
    request: iow(0x8b, kvm_signal_mask.size),
    fds: VCPU,
    arg: struct('in', kvm_signal_mask, { count: 'len', size: 1 }),
  },
  KVM_GET_FPU: { request: ior(0x8c, kvm_fpu.size), fds: VCPU, arg: struct('out', kvm_fpu) },
  KVM_SET_FPU: { request: iow(0x8d, kvm_fpu.size), fds: VCPU, arg: struct('in', kvm_fpu) },
  KVM_GET_LAPIC: { request: ior(0x8e, kvm_lapic_state.size), fds: VCPU, arg: struct('out', kvm_lapic_state) },
  KVM_SET_LAPIC: { request: iow(0x8f, kvm_lapic_state.size), fds: VCPU, arg: struct('in', kvm_lapic_state) },
  KVM_SET_CPUID2: {
    request: iow(0x90, kvm_cpuid2.size),
    fds: VCPU,
    arg: struct('in', kvm_cpuid2, { count: 'nent', size: kvm_cpuid_entry2.size }),
  },
  KVM_GET_CPUID2: {
    request: iowr(0x91, kvm_cpuid2.size),
    fds: VCPU,
    arg: struct('inout', kvm_cpuid2, { count: 'nent', size: kvm_cpuid_entry2.size }),
  },
  KVM_TPR_ACCESS_REPORTING: { request: iowr(0x92, kvm_tpr_access_ctl.size), fds: VCPU, arg: struct('inout', kvm_tpr_access_ctl) },
  KVM_SET_VAPIC_ADDR: { request: iow(0x93, kvm_vapic_addr.size), fds: VCPU, arg: struct('in', kvm_vapic_addr) },
  KVM_GET_MP_STATE: { request: ior(0x98, kvm_mp_state.size), fds: VCPU, arg: struct('out', kvm_mp_state) },
  KVM_SET_MP_STATE: { request: iow(0x99, kvm_mp_state.size), fds: VCPU, arg: struct('in', kvm_mp_state) },
  KVM_NMI: { request: io(0x9a), fds: VCPU, arg: NONE },
  KVM_SET_GUEST_DEBUG: { request: iow(0x9b, kvm_guest_debug.size), fds: VCPU, arg: struct('in', kvm_guest_debug) },
  KVM_X86_SETUP_MCE: { request: iow(0x9c, 8), fds: VCPU, arg: word('in') },
  KVM_X86_GET_MCE_CAP_SUPPORTED: { request: ior(0x9d, 8), fds: SYSTEM, arg: word('out') },
  KVM_X86_SET_MCE: { request: iow(0x9e, kvm_x86_mce.size), fds: VCPU, arg: struct('in', kvm_x86_mce) },
  KVM_GET_PIT2: { request: ior(0x9f, kvm_pit_state2.size), fds: VM, arg: struct('out', kvm_pit_state2) },
  KVM_GET_VCPU_EVENTS: { request: ior(0x9f, kvm_vcpu_events.size), fds: VCPU, arg: struct('out', kvm_vcpu_events) },
  KVM_SET_PIT2: { request: iow(0xa0, kvm_pit_state2.size), fds: VM, arg: struct('in', kvm_pit_state2) },
  KVM_SET_VCPU_EVENTS: { request: iow(0xa0, kvm_vcpu_events.size), fds: VCPU, arg: struct('in', kvm_vcpu_events) },
  KVM_GET_DEBUGREGS: { request: ior(0xa1, kvm_debugregs.size), fds: VCPU, arg: struct('out', kvm_debugregs) },
  KVM_SET_DEBUGREGS: { request: iow(0xa2, kvm_debugregs.size), fds: VCPU, arg: struct('in', kvm_debugregs) },
  KVM_SET_TSC_KHZ: { request: io(0xa2), fds: ['vm', 'vcpu'], arg: VALUE },
  KVM_GET_TSC_KHZ: { request: io(0xa3), fds: ['vm', 'vcpu'], arg: NONE },
  KVM_ENABLE_CAP: { request: iow(0xa3, kvm_enable_cap.size), fds: ['vm', 'vcpu'], arg: struct('in', kvm_enable_cap) },
  KVM_GET_XSAVE: { request: ior(0xa4, kvm_xsave.size), fds: VCPU, arg: struct('out', kvm_xsave) },
  KVM_SET_XSAVE: { request: iow(0xa5, kvm_xsave.size), fds: VCPU, arg: struct('in', kvm_xsave) },
  KVM_SIGNAL_MSI: { request: iow(0xa5, kvm_msi.size), fds: VM, arg: struct('in', kvm_msi) },
  KVM_GET_XCRS: { request: ior(0xa6, kvm_xcrs.size), fds: VCPU, arg: struct('out', kvm_xcrs) },
  KVM_SET_XCRS: { request: iow(0xa7, kvm_xcrs.size), fds: VCPU, arg: struct('in', kvm_xcrs) },
  KVM_GET_ONE_REG: { request: iow(0xab, kvm_one_reg.size), fds: VCPU, arg: struct('in', kvm_one_reg) },
  KVM_SET_ONE_REG: { request: iow(0xac, kvm_one_reg.size), fds: VCPU, arg: struct('in', kvm_one_reg) },
  KVM_KVMCLOCK_CTRL: { request: io(0xad), fds: VCPU, arg: NONE },
  KVM_GET_REG_LIST: {
    request: iowr(0xb0, kvm_reg_list.size),
    fds: VCPU,
    arg: struct('inout', kvm_reg_list, { count: 'n', size: 8 }),
  },
  KVM_SET_PMU_EVENT_FILTER: {
    request: iow(0xb2, kvm_pmu_event_filter.size),
    fds: VM,
    arg: struct('in', kvm_pmu_event_filter, { count: 'nevents', size: 8 }),
  },
  KVM_SMI: { request: io(0xb7), fds: VCPU, arg: NONE },
  /** The number says 8 bytes (`unsigned long`), the pointer leads to a kvm_sev_cmd. On a vCPU it exists for TDX only. */
  KVM_MEMORY_ENCRYPT_OP: { request: iowr(0xba, 8), fds: ['vm', 'vcpu'], arg: struct('inout', kvm_sev_cmd) },
  KVM_MEMORY_ENCRYPT_REG_REGION: { request: ior(0xbb, kvm_enc_region.size), fds: VM, arg: struct('in', kvm_enc_region) },
  KVM_MEMORY_ENCRYPT_UNREG_REGION: { request: ior(0xbc, kvm_enc_region.size), fds: VM, arg: struct('in', kvm_enc_region) },
  KVM_HYPERV_EVENTFD: { request: iow(0xbd, kvm_hyperv_eventfd.size), fds: VM, arg: struct('in', kvm_hyperv_eventfd) },
  KVM_GET_NESTED_STATE: { request: iowr(0xbe, kvm_nested_state.size), fds: VCPU, arg: struct('inout', kvm_nested_state) },
  KVM_SET_NESTED_STATE: { request: iow(0xbf, kvm_nested_state.size), fds: VCPU, arg: struct('in', kvm_nested_state) },
  KVM_CLEAR_DIRTY_LOG: { request: iowr(0xc0, kvm_clear_dirty_log.size), fds: VM, arg: struct('in', kvm_clear_dirty_log) },
  KVM_GET_SUPPORTED_HV_CPUID: {
    request: iowr(0xc1, kvm_cpuid2.size),
    fds: ['system', 'vcpu'],
    arg: struct('inout', kvm_cpuid2, { count: 'nent', size: kvm_cpuid_entry2.size }),
  },
  KVM_X86_SET_MSR_FILTER: { request: iow(0xc6, kvm_msr_filter.size), fds: VM, arg: struct('in', kvm_msr_filter) },
  KVM_RESET_DIRTY_RINGS: { request: io(0xc7), fds: VM, arg: NONE },
  KVM_XEN_HVM_GET_ATTR: { request: iowr(0xc8, kvm_xen_attr.size), fds: VM, arg: struct('inout', kvm_xen_attr) },
  KVM_XEN_HVM_SET_ATTR: { request: iow(0xc9, kvm_xen_attr.size), fds: VM, arg: struct('in', kvm_xen_attr) },
  KVM_XEN_VCPU_GET_ATTR: { request: iowr(0xca, kvm_xen_attr.size), fds: VCPU, arg: struct('inout', kvm_xen_attr) },
  KVM_XEN_VCPU_SET_ATTR: { request: iow(0xcb, kvm_xen_attr.size), fds: VCPU, arg: struct('in', kvm_xen_attr) },
  KVM_GET_SREGS2: { request: ior(0xcc, kvm_sregs2.size), fds: VCPU, arg: struct('out', kvm_sregs2) },
  KVM_SET_SREGS2: { request: iow(0xcd, kvm_sregs2.size), fds: VCPU, arg: struct('in', kvm_sregs2) },
  KVM_GET_STATS_FD: { request: io(0xce), fds: ['vm', 'vcpu'], arg: NONE },
  KVM_GET_XSAVE2: { request: ior(0xcf, kvm_xsave.size), fds: VCPU, arg: struct('out', kvm_xsave) },
  KVM_XEN_HVM_EVTCHN_SEND: {
    request: iow(0xd0, kvm_irq_routing_xen_evtchn.size),
    fds: VM,
    arg: struct('in', kvm_irq_routing_xen_evtchn),
  },
  KVM_SET_MEMORY_ATTRIBUTES: {
    request: iow(0xd2, kvm_memory_attributes.size),
    fds: VM,
    arg: struct('in', kvm_memory_attributes),
  },
  KVM_CREATE_GUEST_MEMFD: {
    request: iowr(0xd4, kvm_create_guest_memfd.size),
    fds: VM,
    arg: struct('in', kvm_create_guest_memfd),
  },
  KVM_PRE_FAULT_MEMORY: { request: iowr(0xd5, kvm_pre_fault_memory.size), fds: VCPU, arg: struct('inout', kvm_pre_fault_memory) },
  /**
   * The ioctl that post-move policy DISMANTLE_IOCTL offers: best-effort teardown of a dead VM, repeatable. No kernel has
   * it; the number 0xDF is reserved for it by this project, just below the device ioctls, and is ENOTTY elsewhere.
   */
  KVM_DISMANTLE_VM: { request: io(0xdf), fds: VM, arg: NONE },
  KVM_CREATE_DEVICE: { request: iowr(0xe0, kvm_create_device.size), fds: VM, arg: struct('inout', kvm_create_device) },
  /** On a vCPU: KVM_VCPU_TSC_CTRL. On a VM x86 has no attributes: ENOTTY. */
  KVM_SET_DEVICE_ATTR: {
    request: iow(0xe1, kvm_device_attr.size),
    fds: ['device', 'vcpu', 'vm'],
    arg: struct('in', kvm_device_attr),
  },
  KVM_GET_DEVICE_ATTR: {
    request: iow(0xe2, kvm_device_attr.size),
    fds: ['system', 'device', 'vcpu', 'vm'],
    arg: struct('in', kvm_device_attr),
  },
  KVM_HAS_DEVICE_ATTR: {
    request: iow(0xe3, kvm_device_attr.size),
    fds: ['system', 'device', 'vcpu', 'vm'],
    arg: struct('in', kvm_device_attr),
  },
  SEV_ISSUE_CMD: { request: iowr(0x00, sev_issue_cmd.size, SEV_IOC_TYPE), fds: ['sev'], arg: struct('inout', sev_issue_cmd) },
} as const satisfies Record<string, IoctlEntry>;

export type IoctlName = keyof typeof TABLE;

/** Every name gets its entry's number; this is where the compiler is told. */
const requestNumbers = <T extends Record<string, IoctlEntry>>(table: T): { readonly [Name in keyof T]: number } =>
  Object.fromEntries(Object.entries(table).map(([name, entry]) => [name, entry.request])) as { [Name in keyof T]: number };

/** Request numbers by name: `case IOCTL.KVM_RUN`. */
export const IOCTL: { readonly [Name in IoctlName]: number } = requestNumbers(TABLE);

/** The table of every ioctl. One request number may stand for two names: which it is, the file decides. */
export const IOCTLS: ReadonlyMap<string, IoctlEntry> = new Map(Object.entries(TABLE));

/** The ioctl that `request` is on a file of this kind; undefined: unknown there. */
export const ioctlName = (request: number, fd: IoctlFd): string | undefined => {
  for (const [name, entry] of IOCTLS) if (entry.request === request && entry.fds.includes(fd)) return name;
  return undefined;
};
