import { IOCTL } from '../../../server/kernel/uapi/ioctls.js';
import type { Fields, Struct, StructValue } from '../../../server/kernel/uapi/struct.js';
import { kvm_regs, kvm_segment, kvm_sregs, kvm_sregs2 } from '../../../server/kernel/uapi/x86-structs.js';
import type { Json } from '../json.js';
import { type OpArgs, toHex, toU64 } from '../op-args.js';
import { finish, hex, type Operation, type OpResult } from '../operation.js';
import { ioctlIn, ioctlInOut } from './ioctl.js';

type Regs = StructValue<typeof kvm_regs>;

/** The general registers that the op asks for. */
export const showRegs = (regs: Regs, args: OpArgs): OpResult => ({
  regs: Object.fromEntries(
    Object.entries(regs)
      .filter(([name]) => args.wants(name))
      .map(([name, value]): [string, Json] => [name, hex(value)]),
  ),
});

/** Overwrites fields of a structure that hold integers, by name; names that it does not have are passed over. */
export const setFields = <F extends Fields>(
  type: Struct<F>,
  data: Uint8Array,
  values: Iterable<[string, bigint]>,
  base = 0,
): void => {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  for (const [name, value] of values) {
    const field = type.fields[name];
    if (field === undefined || field.kind !== 'uint') continue;
    if (field.size === 8) view.setBigUint64(base + field.offset, value, true);
    else for (let i = 0; i < field.size; i++) view.setUint8(base + field.offset + i, Number((value >> BigInt(8 * i)) & 0xffn));
  }
};

const getRegs: Operation = async (executor, args) => {
  const { outcome, data } = await ioctlInOut(executor, args.fd, IOCTL.KVM_GET_REGS, new Uint8Array(kvm_regs.size));
  return outcome.ret === 0n ? { ...finish(outcome), ...showRegs(kvm_regs.decode(data), args) } : finish(outcome);
};

const setRegs: Operation = async (executor, args) => {
  let bytes: Uint8Array = new Uint8Array(kvm_regs.size);
  if (!args.truthy('zero')) ({ data: bytes } = await ioctlInOut(executor, args.fd, IOCTL.KVM_GET_REGS, bytes));
  setFields(kvm_regs, bytes, args.entries('set'));
  return ioctlIn(executor, args.fd, IOCTL.KVM_SET_REGS, bytes);
};

const SEGMENTS = ['cs', 'ds', 'es', 'fs', 'gs', 'ss', 'tr', 'ldt'] as const;
const TABLES = ['gdt', 'idt'] as const;
const CONTROL = ['cr0', 'cr2', 'cr3', 'cr4', 'cr8', 'efer', 'apic_base'] as const;

/** The fields that kvm_sregs and kvm_sregs2 share, which lie at the same places in both. */
const showSregs = (data: Uint8Array, args: OpArgs): OpResult => {
  const sregs = kvm_sregs.decode(data.subarray(0, kvm_sregs.size));
  const shown: Record<string, Json> = {};
  for (const name of SEGMENTS) {
    if (!args.wants(name)) continue;
    const { padding: _, base, limit, selector, ...bits } = sregs[name];
    shown[name] = { base: hex(base), limit: hex(limit), selector: hex(selector), ...bits };
  }
  for (const name of TABLES) if (args.wants(name)) shown[name] = { base: hex(sregs[name].base), limit: hex(sregs[name].limit) };
  for (const name of CONTROL) if (args.wants(name)) shown[name] = hex(sregs[name]);
  return shown;
};

/** `set: {"cs.base": 0, "cr0": "0x11"}`. */
const setSregsFields = (bytes: Uint8Array, entries: Iterable<[string, bigint]>): void => {
  for (const [path, value] of entries) {
    const [name = '', field] = path.split('.');
    if (field === undefined) setFields(kvm_sregs, bytes, [[name, value]]);
    else if (isSegment(name)) setFields(kvm_segment, bytes, [[field, value]], kvm_sregs.fields[name].offset);
    else if (name === 'gdt' || name === 'idt') setTable(bytes, kvm_sregs.fields[name].offset, field, value);
  }
};

const isSegment = (name: string): name is (typeof SEGMENTS)[number] => (SEGMENTS as readonly string[]).includes(name);

const setTable = (bytes: Uint8Array, offset: number, field: string, value: bigint): void => {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  if (field === 'base') view.setBigUint64(offset, value, true);
  if (field === 'limit') view.setUint16(offset + 8, Number(BigInt.asUintN(16, value)), true);
};

const getSregs: Operation = async (executor, args) => {
  const { outcome, data } = await ioctlInOut(executor, args.fd, IOCTL.KVM_GET_SREGS, new Uint8Array(kvm_sregs.size));
  if (outcome.ret !== 0n) return finish(outcome);
  const { offset, size } = kvm_sregs.fields.interrupt_bitmap;
  const bitmap: OpResult = args.wants('interrupt_bitmap')
    ? { interrupt_bitmap: toHex(data.subarray(offset, offset + size)) }
    : {};
  return { ...finish(outcome), sregs: { ...showSregs(data, args), ...bitmap } };
};

const setSregs: Operation = async (executor, args) => {
  let bytes: Uint8Array = new Uint8Array(kvm_sregs.size);
  if (!args.truthy('zero')) ({ data: bytes } = await ioctlInOut(executor, args.fd, IOCTL.KVM_GET_SREGS, bytes));
  setSregsFields(bytes, args.entries('set'));
  for (const item of args.list('irq_bits')) {
    const bit = Number(toU64(item)) % 256;
    const at = kvm_sregs.fields.interrupt_bitmap.offset + (bit >> 3);
    bytes[at] = (bytes[at] ?? 0) | (1 << (bit & 7));
  }
  return ioctlIn(executor, args.fd, IOCTL.KVM_SET_SREGS, bytes);
};

const getSregs2: Operation = async (executor, args) => {
  const { outcome, data } = await ioctlInOut(executor, args.fd, IOCTL.KVM_GET_SREGS2, new Uint8Array(kvm_sregs2.size));
  if (outcome.ret !== 0n) return finish(outcome);
  return { ...finish(outcome), sregs2: { ...showSregs(data, args), flags: hex(kvm_sregs2.decode(data).flags) } };
};

const setSregs2: Operation = async (executor, args) => {
  let bytes: Uint8Array = new Uint8Array(kvm_sregs2.size);
  if (!args.truthy('zero')) ({ data: bytes } = await ioctlInOut(executor, args.fd, IOCTL.KVM_GET_SREGS2, bytes));
  setSregsFields(bytes, args.entries('set'));
  if (args.has('flags')) kvm_sregs2.write(bytes, { flags: args.u64('flags') });
  return ioctlIn(executor, args.fd, IOCTL.KVM_SET_SREGS2, bytes);
};

/** Ops on general, segment and control registers. `set_*` start from the present values unless `zero`. */
export const REGS_OPS: Readonly<Record<string, Operation>> = {
  get_regs: getRegs,
  set_regs: setRegs,
  get_sregs: getSregs,
  set_sregs: setSregs,
  get_sregs2: getSregs2,
  set_sregs2: setSregs2,
};
