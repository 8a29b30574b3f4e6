import { Failure, failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import { KVM_MP_STATE, type KvmMpState } from '../../uapi/constants.js';
import { kvm_mp_state } from '../../uapi/kvm-structs.js';
import { copyStruct, copyStructOut } from '../copy-struct.js';
import { REQUEST, type Vcpu } from '../vcpu.js';
import { KVM_APIC_SIPI } from './irq/lapic.js';
import { kvmApicAcceptEvents } from './irq/vcpu-irq.js';
import { initSipi } from './reset.js';

/** KVM_GET_MP_STATE. INIT and SIPI that are pending are taken first. */
export const getMpState = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  kvmApicAcceptEvents(vcpu, initSipi);
  return copyStructOut(arg, kvm_mp_state, { mp_state: vcpu.arch.mpState }) ?? 0;
};

const STATES: ReadonlyMap<number, KvmMpState> = new Map(Object.values(KVM_MP_STATE).map((state) => [state, state]));

const refuse = (reason: string, given: number, allowed: string): Failure =>
  new Failure('EINVAL', reason, 'kvm_arch_vcpu_ioctl_set_mpstate', { field: 'mp_state', given: String(given), allowed });

/** KVM_SET_MP_STATE. Without an in-kernel APIC a vCPU can only be runnable. */
export const setMpState = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const request = copyStruct(arg, kvm_mp_state);
  if (failed(request)) return request;
  const state = STATES.get(request.mp_state);
  if (state === undefined) return refuse('MP_STATE_UNKNOWN', request.mp_state, [...STATES.keys()].join(', '));
  const { arch } = vcpu;
  if (arch.lapic === null && state !== KVM_MP_STATE.RUNNABLE)
    return refuse('MP_STATE_NEEDS_LAPIC', state, String(KVM_MP_STATE.RUNNABLE));
  if (state === KVM_MP_STATE.SIPI_RECEIVED && arch.lapic !== null) {
    arch.mpState = KVM_MP_STATE.INIT_RECEIVED;
    arch.lapic.pendingEvents |= KVM_APIC_SIPI;
  } else arch.mpState = state;
  vcpu.request(REQUEST.EVENT);
  return 0;
};
