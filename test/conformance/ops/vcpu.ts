import { IOCTL } from '../../../server/kernel/uapi/ioctls.js';
import {
  kvm_interrupt,
  kvm_mp_state,
  kvm_one_reg,
  kvm_pre_fault_memory,
  kvm_tpr_access_ctl,
  kvm_translation,
  kvm_vapic_addr,
} from '../../../server/kernel/uapi/kvm-structs.js';
import type { Fields, Struct, ValueOf } from '../../../server/kernel/uapi/struct.js';
import {
  kvm_debugregs,
  kvm_fpu,
  kvm_guest_debug,
  kvm_lapic_state,
  kvm_msr_entry,
  kvm_msrs,
  kvm_vcpu_events,
  kvm_xcrs,
} from '../../../server/kernel/uapi/x86-structs.js';
import type { Executor } from '../executor.js';
import type { Json } from '../json.js';
import { type OpArgs, toHex, toU64 } from '../op-args.js';
import { finish, hex, type Operation, type OpResult } from '../operation.js';
import { ioctlIn, ioctlInOut, valueOp } from './ioctl.js';

const MSRS_MAX = 512;

/** What a KVM_GET_* finds; zeros where it fails, as in a C program that does not look. */
const fetch = async <F extends Fields>(executor: Executor, fd: number, request: number, type: Struct<F>): Promise<ValueOf<F>> => {
  const { data } = await ioctlInOut(executor, fd, request, new Uint8Array(type.size));
  return type.decode(data);
};

/** An op that shows some of the structure of a KVM_GET_*, when that succeeds. */
const getOp =
  <F extends Fields>(request: number, type: Struct<F>, show: (value: ValueOf<F>, args: OpArgs) => OpResult): Operation =>
  async (executor, args) => {
    const { outcome, data } = await ioctlInOut(executor, args.fd, request, new Uint8Array(type.size));
    return outcome.ret === 0n ? { ...finish(outcome), ...show(type.decode(data), args) } : finish(outcome);
  };

const getMsrs: Operation = async (executor, args) => {
  const indices = args.list('indices').slice(0, MSRS_MAX);
  const bytes = new Uint8Array(kvm_msrs.size + MSRS_MAX * kvm_msr_entry.size);
  kvm_msrs.write(bytes, { nmsrs: args.u32('nmsrs', indices.length) });
  for (const [position, index] of indices.entries())
    kvm_msr_entry.write(
      bytes,
      { index: Number(BigInt.asUintN(32, toU64(index))) },
      kvm_msrs.size + position * kvm_msr_entry.size,
    );
  const { outcome, data } = await ioctlInOut(executor, args.fd, IOCTL.KVM_GET_MSRS, bytes);
  if (outcome.ret < 0n) return finish(outcome);
  const values = Array.from({ length: Math.min(MSRS_MAX, Number(outcome.ret)) }, (_, position) =>
    hex(kvm_msr_entry.decode(data, kvm_msrs.size + position * kvm_msr_entry.size).data),
  );
  return { ...finish(outcome), values };
};

const setMsrs: Operation = (executor, args) => {
  const msrs = args.items('msrs').slice(0, MSRS_MAX);
  const bytes = new Uint8Array(kvm_msrs.size + MSRS_MAX * kvm_msr_entry.size);
  kvm_msrs.write(bytes, { nmsrs: args.u32('nmsrs', msrs.length) });
  for (const [position, msr] of msrs.entries())
    kvm_msr_entry.write(bytes, { index: msr.u32('index'), data: msr.u64('data') }, kvm_msrs.size + position * kvm_msr_entry.size);
  return ioctlIn(executor, args.fd, IOCTL.KVM_SET_MSRS, bytes);
};

const showEvents = ({
  exception,
  interrupt,
  nmi,
  sipi_vector,
  flags,
  smi,
}: ValueOf<typeof kvm_vcpu_events.fields>): OpResult => ({
  exception: { ...exception },
  interrupt: { ...interrupt },
  nmi: { ...nmi },
  sipi_vector,
  flags: hex(flags),
  smi: { ...smi },
});

