import { KVM_MP_STATE } from '../../uapi/constants.js';
import { REQUEST, type Vcpu } from '../vcpu.js';
import { interruptAllowed, nmiAllowed } from './inject.js';
import { kvmApicHasPendingInitOrSipi, kvmCpuHasExtint, kvmCpuHasInterrupt } from './irq/vcpu-irq.js';

/** `kvm_vcpu_has_events`: something that a halted vCPU wakes up for. */
export const vcpuHasEvents = (vcpu: Vcpu): boolean => {
  const { events } = vcpu.arch;
  if (kvmApicHasPendingInitOrSipi(vcpu) || events.exception.pending) return true;
  if (vcpu.testRequest(REQUEST.UPDATE_PROTECTED_GUEST_STATE)) return true;
  if (vcpu.testRequest(REQUEST.NMI) || (events.nmiPending > 0 && nmiAllowed(vcpu))) return true;
  return interruptAllowed(vcpu) && kvmCpuHasInterrupt(vcpu);
};

/** `kvm_arch_vcpu_runnable`. */
export const vcpuRunnable = (vcpu: Vcpu): boolean => vcpu.arch.mpState === KVM_MP_STATE.RUNNABLE || vcpuHasEvents(vcpu);

/** `kvm_cpu_accept_dm_intr`: there is a place for an interrupt that userspace wants to inject. */
export const acceptsUserInterrupt = (vcpu: Vcpu): boolean => {
  const { lapic } = vcpu.arch;
  return !kvmCpuHasExtint(vcpu) && (lapic === null || lapic.acceptsPicInterrupt());
};

/** `kvm_vcpu_ready_for_interrupt_injection`. */
export const readyForInterruptInjection = (vcpu: Vcpu): boolean => {
  const { events } = vcpu.arch;
  return interruptAllowed(vcpu) && acceptsUserInterrupt(vcpu) && !events.needsReinjection && !events.exception.pending;
};
