import { array, bytes, nested, s32, struct, u8, u16, u32, u64 } from './struct.js';

/** Structures of KVM's user API on x86: the state of a vCPU (arch/x86/include/uapi/asm/kvm.h). */

/** KVM_GET_REGS, KVM_SET_REGS. */
export const kvm_regs = struct('kvm_regs', 144, {
  rax: u64(0),
  rbx: u64(8),
  rcx: u64(16),
  rdx: u64(24),
  rsi: u64(32),
  rdi: u64(40),
  rsp: u64(48),
  rbp: u64(56),
  r8: u64(64),
  r9: u64(72),
  r10: u64(80),
  r11: u64(88),
  r12: u64(96),
  r13: u64(104),
  r14: u64(112),
  r15: u64(120),
  rip: u64(128),
  rflags: u64(136),
});

export const kvm_segment = struct('kvm_segment', 24, {
  base: u64(0),
  limit: u32(8),
  selector: u16(12),
  type: u8(14),
  present: u8(15),
  dpl: u8(16),
  db: u8(17),
  s: u8(18),
  l: u8(19),
  g: u8(20),
  avl: u8(21),
  unusable: u8(22),
  padding: u8(23),
});

export const kvm_dtable = struct('kvm_dtable', 16, {
  base: u64(0),
  limit: u16(8),
});

/** KVM_GET_SREGS, KVM_SET_SREGS. `interrupt_bitmap`: one bit for each of 256 vectors. */
export const kvm_sregs = struct('kvm_sregs', 312, {
  cs: nested(kvm_segment, 0),
  ds: nested(kvm_segment, 24),
  es: nested(kvm_segment, 48),
  fs: nested(kvm_segment, 72),
  gs: nested(kvm_segment, 96),
  ss: nested(kvm_segment, 120),
  tr: nested(kvm_segment, 144),
  ldt: nested(kvm_segment, 168),
  gdt: nested(kvm_dtable, 192),
  idt: nested(kvm_dtable, 208),
  cr0: u64(224),
  cr2: u64(232),
  cr3: u64(240),
  cr4: u64(248),
  cr8: u64(256),
  efer: u64(264),
  apic_base: u64(272),
  interrupt_bitmap: array(u64, 280, 4),
});

/** KVM_GET_SREGS2, KVM_SET_SREGS2. */
export const kvm_sregs2 = struct('kvm_sregs2', 320, {
  cs: nested(kvm_segment, 0),
  ds: nested(kvm_segment, 24),
  es: nested(kvm_segment, 48),
  fs: nested(kvm_segment, 72),
  gs: nested(kvm_segment, 96),
  ss: nested(kvm_segment, 120),
  tr: nested(kvm_segment, 144),
  ldt: nested(kvm_segment, 168),
  gdt: nested(kvm_dtable, 192),
  idt: nested(kvm_dtable, 208),
  cr0: u64(224),
  cr2: u64(232),
  cr3: u64(240),
  cr4: u64(248),
  cr8: u64(256),
  efer: u64(264),
  apic_base: u64(272),
  flags: u64(280),
  pdptrs: array(u64, 288, 4),
});

/** KVM_GET_FPU, KVM_SET_FPU: eight x87 and sixteen SSE registers of 16 bytes. */
export const kvm_fpu = struct('kvm_fpu', 416, {
  fpr: bytes(0, 128),
  fcw: u16(128),
  fsw: u16(130),
  ftwx: u8(132),
  pad1: u8(133),
  last_opcode: u16(134),
  last_ip: u64(136),
  last_dp: u64(144),
  xmm: bytes(152, 256),
  mxcsr: u32(408),
  pad2: u32(412),
});

/** KVM_GET_MSRS, KVM_SET_MSRS; `nmsrs` kvm_msr_entry follow. */
export const kvm_msrs = struct('kvm_msrs', 8, {
  nmsrs: u32(0),
});

export const kvm_msr_entry = struct('kvm_msr_entry', 16, {
  index: u32(0),
  reserved: u32(4),
  data: u64(8),
});

/** KVM_GET_MSR_INDEX_LIST, KVM_GET_MSR_FEATURE_INDEX_LIST; `nmsrs` indices of 32 bits follow. */
export const kvm_msr_list = struct('kvm_msr_list', 4, {
  nmsrs: u32(0),
});

/** `bitmap`: user address; a bit that is set allows what `flags` names. */
export const kvm_msr_filter_range = struct('kvm_msr_filter_range', 24, {
  flags: u32(0),
  nmsrs: u32(4),
  base: u32(8),
  bitmap: u64(16),
});

/** KVM_X86_SET_MSR_FILTER. */
export const kvm_msr_filter = struct('kvm_msr_filter', 392, {
  flags: u32(0),
  ranges: array((offset) => nested(kvm_msr_filter_range, offset), 8, 16),
});

/** KVM_SET_CPUID2, KVM_GET_CPUID2, KVM_GET_SUPPORTED_CPUID, KVM_GET_EMULATED_CPUID; `nent` kvm_cpuid_entry2 follow. */
export const kvm_cpuid2 = struct('kvm_cpuid2', 8, {
  nent: u32(0),
});

export const kvm_cpuid_entry2 = struct('kvm_cpuid_entry2', 40, {
  function: u32(0),
  index: u32(4),
  flags: u32(8),
  eax: u32(12),
  ebx: u32(16),
  ecx: u32(20),
  edx: u32(24),
});

