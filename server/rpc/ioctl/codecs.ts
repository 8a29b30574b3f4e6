import { failed } from '../../kernel/failure.js';
import { KVM_IRQ_ROUTING, KVM_IRQCHIP } from '../../kernel/uapi/constants.js';
import {
  kvm_ioapic_state,
  kvm_irq_level,
  kvm_irq_level__status,
  kvm_irq_routing,
  kvm_irq_routing_entry,
  kvm_irq_routing_irqchip,
  kvm_irq_routing_msi,
  kvm_irqchip,
  kvm_pic_state,
} from '../../kernel/uapi/irq-structs.js';
import {
  kvm_clear_dirty_log,
  kvm_device_attr,
  kvm_dirty_log,
  kvm_irqfd,
  kvm_one_reg,
  kvm_signal_mask,
  kvm_userspace_memory_region2,
} from '../../kernel/uapi/kvm-structs.js';
import type { Fields, Struct } from '../../kernel/uapi/struct.js';
import {
  kvm_cpuid_entry2,
  kvm_cpuid2,
  kvm_guest_debug,
  kvm_msr_entry,
  kvm_msr_filter,
  kvm_msr_list,
  kvm_msrs,
  kvm_xcrs,
} from '../../kernel/uapi/x86-structs.js';
import { type ArgCodec, type EntryCodec, structArg, structEntry, u32Entry } from './arg-codec.js';
import { decodeStruct, encodeStruct, isMessage, type Message } from './struct-message.js';

/** The part of a message that a union of the structure holds: the first of `members` that is there. */
const unionMember = (message: Message, members: Readonly<Record<string, Struct<Fields>>>): [Struct<Fields>, Message] | null => {
  for (const [field, struct] of Object.entries(members)) {
    const value = message[field];
    if (isMessage(value)) return [struct, value];
  }
  return null;
};

const asBytes = (value: unknown): Uint8Array => (value instanceof Uint8Array ? value : new Uint8Array(0));

const ROUTE_TARGETS = { irqchip: kvm_irq_routing_irqchip, msi: kvm_irq_routing_msi };

const routingEntry: EntryCodec = {
  size: kvm_irq_routing_entry.size,
  encode: (item, path) => {
    const message = isMessage(item) ? item : {};
    const member = unionMember(message, ROUTE_TARGETS);
    const u = member === null ? asBytes(message.pad) : encodeStruct(member[0], member[1], path);
    return failed(u) ? u : encodeStruct(kvm_irq_routing_entry, { ...message, u }, path);
  },
  decode: (data, base) => {
    const { gsi, type, flags, u } = kvm_irq_routing_entry.decode(data, base);
    if (type === KVM_IRQ_ROUTING.IRQCHIP) return { gsi, type, flags, irqchip: decodeStruct(kvm_irq_routing_irqchip, u) };
    if (type === KVM_IRQ_ROUTING.MSI) return { gsi, type, flags, msi: decodeStruct(kvm_irq_routing_msi, u) };
    return { gsi, type, flags, pad: u };
  },
};

const irqchip: ArgCodec = {
  encode: (message, inline, path) => {
    const member = unionMember(message, { pic: kvm_pic_state, ioapic: kvm_ioapic_state });
    const chip = member === null ? asBytes(message.dummy) : encodeStruct(member[0], member[1], path);
    if (failed(chip)) return chip;
    const data = encodeStruct(kvm_irqchip, { ...message, chip }, path);
    return failed(data) ? data : inline.place(data);
  },
  decode: (argument, inline) => {
    const { chip_id, chip } = kvm_irqchip.decode(inline.contents(argument));
    if (chip_id === KVM_IRQCHIP.IOAPIC) return { chip_id, ioapic: decodeStruct(kvm_ioapic_state, chip) };
    return { chip_id, pic: decodeStruct(kvm_pic_state, chip) };
  },
};

/** KVM_X86_SET_MSR_FILTER: each range has a bitmap of its own. */
const msrFilter: ArgCodec = {
  encode: (message, inline, path) => {
    const ranges = Array.isArray(message.ranges) ? message.ranges : [];
    const pointed = ranges.map((range: unknown) => {
      if (!isMessage(range) || (range.bitmap !== null && range.bitmap !== undefined)) return range;
      const bitmap = asBytes(range.bitmap_bytes);
      return { ...range, bitmap: bitmap.length === 0 ? 0n : inline.place(bitmap.slice()) };
    });
    const data = encodeStruct(kvm_msr_filter, { ...message, ranges: pointed }, path);
    return failed(data) ? data : inline.place(data);
  },
  decode: (argument, inline) => decodeStruct(kvm_msr_filter, inline.contents(argument)),
};

