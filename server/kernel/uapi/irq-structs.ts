import { array, bytes, nested, s32, s64, struct, u8, u16, u32, u64 } from './struct.js';

/** Structures of KVM's user API for interrupt controllers and timers on x86. */

/** KVM_IRQ_LINE, KVM_IRQ_LINE_STATUS: `irq` comes back as the status of the line. */
export const kvm_irq_level = struct('kvm_irq_level', 8, {
  irq: u32(0),
  level: u32(4),
});

/** The answer of KVM_IRQ_LINE_STATUS in the same bytes. */
export const kvm_irq_level__status = struct('kvm_irq_level.status', 8, {
  status: s32(0),
});

/** State of one 8259. */
export const kvm_pic_state = struct('kvm_pic_state', 16, {
  last_irr: u8(0),
  irr: u8(1),
  imr: u8(2),
  isr: u8(3),
  priority_add: u8(4),
  irq_base: u8(5),
  read_reg_select: u8(6),
  poll: u8(7),
  special_mask: u8(8),
  init_state: u8(9),
  auto_eoi: u8(10),
  rotate_on_auto_eoi: u8(11),
  special_fully_nested_mode: u8(12),
  init4: u8(13),
  elcr: u8(14),
  elcr_mask: u8(15),
});

/** State of the IOAPIC; entries of the redirection table as the hardware's 64 bits. */
export const kvm_ioapic_state = struct('kvm_ioapic_state', 216, {
  base_address: u64(0),
  ioregsel: u32(8),
  id: u32(12),
  irr: u32(16),
  pad: u32(20),
  redirtbl: array(u64, 24, 24),
});

/** KVM_GET_IRQCHIP, KVM_SET_IRQCHIP: `chip` is a kvm_pic_state or a kvm_ioapic_state, by `chip_id`. */
export const kvm_irqchip = struct('kvm_irqchip', 520, {
  chip_id: u32(0),
  pad: u32(4),
  chip: bytes(8, 512),
});

/** KVM_CREATE_PIT2. */
export const kvm_pit_config = struct('kvm_pit_config', 64, {
  flags: u32(0),
});

export const kvm_pit_channel_state = struct('kvm_pit_channel_state', 24, {
  count: u32(0),
  latched_count: u16(4),
  count_latched: u8(6),
  status_latched: u8(7),
  status: u8(8),
  read_state: u8(9),
  write_state: u8(10),
  write_latch: u8(11),
  rw_mode: u8(12),
  mode: u8(13),
  bcd: u8(14),
  gate: u8(15),
  count_load_time: s64(16),
});

/** KVM_GET_PIT, KVM_SET_PIT. */
export const kvm_pit_state = struct('kvm_pit_state', 72, {
  channels: array((offset) => nested(kvm_pit_channel_state, offset), 0, 3),
});

/** KVM_GET_PIT2, KVM_SET_PIT2. */
export const kvm_pit_state2 = struct('kvm_pit_state2', 112, {
  channels: array((offset) => nested(kvm_pit_channel_state, offset), 0, 3),
  flags: u32(72),
});

/** KVM_REINJECT_CONTROL. */
export const kvm_reinject_control = struct('kvm_reinject_control', 32, {
  pit_reinject: u8(0),
});

/** KVM_SIGNAL_MSI. */
export const kvm_msi = struct('kvm_msi', 32, {
  address_lo: u32(0),
  address_hi: u32(4),
  data: u32(8),
  flags: u32(12),
  devid: u32(16),
});

export const kvm_irq_routing_irqchip = struct('kvm_irq_routing_irqchip', 8, {
  irqchip: u32(0),
  pin: u32(4),
});

export const kvm_irq_routing_msi = struct('kvm_irq_routing_msi', 16, {
  address_lo: u32(0),
  address_hi: u32(4),
  data: u32(8),
  devid: u32(12),
});

export const kvm_irq_routing_hv_sint = struct('kvm_irq_routing_hv_sint', 8, {
  vcpu: u32(0),
  sint: u32(4),
});

export const kvm_irq_routing_xen_evtchn = struct('kvm_irq_routing_xen_evtchn', 12, {
  port: u32(0),
  vcpu: u32(4),
  priority: u32(8),
});

/** One route; `u` is the structure that `type` says. */
export const kvm_irq_routing_entry = struct('kvm_irq_routing_entry', 48, {
  gsi: u32(0),
  type: u32(4),
  flags: u32(8),
  pad: u32(12),
  u: bytes(16, 32),
});

/** KVM_SET_GSI_ROUTING; `nr` kvm_irq_routing_entry follow. */
export const kvm_irq_routing = struct('kvm_irq_routing', 8, {
  nr: u32(0),
  flags: u32(4),
});