const setVcpuEvents: Operation = async (executor, args) => {
  const events = args.truthy('zero')
    ? kvm_vcpu_events.decode(new Uint8Array(kvm_vcpu_events.size))
    : await fetch(executor, args.fd, IOCTL.KVM_GET_VCPU_EVENTS, kvm_vcpu_events);
  const { exception, interrupt, nmi, smi } = events;
  const byte = (key: string, now: number): number => args.u32(key, now) & 0xff;
  exception.injected = byte('exc_injected', exception.injected);
  exception.pending = byte('exc_pending', exception.pending);
  exception.nr = byte('exc_nr', exception.nr);
  exception.has_error_code = byte('exc_has_ec', exception.has_error_code);
  interrupt.injected = byte('int_injected', interrupt.injected);
  interrupt.nr = byte('int_nr', interrupt.nr);
  interrupt.shadow = byte('int_shadow', interrupt.shadow);
  nmi.pending = byte('nmi_pending', nmi.pending);
  nmi.masked = byte('nmi_masked', nmi.masked);
  nmi.injected = byte('nmi_injected', nmi.injected);
  smi.smm = byte('smm', smi.smm);
  events.sipi_vector = args.u32('sipi_vector', events.sipi_vector);
  events.flags = args.u32('flags', events.flags);
  return ioctlIn(executor, args.fd, IOCTL.KVM_SET_VCPU_EVENTS, kvm_vcpu_events.encode(events));
};

const setDebugregs: Operation = async (executor, args) => {
  const now = await fetch(executor, args.fd, IOCTL.KVM_GET_DEBUGREGS, kvm_debugregs);
  const [first = 0n, ...others] = now.db;
  return ioctlIn(
    executor,
    args.fd,
    IOCTL.KVM_SET_DEBUGREGS,
    kvm_debugregs.encode({
      db: [args.u64('db0', first), ...others],
      dr6: args.u64('dr6', now.dr6),
      dr7: args.u64('dr7', now.dr7),
      flags: args.u64('flags'),
    }),
  );
};

const setFpu: Operation = async (executor, args) => {
  const now = await fetch(executor, args.fd, IOCTL.KVM_GET_FPU, kvm_fpu);
  if (args.has('xmm0')) now.xmm.set(args.bytes('xmm0').subarray(0, 16));
  const changed = { ...now, fcw: args.u32('fcw', now.fcw) & 0xffff, mxcsr: args.u32('mxcsr', now.mxcsr) };
  return ioctlIn(executor, args.fd, IOCTL.KVM_SET_FPU, kvm_fpu.encode(changed));
};

const setXcrs: Operation = (executor, args) =>
  ioctlIn(
    executor,
    args.fd,
    IOCTL.KVM_SET_XCRS,
    kvm_xcrs.encode({
      nr_xcrs: args.u32('nr_xcrs', 1),
      flags: args.u32('flags'),
      xcrs: [{ xcr: args.u32('xcr'), reserved: 0, value: args.u64('value', 1) }],
    }),
  );

const apicRegister = (regs: Uint8Array, offset: number): number =>
  new DataView(regs.buffer, regs.byteOffset).getUint32(offset, true);

const setLapic: Operation = async (executor, args) => {
  const { regs } = await fetch(executor, args.fd, IOCTL.KVM_GET_LAPIC, kvm_lapic_state);
  const view = new DataView(regs.buffer, regs.byteOffset);
  if (args.has('id')) view.setUint32(0x20, args.u32('id'), true);
  if (args.has('spiv')) view.setUint32(0xf0, args.u32('spiv'), true);
  return ioctlIn(executor, args.fd, IOCTL.KVM_SET_LAPIC, kvm_lapic_state.encode({ regs }));
};

const translate: Operation = async (executor, args) => {
  const request = kvm_translation.encode({ linear_address: args.u64('linear') });
  const { outcome, data } = await ioctlInOut(executor, args.fd, IOCTL.KVM_TRANSLATE, request);
  if (outcome.ret !== 0n) return finish(outcome);
  const { physical_address, valid, writeable, usermode } = kvm_translation.decode(data);
  return { ...finish(outcome), physical: hex(physical_address), valid, writeable, usermode };
};

const setGuestDebug: Operation = (executor, args) =>
  ioctlIn(
    executor,
    args.fd,
    IOCTL.KVM_SET_GUEST_DEBUG,
    kvm_guest_debug.encode({
      control: args.u32('control'),
      pad: args.u32('pad'),
      debugreg: [args.u64('db0'), 0n, 0n, 0n, 0n, 0n, 0n, args.u64('dr7')],
    }),
  );

const tprAccessReporting: Operation = (executor, args) => {
  const bytes = kvm_tpr_access_ctl.encode({ enabled: args.u32('enabled'), flags: args.u32('flags') });
  if (args.has('reserved')) bytes[8] = 1;
  return ioctlIn(executor, args.fd, IOCTL.KVM_TPR_ACCESS_REPORTING, bytes);
};