/**
 * KVM_SET_SIGNAL_MASK: the set of signals follows the length. Without the message the argument is NULL, which takes the mask
 * away.
 */
const signalMask: ArgCodec = {
  absent: 0n,
  encode: (message, inline) => {
    const sigset = asBytes(message.sigset);
    const data = new Uint8Array(kvm_signal_mask.size + sigset.length);
    kvm_signal_mask.write(data, { len: typeof message.len === 'number' ? message.len : sigset.length });
    data.set(sigset, kvm_signal_mask.size);
    return inline.place(data);
  },
  decode: () => ({}),
};

/** KVM_GET_XCRS: how many there are is told by their number where the caller left it out. */
const xcrs: ArgCodec = {
  encode: (message, inline, path) => {
    const listed = Array.isArray(message.xcrs) ? message.xcrs.length : 0;
    const data = encodeStruct(kvm_xcrs, { ...message, nr_xcrs: message.nr_xcrs ?? listed }, path);
    return failed(data) ? data : inline.place(data);
  },
  decode: (argument, inline) => {
    const { nr_xcrs, flags, xcrs: all } = kvm_xcrs.decode(inline.contents(argument));
    return { nr_xcrs, flags, xcrs: all.slice(0, nr_xcrs).map(({ xcr, value }) => ({ xcr, value })) };
  },
};

/** KVM_SET_GUEST_DEBUG: the message has the architecture's part in a message of its own. */
const guestDebug: ArgCodec = {
  encode: (message, inline, path) => {
    const arch = isMessage(message.arch) ? message.arch : {};
    const data = encodeStruct(kvm_guest_debug, { control: message.control, debugreg: arch.debugreg }, path);
    return failed(data) ? data : inline.place(data);
  },
  decode: (argument, inline) => decodeStruct(kvm_guest_debug, inline.contents(argument)),
};

/** Structures whose message needs more than a name for each member. Every other is `structArg(struct)`. */
const SPECIAL = new Map<Struct<Fields>, ArgCodec>([
  [kvm_dirty_log, structArg(kvm_dirty_log, { pointers: [{ member: 'dirty_bitmap' }] })],
  [kvm_clear_dirty_log, structArg(kvm_clear_dirty_log, { pointers: [{ member: 'dirty_bitmap' }] })],
  [kvm_device_attr, structArg(kvm_device_attr, { pointers: [{ member: 'addr' }] })],
  [kvm_one_reg, structArg(kvm_one_reg, { pointers: [{ member: 'addr' }] })],
  [kvm_userspace_memory_region2, structArg(kvm_userspace_memory_region2, { descriptors: ['guest_memfd'] })],
  [kvm_irqfd, structArg(kvm_irqfd, { descriptors: ['resamplefd'] })],
  [kvm_irq_level, structArg(kvm_irq_level, { answer: kvm_irq_level__status })],
  [kvm_msr_list, structArg(kvm_msr_list, { tail: { field: 'indices', count: 'nmsrs', entry: u32Entry } })],
  [kvm_msrs, structArg(kvm_msrs, { tail: { field: 'entries', count: 'nmsrs', entry: structEntry(kvm_msr_entry) } })],
  [kvm_cpuid2, structArg(kvm_cpuid2, { tail: { field: 'entries', count: 'nent', entry: structEntry(kvm_cpuid_entry2) } })],
  [kvm_irq_routing, structArg(kvm_irq_routing, { tail: { field: 'entries', count: 'nr', entry: routingEntry } })],
  [kvm_irqchip, irqchip],
  [kvm_msr_filter, msrFilter],
  [kvm_signal_mask, signalMask],
  [kvm_xcrs, xcrs],
  [kvm_guest_debug, guestDebug],
]);

/** The codec of a structure's message. */
export const codecOf = (struct: Struct<Fields>): ArgCodec => SPECIAL.get(struct) ?? structArg(struct);
