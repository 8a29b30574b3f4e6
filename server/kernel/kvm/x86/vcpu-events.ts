import { Vector } from '../../../hardware/cpu/registers.js';
import { Failure, failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import { KVM_MP_STATE, KVM_VCPUEVENT_VALID, KVM_X86_SHADOW_INT } from '../../uapi/constants.js';
import type { StructValue } from '../../uapi/struct.js';
import { kvm_vcpu_events } from '../../uapi/x86-structs.js';
import { copyStruct, copyStructOut } from '../copy-struct.js';
import { REQUEST, type Vcpu } from '../vcpu.js';
import { deliverExceptionPayload, processNmi } from './inject.js';
import { KVM_APIC_INIT } from './irq/lapic.js';

export type VcpuEvents = StructValue<typeof kvm_vcpu_events>;

const VALID = Object.values(KVM_VCPUEVENT_VALID).reduce((mask, bit) => mask | bit, 0);
const flag = (on: boolean): number => (on ? 1 : 0);

/** `kvm_exception_is_soft`: the guest meets it again, so it is not reported. */
const isSoft = (vector: number): boolean => vector === Vector.BP || vector === Vector.OF;

/** `kvm_vcpu_ioctl_x86_get_vcpu_events`. */
export const readEvents = (vcpu: Vcpu): VcpuEvents => {
  processNmi(vcpu);
  const { arch, vm } = vcpu;
  const { events, cpu } = arch;
  const { exception, interrupt } = events;
  const { exceptionPayload, tripleFaultEvent } = vm.arch;
  if (!exceptionPayload && exception.pending) deliverExceptionPayload(vcpu);
  const reported = !isSoft(exception.vector);
  const shadowed = cpu.state.interruptShadow !== 'none';
  const flags = KVM_VCPUEVENT_VALID.NMI_PENDING | KVM_VCPUEVENT_VALID.SHADOW | KVM_VCPUEVENT_VALID.SMM;
  return {
    exception: {
      // Without the payload capability pending and injected are one thing to userspace.
      injected: flag(reported && (exception.injected || (!exceptionPayload && exception.pending))),
      pending: flag(reported && exception.pending),
      nr: exception.vector,
      has_error_code: flag(exception.errorCode !== null),
      error_code: exception.errorCode ?? 0,
    },
    interrupt: {
      injected: flag(interrupt.injected && !interrupt.soft),
      nr: interrupt.vector,
      soft: 0,
      // SVM has one bit for both.
      shadow: shadowed ? KVM_X86_SHADOW_INT.STI | KVM_X86_SHADOW_INT.MOV_SS : 0,
    },
    nmi: { injected: flag(events.nmiInjected), pending: events.nmiPending, masked: flag(cpu.state.nmiBlocked) },
    sipi_vector: 0,
    flags:
      flags | (exceptionPayload ? KVM_VCPUEVENT_VALID.PAYLOAD : 0) | (tripleFaultEvent ? KVM_VCPUEVENT_VALID.TRIPLE_FAULT : 0),
    smi: { smm: 0, pending: 0, smm_inside_nmi: 0, latched_init: 0 },
    triple_fault: { pending: flag(tripleFaultEvent && vcpu.testRequest(REQUEST.TRIPLE_FAULT)) },
    exception_has_payload: flag(exception.payload !== null),
    exception_payload: exception.payload ?? 0n,
  };
};

const refuse = (reason: string, field: string, given: number): Failure =>
  new Failure('EINVAL', reason, 'kvm_vcpu_ioctl_x86_set_vcpu_events', { field, given: String(given) });

const checkEvents = ({ arch, vm }: Vcpu, { flags, exception, smi }: VcpuEvents): Failure | null => {
  const has = (bit: number): boolean => (flags & bit) !== 0;
  if ((flags & ~VALID) !== 0) return refuse('VCPU_EVENTS_FLAGS', 'flags', flags);
  if (has(KVM_VCPUEVENT_VALID.PAYLOAD) && !vm.arch.exceptionPayload)
    return refuse('EXCEPTION_PAYLOAD_NOT_ENABLED', 'flags', flags);
  const pending = has(KVM_VCPUEVENT_VALID.PAYLOAD) && exception.pending !== 0;
  if ((exception.injected !== 0 || pending) && (exception.nr > 31 || exception.nr === Vector.NMI))
    return refuse('EXCEPTION_VECTOR', 'exception.nr', exception.nr);
  if (has(KVM_VCPUEVENT_VALID.SMM)) {
    if ((smi.smm !== 0 || smi.pending !== 0) && arch.mpState === KVM_MP_STATE.INIT_RECEIVED)
      return refuse('SMM_IN_INIT', 'smi', smi.smm);
    if (smi.smm !== 0 || smi.pending !== 0 || smi.smm_inside_nmi !== 0) return refuse('NO_SMM', 'smi', smi.smm);
  }
  if (has(KVM_VCPUEVENT_VALID.TRIPLE_FAULT) && !vm.arch.tripleFaultEvent)
    return refuse('TRIPLE_FAULT_EVENT_NOT_ENABLED', 'flags', flags);
  return null;
};

/** `kvm_vcpu_ioctl_x86_set_vcpu_events`. */
export const applyEvents = (vcpu: Vcpu, given: VcpuEvents): Failure | null => {
  const refused = checkEvents(vcpu, given);
  if (refused !== null) return refused;
  const has = (bit: number): boolean => (given.flags & bit) !== 0;
  processNmi(vcpu);
  const { arch } = vcpu;
  const { events } = arch;
  const withPayload = has(KVM_VCPUEVENT_VALID.PAYLOAD);
  const pending = withPayload && given.exception.pending !== 0;
  Object.assign(events.exception, {
    pending,
    injected: given.exception.injected !== 0 && !pending,
    vector: given.exception.nr,
    errorCode: given.exception.has_error_code !== 0 ? given.exception.error_code : null,
    payload: pending && given.exception_has_payload !== 0 ? given.exception_payload : null,
  });
  const { interrupt, nmi } = given;
  Object.assign(events.interrupt, { injected: interrupt.injected !== 0, vector: interrupt.nr, soft: interrupt.soft !== 0 });
  if (has(KVM_VCPUEVENT_VALID.SHADOW)) arch.cpu.state.interruptShadow = interrupt.shadow !== 0 ? 'sti' : 'none';
  applyNmi(vcpu, nmi, has(KVM_VCPUEVENT_VALID.NMI_PENDING));
  if (arch.lapic !== null) {
    if (has(KVM_VCPUEVENT_VALID.SIPI_VECTOR)) arch.lapic.sipiVector = given.sipi_vector & 0xff;
    if (has(KVM_VCPUEVENT_VALID.SMM))
      arch.lapic.pendingEvents = (arch.lapic.pendingEvents & ~KVM_APIC_INIT) | (given.smi.latched_init !== 0 ? KVM_APIC_INIT : 0);
  }
  if (has(KVM_VCPUEVENT_VALID.TRIPLE_FAULT)) {
    if (given.triple_fault.pending !== 0) vcpu.request(REQUEST.TRIPLE_FAULT);
    else vcpu.checkRequest(REQUEST.TRIPLE_FAULT);
  }
  vcpu.request(REQUEST.EVENT);
  return null;
};

const applyNmi = (vcpu: Vcpu, nmi: VcpuEvents['nmi'], withPending: boolean): void => {
  const { events, cpu } = vcpu.arch;
  events.nmiInjected = nmi.injected !== 0;
  if (withPending) {
    events.nmiPending = 0;
    events.nmiQueued = nmi.pending;
    if (nmi.pending !== 0) vcpu.request(REQUEST.NMI);
  }
  cpu.state.nmiBlocked = nmi.masked !== 0;
};

/** KVM_GET_VCPU_EVENTS. */
export const getVcpuEvents = (vcpu: Vcpu, arg: IoctlArg): Result<number> =>
  copyStructOut(arg, kvm_vcpu_events, readEvents(vcpu)) ?? 0;

/** KVM_SET_VCPU_EVENTS. */
export const setVcpuEvents = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const events = copyStruct(arg, kvm_vcpu_events);
  return failed(events) ? events : (applyEvents(vcpu, events) ?? 0);
};