/** KVM_SET_CPUID, the form without indices; `nent` kvm_cpuid_entry follow. */
export const kvm_cpuid = struct('kvm_cpuid', 8, {
  nent: u32(0),
});

export const kvm_cpuid_entry = struct('kvm_cpuid_entry', 24, {
  function: u32(0),
  eax: u32(4),
  ebx: u32(8),
  ecx: u32(12),
  edx: u32(16),
});

/** KVM_GET_LAPIC, KVM_SET_LAPIC: the register page's first KiB, one register every 16 bytes. */
export const kvm_lapic_state = struct('kvm_lapic_state', 1024, {
  regs: bytes(0, 1024),
});

export const kvm_vcpu_events__exception = struct('kvm_vcpu_events.exception', 8, {
  injected: u8(0),
  nr: u8(1),
  has_error_code: u8(2),
  pending: u8(3),
  error_code: u32(4),
});

export const kvm_vcpu_events__interrupt = struct('kvm_vcpu_events.interrupt', 4, {
  injected: u8(0),
  nr: u8(1),
  soft: u8(2),
  shadow: u8(3),
});

export const kvm_vcpu_events__nmi = struct('kvm_vcpu_events.nmi', 4, {
  injected: u8(0),
  pending: u8(1),
  masked: u8(2),
});

export const kvm_vcpu_events__smi = struct('kvm_vcpu_events.smi', 4, {
  smm: u8(0),
  pending: u8(1),
  smm_inside_nmi: u8(2),
  latched_init: u8(3),
});

export const kvm_vcpu_events__triple_fault = struct('kvm_vcpu_events.triple_fault', 1, {
  pending: u8(0),
});

/** KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS. */
export const kvm_vcpu_events = struct('kvm_vcpu_events', 64, {
  exception: nested(kvm_vcpu_events__exception, 0),
  interrupt: nested(kvm_vcpu_events__interrupt, 8),
  nmi: nested(kvm_vcpu_events__nmi, 12),
  sipi_vector: u32(16),
  flags: u32(20),
  smi: nested(kvm_vcpu_events__smi, 24),
  triple_fault: nested(kvm_vcpu_events__triple_fault, 28),
  exception_has_payload: u8(55),
  exception_payload: u64(56),
});

/** KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS. */
export const kvm_debugregs = struct('kvm_debugregs', 128, {
  db: array(u64, 0, 4),
  dr6: u64(32),
  dr7: u64(40),
  flags: u64(48),
});

/** KVM_SET_GUEST_DEBUG. */
export const kvm_guest_debug = struct('kvm_guest_debug', 72, {
  control: u32(0),
  pad: u32(4),
  debugreg: array(u64, 8, 8),
});

/** KVM_GET_XSAVE, KVM_GET_XSAVE2, KVM_SET_XSAVE: the XSAVE area in the host's standard format. */
export const kvm_xsave = struct('kvm_xsave', 4096, {
  region: bytes(0, 4096),
});

export const kvm_xcr = struct('kvm_xcr', 16, {
  xcr: u32(0),
  reserved: u32(4),
  value: u64(8),
});

/** KVM_GET_XCRS, KVM_SET_XCRS. */
export const kvm_xcrs = struct('kvm_xcrs', 392, {
  nr_xcrs: u32(0),
  flags: u32(4),
  xcrs: array((offset) => nested(kvm_xcr, offset), 8, 16),
});

/** KVM_GET_CLOCK, KVM_SET_CLOCK: nanoseconds. */
export const kvm_clock_data = struct('kvm_clock_data', 48, {
  clock: u64(0),
  flags: u32(8),
  realtime: u64(16),
  host_tsc: u64(24),
});

/** KVM_X86_SET_MCE. */
export const kvm_x86_mce = struct('kvm_x86_mce', 64, {
  status: u64(0),
  addr: u64(8),
  misc: u64(16),
  mcg_status: u64(24),
  bank: u8(32),
});

/** KVM_GET_NESTED_STATE, KVM_SET_NESTED_STATE: the header; `size` bytes in all. */
export const kvm_nested_state = struct('kvm_nested_state', 128, {
  flags: u16(0),
  format: u16(2),
  size: u32(4),
});

/** KVM_SET_PMU_EVENT_FILTER; `nevents` events of 64 bits follow. */
export const kvm_pmu_event_filter = struct('kvm_pmu_event_filter', 32, {
  action: u32(0),
  nevents: u32(4),
  fixed_counter_bitmap: u32(8),
  flags: u32(12),
});

/** KVM_XEN_HVM_CONFIG. */
export const kvm_xen_hvm_config = struct('kvm_xen_hvm_config', 56, {
  flags: u32(0),
  msr: u32(4),
  blob_addr_32: u64(8),
  blob_addr_64: u64(16),
  blob_size_32: u8(24),
  blob_size_64: u8(25),
});

/** KVM_XEN_HVM_GET_ATTR, KVM_XEN_HVM_SET_ATTR, and the same of a vCPU: the value follows the type. */
export const kvm_xen_attr = struct('kvm_xen_attr', 72, {
  type: u16(0),
  value: bytes(8, 64),
});

/** KVM_HYPERV_EVENTFD. */
export const kvm_hyperv_eventfd = struct('kvm_hyperv_eventfd', 24, {
  conn_id: u32(0),
  fd: s32(4),
  flags: u32(8),
});
