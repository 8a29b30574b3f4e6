/**
 * Constants of KVM's user API (include/uapi/linux/kvm.h, arch/x86/include/uapi/asm/kvm.h) with the kernel's values. A
 * group is named after the prefix that its constants share: `KVM_EXIT.IO` is KVM_EXIT_IO.
 */

export const KVM_API_VERSION = 12;

/** Pages of the vCPU file: `kvm_run`, PIO data, ring of coalesced MMIO, and from 64 on the dirty ring. */
export const KVM_PAGE_OFFSET = { RUN: 0, PIO: 1, COALESCED_MMIO: 2, DIRTY_LOG: 64 } as const;
/** KVM_GET_VCPU_MMAP_SIZE on x86: the first three of those pages. */
export const KVM_VCPU_MMAP_SIZE = 3 * 4096;

/** `kvm_run.exit_reason`. */
export const KVM_EXIT = {
  UNKNOWN: 0,
  EXCEPTION: 1,
  IO: 2,
  HYPERCALL: 3,
  DEBUG: 4,
  HLT: 5,
  MMIO: 6,
  IRQ_WINDOW_OPEN: 7,
  SHUTDOWN: 8,
  FAIL_ENTRY: 9,
  INTR: 10,
  SET_TPR: 11,
  TPR_ACCESS: 12,
  NMI: 16,
  INTERNAL_ERROR: 17,
  SYSTEM_EVENT: 24,
  IOAPIC_EOI: 26,
  HYPERV: 27,
  X86_RDMSR: 29,
  X86_WRMSR: 30,
  DIRTY_RING_FULL: 31,
  AP_RESET_HOLD: 32,
  X86_BUS_LOCK: 33,
  XEN: 34,
  NOTIFY: 37,
  MEMORY_FAULT: 39,
  TDX: 40,
  SNP_REQ_CERTS: 43,
} as const;
export type KvmExitReason = (typeof KVM_EXIT)[keyof typeof KVM_EXIT];

/** `kvm_run.io.direction`. */
export const KVM_EXIT_IO = { IN: 0, OUT: 1 } as const;

/** `kvm_run.internal.suberror`. */
export const KVM_INTERNAL_ERROR = { EMULATION: 1, SIMUL_EX: 2, DELIVERY_EV: 3, UNEXPECTED_EXIT_REASON: 4 } as const;
/** `kvm_run.emulation_failure.flags`. */
export const KVM_INTERNAL_ERROR_EMULATION_FLAG = { INSTRUCTION_BYTES: 1 } as const;

/** `kvm_run.system_event.type`. */
export const KVM_SYSTEM_EVENT = { SHUTDOWN: 1, RESET: 2, CRASH: 3, WAKEUP: 4, SUSPEND: 5, SEV_TERM: 6 } as const;

/** `kvm_run.memory_fault.flags`. */
export const KVM_MEMORY_EXIT_FLAG = { PRIVATE: 1 << 3 } as const;

/** `kvm_run.msr.reason`, and the argument of KVM_CAP_X86_USER_SPACE_MSR. */
export const KVM_MSR_EXIT_REASON = { INVAL: 1, UNKNOWN: 2, FILTER: 4 } as const;

/** `kvm_run.hypercall.nr` that can come to userspace, and its flags. */
export const KVM_HC = { MAP_GPA_RANGE: 12 } as const;
/** Attributes of KVM_HC_MAP_GPA_RANGE: page size in bits 3:0, and whether the range becomes private. */
export const KVM_MAP_GPA_RANGE = { PAGE_SZ_4K: 0n, PAGE_SZ_2M: 1n, ENCRYPTED: 16n, DECRYPTED: 0n } as const;
export const KVM_EXIT_HYPERCALL_FLAG = { LONG_MODE: 1 } as const;

/** `kvm_run.kvm_valid_regs` and `kvm_dirty_regs`. */
export const KVM_SYNC_X86 = { REGS: 1, SREGS: 2, EVENTS: 4 } as const;
export const KVM_SYNC_X86_VALID_FIELDS = 7;