/** `len` and a signal set of 64 bits right behind it. */
const setSignalMask: Operation = async (executor, args) => {
  if (args.truthy('null')) return finish(await executor.calls.ioctl(args.fd, IOCTL.KVM_SET_SIGNAL_MASK, 0n));
  const bytes = new Uint8Array(12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, args.u32('len', 8), true);
  view.setBigUint64(4, args.u64('set'), true);
  return ioctlIn(executor, args.fd, IOCTL.KVM_SET_SIGNAL_MASK, bytes);
};

const preFaultMemory: Operation = async (executor, args) => {
  const bytes = kvm_pre_fault_memory.encode({ gpa: args.u64('gpa'), size: args.u64('size'), flags: args.u64('flags') });
  if (args.has('padding')) bytes[24] = 1;
  const { outcome, data } = await ioctlInOut(executor, args.fd, IOCTL.KVM_PRE_FAULT_MEMORY, bytes);
  const { gpa, size } = kvm_pre_fault_memory.decode(data);
  return { ...finish(outcome), gpa_after: hex(gpa), size_after: hex(size) };
};

const getOneReg: Operation = async (executor, args) => {
  const value = await executor.arena.place(new Uint8Array(8));
  return ioctlIn(executor, args.fd, IOCTL.KVM_GET_ONE_REG, kvm_one_reg.encode({ id: args.u64('id'), addr: value }));
};

/** Ops on a vCPU's state, without its registers and KVM_RUN. */
export const VCPU_OPS: Readonly<Record<string, Operation>> = {
  get_msrs: getMsrs,
  set_msrs: setMsrs,
  interrupt: (executor, args) => ioctlIn(executor, args.fd, IOCTL.KVM_INTERRUPT, kvm_interrupt.encode({ irq: args.u32('irq') })),
  nmi: valueOp(IOCTL.KVM_NMI),
  smi: valueOp(IOCTL.KVM_SMI),
  get_mp_state: getOp(IOCTL.KVM_GET_MP_STATE, kvm_mp_state, ({ mp_state }) => ({ mp_state })),
  set_mp_state: (executor, args) =>
    ioctlIn(executor, args.fd, IOCTL.KVM_SET_MP_STATE, kvm_mp_state.encode({ mp_state: args.u32('mp_state') })),
  get_vcpu_events: getOp(IOCTL.KVM_GET_VCPU_EVENTS, kvm_vcpu_events, showEvents),
  set_vcpu_events: setVcpuEvents,
  get_debugregs: getOp(IOCTL.KVM_GET_DEBUGREGS, kvm_debugregs, ({ db, dr6, dr7, flags }) => ({
    ...Object.fromEntries(db.map((value, index): [string, Json] => [`db${index}`, hex(value)])),
    dr6: hex(dr6),
    dr7: hex(dr7),
    flags: hex(flags),
  })),
  set_debugregs: setDebugregs,
  get_fpu: getOp(IOCTL.KVM_GET_FPU, kvm_fpu, ({ fcw, fsw, ftwx, mxcsr, xmm }) => ({
    fcw: hex(fcw),
    fsw: hex(fsw),
    ftwx: hex(ftwx),
    mxcsr: hex(mxcsr),
    xmm0: toHex(xmm.subarray(0, 16)),
  })),
  set_fpu: setFpu,
  get_xcrs: getOp(IOCTL.KVM_GET_XCRS, kvm_xcrs, ({ nr_xcrs, flags, xcrs: [first] }) => ({
    nr_xcrs,
    flags: hex(flags),
    xcr0_index: first?.xcr ?? 0,
    xcr0: hex(first?.value ?? 0n),
  })),
  set_xcrs: setXcrs,
  get_lapic: getOp(IOCTL.KVM_GET_LAPIC, kvm_lapic_state, ({ regs }) => ({
    id: hex(apicRegister(regs, 0x20)),
    version: hex(apicRegister(regs, 0x30)),
    spiv: hex(apicRegister(regs, 0xf0)),
    lvt0: hex(apicRegister(regs, 0x350)),
  })),
  set_lapic: setLapic,
  translate,
  set_guest_debug: setGuestDebug,
  kvmclock_ctrl: valueOp(IOCTL.KVM_KVMCLOCK_CTRL),
  set_vapic_addr: (executor, args) =>
    ioctlIn(executor, args.fd, IOCTL.KVM_SET_VAPIC_ADDR, kvm_vapic_addr.encode({ vapic_addr: args.u64('addr') })),
  tpr_access_reporting: tprAccessReporting,
  set_signal_mask: setSignalMask,
  pre_fault_memory: preFaultMemory,
  get_one_reg: getOneReg,
};
