import { array, bytes, nested, struct, u8, u16, u32, u64 } from './struct.js';
import { kvm_regs, kvm_sregs, kvm_vcpu_events } from './x86-structs.js';

/**
 * The page that userspace and KVM_RUN share. What an exit says lies in a union at offset 32; each member is a structure
 * of its own here, with offsets from the start of kvm_run like all others. A write touches only the member's fields.
 */

/** Offset of `kvm_run.s.regs`. */
export const KVM_RUN_SYNC_REGS_OFFSET = 304;

/** `struct kvm_run`, page 0 of the vCPU file, without the data of the exit. */
export const kvm_run = struct('kvm_run', 2352, {
  request_interrupt_window: u8(0),
  immediate_exit: u8(1),
  exit_reason: u32(8),
  ready_for_interrupt_injection: u8(12),
  if_flag: u8(13),
  flags: u16(14),
  cr8: u64(16),
  apic_base: u64(24),
  kvm_valid_regs: u64(288),
  kvm_dirty_regs: u64(296),
});

/** KVM_EXIT_UNKNOWN. */
export const kvm_run__hw = struct('kvm_run.hw', 288, {
  hardware_exit_reason: u64(32),
});

/** KVM_EXIT_FAIL_ENTRY. */
export const kvm_run__fail_entry = struct('kvm_run.fail_entry', 288, {
  hardware_entry_failure_reason: u64(32),
  cpu: u32(40),
});

/** KVM_EXIT_EXCEPTION. */
export const kvm_run__ex = struct('kvm_run.ex', 288, {
  exception: u32(32),
  error_code: u32(36),
});

/** KVM_EXIT_IO. `data_offset`: from the start of kvm_run. */
export const kvm_run__io = struct('kvm_run.io', 288, {
  direction: u8(32),
  size: u8(33),
  port: u16(34),
  count: u32(36),
  data_offset: u64(40),
});

/** KVM_EXIT_DEBUG. */
export const kvm_run__debug = struct('kvm_run.debug', 288, {
  exception: u32(32),
  pc: u64(40),
  dr6: u64(48),
  dr7: u64(56),
});

/** KVM_EXIT_MMIO. */
export const kvm_run__mmio = struct('kvm_run.mmio', 288, {
  phys_addr: u64(32),
  data: bytes(40, 8),
  len: u32(48),
  is_write: u8(52),
});

/** KVM_EXIT_HYPERCALL. */
export const kvm_run__hypercall = struct('kvm_run.hypercall', 288, {
  nr: u64(32),
  args: array(u64, 40, 6),
  ret: u64(88),
  flags: u64(96),
});

/** KVM_EXIT_TPR_ACCESS. */
export const kvm_run__tpr_access = struct('kvm_run.tpr_access', 288, {
  rip: u64(32),
  is_write: u32(40),
});

/** KVM_EXIT_INTERNAL_ERROR. */
export const kvm_run__internal = struct('kvm_run.internal', 288, {
  suberror: u32(32),
  ndata: u32(36),
  data: array(u64, 40, 16),
});

/** KVM_EXIT_INTERNAL_ERROR with suberror EMULATION; debug data of `ndata` words in all may follow. */
export const kvm_run__emulation_failure = struct('kvm_run.emulation_failure', 288, {
  suberror: u32(32),
  ndata: u32(36),
  flags: u64(40),
  insn_size: u8(48),
  insn_bytes: bytes(49, 15),
});

/** KVM_EXIT_SYSTEM_EVENT. */
export const kvm_run__system_event = struct('kvm_run.system_event', 288, {
  type: u32(32),
  ndata: u32(36),
  data: array(u64, 40, 16),
});

/** KVM_EXIT_IOAPIC_EOI. */
export const kvm_run__eoi = struct('kvm_run.eoi', 288, {
  vector: u8(32),
});

/** KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR. `error` is the answer. */
export const kvm_run__msr = struct('kvm_run.msr', 288, {
  error: u8(32),
  reason: u32(40),
  index: u32(44),
  data: u64(48),
});

/** KVM_EXIT_NOTIFY. */
export const kvm_run__notify = struct('kvm_run.notify', 288, {
  flags: u32(32),
});

/** KVM_EXIT_MEMORY_FAULT. */
export const kvm_run__memory_fault = struct('kvm_run.memory_fault', 288, {
  flags: u64(32),
  gpa: u64(40),
  size: u64(48),
});

/** KVM_EXIT_SNP_REQ_CERTS. `ret` is the answer: 0, or ENOSPC (with the `npages` needed), EAGAIN, EIO. Field widths [M]. */
export const kvm_run__snp_req_certs = struct('kvm_run.snp_req_certs', 288, {
  gpa: u64(32),
  npages: u64(40),
  ret: u64(48),
});

/** `kvm_run.s.regs`: what kvm_valid_regs and kvm_dirty_regs name. */
export const kvm_sync_regs = struct('kvm_sync_regs', 520, {
  regs: nested(kvm_regs, 0),
  sregs: nested(kvm_sregs, 144),
  events: nested(kvm_vcpu_events, 456),
});