/** `kvm_userspace_memory_region.flags`. */
export const KVM_MEM = { LOG_DIRTY_PAGES: 1, READONLY: 2, GUEST_MEMFD: 4 } as const;
/** `kvm_memory_attributes.attributes`. */
export const KVM_MEMORY_ATTRIBUTE = { PRIVATE: 1 << 3 } as const;
/** `kvm_create_guest_memfd.flags`. */
export const GUEST_MEMFD_FLAG = { MMAP: 1, INIT_SHARED: 2 } as const;

/** `kvm_ioeventfd.flags`. VIRTIO_CCW_NOTIFY is s390's, and accepted everywhere, as is the kernel's own FAST_MMIO (bit 4). */
export const KVM_IOEVENTFD_FLAG = { DATAMATCH: 1, PIO: 2, DEASSIGN: 4, VIRTIO_CCW_NOTIFY: 8, FAST_MMIO: 16 } as const;
/** `kvm_irqfd.flags`. */
export const KVM_IRQFD_FLAG = { DEASSIGN: 1, RESAMPLE: 2 } as const;
/** `kvm_msi.flags`. */
export const KVM_MSI_FLAG = { VALID_DEVID: 1 } as const;
/** `kvm_irq_routing_entry.type`. */
export const KVM_IRQ_ROUTING = { IRQCHIP: 1, MSI: 2, S390_ADAPTER: 3, HV_SINT: 4, XEN_EVTCHN: 5 } as const;
/** `kvm_irqchip.chip_id`. */
export const KVM_IRQCHIP = { PIC_MASTER: 0, PIC_SLAVE: 1, IOAPIC: 2 } as const;
/** Pins of the in-kernel IOAPIC. */
export const KVM_IOAPIC_NUM_PINS = 24;
/** `kvm_pit_config.flags`. */
export const KVM_PIT = { SPEAKER_DUMMY: 1 } as const;
/** `kvm_pit_state2.flags`. */
export const KVM_PIT_FLAGS = { HPET_LEGACY: 1, SPEAKER_DATA_ON: 2 } as const;

/** `kvm_mp_state.mp_state`, as far as x86 has them. */
export const KVM_MP_STATE = {
  RUNNABLE: 0,
  UNINITIALIZED: 1,
  INIT_RECEIVED: 2,
  HALTED: 3,
  SIPI_RECEIVED: 4,
  AP_RESET_HOLD: 9,
} as const;
export type KvmMpState = (typeof KVM_MP_STATE)[keyof typeof KVM_MP_STATE];

/** `kvm_vcpu_events.flags`: which fields KVM_SET_VCPU_EVENTS shall look at. */
export const KVM_VCPUEVENT_VALID = {
  NMI_PENDING: 0x01,
  SIPI_VECTOR: 0x02,
  SHADOW: 0x04,
  SMM: 0x08,
  PAYLOAD: 0x10,
  TRIPLE_FAULT: 0x20,
} as const;
/** `kvm_vcpu_events.interrupt.shadow`. */
export const KVM_X86_SHADOW_INT = { MOV_SS: 1, STI: 2 } as const;

/** `kvm_guest_debug.control`. */
export const KVM_GUESTDBG = {
  ENABLE: 0x0000_0001,
  SINGLESTEP: 0x0000_0002,
  USE_SW_BP: 0x0001_0000,
  USE_HW_BP: 0x0002_0000,
  INJECT_DB: 0x0004_0000,
  INJECT_BP: 0x0008_0000,
  BLOCKIRQ: 0x0010_0000,
} as const;

/** `kvm_cpuid_entry2.flags`; the misspelling is the kernel's. */
export const KVM_CPUID_FLAG = { SIGNIFCANT_INDEX: 1, STATEFUL_FUNC: 2, STATE_READ_NEXT: 4 } as const;
/** `kvm_sregs2.flags`. */
export const KVM_SREGS2_FLAGS = { PDPTRS_VALID: 1 } as const;
/** `kvm_clock_data.flags`. */
export const KVM_CLOCK = { TSC_STABLE: 2, REALTIME: 4, HOST_TSC: 8 } as const;

