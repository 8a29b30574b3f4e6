import { array, bytes, s16, s32, struct, u8, u16, u32, u64 } from './struct.js';

/** Structures of KVM's user API that belong to no architecture (include/uapi/linux/kvm.h). */

/** KVM_SET_USER_MEMORY_REGION. `slot`: bits 31:16 address space, bits 15:0 slot id. */
export const kvm_userspace_memory_region = struct('kvm_userspace_memory_region', 32, {
  slot: u32(0),
  flags: u32(4),
  guest_phys_addr: u64(8),
  memory_size: u64(16),
  userspace_addr: u64(24),
});

/** KVM_SET_USER_MEMORY_REGION2. */
export const kvm_userspace_memory_region2 = struct('kvm_userspace_memory_region2', 160, {
  slot: u32(0),
  flags: u32(4),
  guest_phys_addr: u64(8),
  memory_size: u64(16),
  userspace_addr: u64(24),
  guest_memfd_offset: u64(32),
  guest_memfd: u32(40),
});

/** KVM_CREATE_GUEST_MEMFD. `size` in bytes. */
export const kvm_create_guest_memfd = struct('kvm_create_guest_memfd', 64, {
  size: u64(0),
  flags: u64(8),
});

/** KVM_SET_MEMORY_ATTRIBUTES. `address` and `size` in bytes. */
export const kvm_memory_attributes = struct('kvm_memory_attributes', 32, {
  address: u64(0),
  size: u64(8),
  attributes: u64(16),
  flags: u64(24),
});

/** KVM_PRE_FAULT_MEMORY; what is left to do is written back. */
export const kvm_pre_fault_memory = struct('kvm_pre_fault_memory', 64, {
  gpa: u64(0),
  size: u64(8),
  flags: u64(16),
});

/** KVM_ENABLE_CAP. */
export const kvm_enable_cap = struct('kvm_enable_cap', 104, {
  cap: u32(0),
  flags: u32(4),
  args: array(u64, 8, 4),
});

/** KVM_GET_DIRTY_LOG. `dirty_bitmap`: user address of one bit a page, in words of 64. */
export const kvm_dirty_log = struct('kvm_dirty_log', 16, {
  slot: u32(0),
  dirty_bitmap: u64(8),
});

/** KVM_CLEAR_DIRTY_LOG. */
export const kvm_clear_dirty_log = struct('kvm_clear_dirty_log', 24, {
  slot: u32(0),
  num_pages: u32(4),
  first_page: u64(8),
  dirty_bitmap: u64(16),
});

/** Entry of a vCPU's dirty ring; `slot` as in kvm_userspace_memory_region, `offset` in pages from the slot's start. */
export const kvm_dirty_gfn = struct('kvm_dirty_gfn', 16, {
  flags: u32(0),
  slot: u32(4),
  offset: u64(8),
});

/** KVM_IOEVENTFD. */
export const kvm_ioeventfd = struct('kvm_ioeventfd', 64, {
  datamatch: u64(0),
  addr: u64(8),
  len: u32(16),
  fd: s32(20),
  flags: u32(24),
});

/** KVM_IRQFD. */
export const kvm_irqfd = struct('kvm_irqfd', 32, {
  fd: u32(0),
  gsi: u32(4),
  flags: u32(8),
  resamplefd: u32(12),
});

/** KVM_REGISTER_COALESCED_MMIO and KVM_UNREGISTER_COALESCED_MMIO. */
export const kvm_coalesced_mmio_zone = struct('kvm_coalesced_mmio_zone', 16, {
  addr: u64(0),
  size: u32(8),
  pio: u32(12),
});

/** Entry of the ring of coalesced writes. */
export const kvm_coalesced_mmio = struct('kvm_coalesced_mmio', 24, {
  phys_addr: u64(0),
  len: u32(8),
  pio: u32(12),
  data: bytes(16, 8),
});

/** Head of that ring: indices of the next entry to read and to write. */
export const kvm_coalesced_mmio_ring = struct('kvm_coalesced_mmio_ring', 8, {
  first: u32(0),
  last: u32(4),
});

/** KVM_CREATE_DEVICE; `fd` is written. */
export const kvm_create_device = struct('kvm_create_device', 12, {
  type: u32(0),
  fd: u32(4),
  flags: u32(8),
});

/** KVM_SET_DEVICE_ATTR, KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR. `addr`: user address of the attribute's value. */
export const kvm_device_attr = struct('kvm_device_attr', 24, {
  flags: u32(0),
  group: u32(4),
  attr: u64(8),
  addr: u64(16),
});

/** KVM_MEMORY_ENCRYPT_REG_REGION and UNREG_REGION. */
export const kvm_enc_region = struct('kvm_enc_region', 16, {
  addr: u64(0),
  size: u64(8),
});

/** KVM_GET_MP_STATE, KVM_SET_MP_STATE. */
export const kvm_mp_state = struct('kvm_mp_state', 4, {
  mp_state: u32(0),
});

/** KVM_SET_SIGNAL_MASK; `len` bytes of signal set follow. */
export const kvm_signal_mask = struct('kvm_signal_mask', 4, {
  len: u32(0),
});

/** KVM_TRANSLATE. */
export const kvm_translation = struct('kvm_translation', 24, {
  linear_address: u64(0),
  physical_address: u64(8),
  valid: u8(16),
  writeable: u8(17),
  usermode: u8(18),
});

/** KVM_INTERRUPT. */
export const kvm_interrupt = struct('kvm_interrupt', 4, {
  irq: u32(0),
});

/** KVM_GET_ONE_REG, KVM_SET_ONE_REG. */
export const kvm_one_reg = struct('kvm_one_reg', 16, {
  id: u64(0),
  addr: u64(8),
});

/** KVM_GET_REG_LIST; `n` register ids follow. */
export const kvm_reg_list = struct('kvm_reg_list', 8, {
  n: u64(0),
});

/** KVM_TPR_ACCESS_REPORTING. */
export const kvm_tpr_access_ctl = struct('kvm_tpr_access_ctl', 40, {
  enabled: u32(0),
  flags: u32(4),
});

/** KVM_SET_VAPIC_ADDR. */
export const kvm_vapic_addr = struct('kvm_vapic_addr', 8, {
  vapic_addr: u64(0),
});

/** Head of a stats file. Offsets in bytes from the start of the file. */
export const kvm_stats_header = struct('kvm_stats_header', 24, {
  flags: u32(0),
  name_size: u32(4),
  num_desc: u32(8),
  id_offset: u32(12),
  desc_offset: u32(16),
  data_offset: u32(20),
});

/** One statistic of a stats file; `name_size` bytes of name follow. `offset` in bytes within the data block. */
export const kvm_stats_desc = struct('kvm_stats_desc', 16, {
  flags: u32(0),
  exponent: s16(4),
  size: u16(6),
  offset: u32(8),
  bucket_size: u32(12),
});