/** `kvm_msr_filter.flags`. */
export const KVM_MSR_FILTER_DEFAULT = { ALLOW: 0, DENY: 1 } as const;
/** `kvm_msr_filter_range.flags`. */
export const KVM_MSR_FILTER = { READ: 1, WRITE: 2 } as const;
/** Bytes of one range's bitmap at most. */
export const KVM_MSR_FILTER_MAX_BITMAP_SIZE = 0x600;

/** KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2's argument. */
export const KVM_DIRTY_LOG = { MANUAL_PROTECT_ENABLE: 1, INITIALLY_SET: 2 } as const;
/** `kvm_dirty_gfn.flags`. */
export const KVM_DIRTY_GFN_F = { DIRTY: 1, RESET: 2 } as const;

/** KVM_CAP_DISABLE_QUIRKS(2)'s argument. */
export const KVM_X86_QUIRK = {
  LINT0_REENABLED: 1 << 0,
  CD_NW_CLEARED: 1 << 1,
  LAPIC_MMIO_HOLE: 1 << 2,
  OUT_7E_INC_RIP: 1 << 3,
  MISC_ENABLE_NO_MWAIT: 1 << 4,
  FIX_HYPERCALL_INSN: 1 << 5,
  MWAIT_NEVER_UD_FAULTS: 1 << 6,
  SLOT_ZAP_ALL: 1 << 7,
  STUFF_FEATURE_MSRS: 1 << 8,
  IGNORE_GUEST_PAT: 1 << 9,
} as const;
/** KVM_CAP_X86_DISABLE_EXITS' argument. */
export const KVM_X86_DISABLE_EXITS = { MWAIT: 1, HLT: 2, PAUSE: 4, CSTATE: 8, APERFMPERF: 16 } as const;
/** KVM_CAP_X2APIC_API's argument. */
export const KVM_X2APIC_API = { USE_32BIT_IDS: 1, DISABLE_BROADCAST_QUIRK: 2 } as const;

/** `kvm_create_device.flags`. */
export const KVM_CREATE_DEVICE_TEST = 1;
/** `kvm_create_device.type`. */
export const KVM_DEV_TYPE = { VFIO: 4 } as const;
/** Attribute groups and attributes of a kvm-vfio device. */
export const KVM_DEV_VFIO_FILE = 1;
export const KVM_DEV_VFIO_FILE_ATTR = { ADD: 1, DEL: 2 } as const;
/** Attribute groups of `/dev/kvm`. */
export const KVM_X86_GRP = { SYSTEM: 0, SEV: 1 } as const;
/** Attributes of group 0. */
export const KVM_X86_XCOMP_GUEST_SUPP = 0;
/** Attributes of group KVM_X86_GRP.SEV. */
export const KVM_X86_SEV = { VMSA_FEATURES: 0, SNP_POLICY_BITS: 1, SNP_REQ_CERTS: 2 } as const;
/** Attribute group and attribute of a vCPU. */
export const KVM_VCPU_TSC_CTRL = 0;
export const KVM_VCPU_TSC_OFFSET = 0;

/** `kvm_stats_desc.flags`: type in bits 0-3, unit in bits 4-7, base in bits 8-11. */
export const KVM_STATS_TYPE = { CUMULATIVE: 0, INSTANT: 1, PEAK: 2, LINEAR_HIST: 3, LOG_HIST: 4 } as const;
export const KVM_STATS_UNIT = { NONE: 0x00, BYTES: 0x10, SECONDS: 0x20, CYCLES: 0x30, BOOLEAN: 0x40 } as const;
export const KVM_STATS_BASE = { POW10: 0x000, POW2: 0x100 } as const;
