import { KVM_MP_STATE } from '../../../uapi/constants.js';
import type { Vcpu } from '../../vcpu.js';
import { apicMatchesDest } from './apic-match.js';
import { KVM_APIC_INIT, KVM_APIC_SIPI } from './lapic.js';
import { msiToLapicIrq } from './lapic-irq.js';

/** What the run loop asks of the interrupt controllers before a vCPU enters its guest (arch/x86/kvm/irq.c, lapic.c). */

/** `kvm_cpu_has_extint`: an interrupt that does not come from the local APIC. */
export const kvmCpuHasExtint = ({ vm, arch }: Vcpu): boolean => {
  if (arch.lapic === null) return arch.events.interrupt.injected;
  if (!arch.lapic.acceptsPicInterrupt()) return false;
  const { chips } = vm.arch.irq;
  return chips === null ? arch.lapic.pendingExternalVector !== -1 : chips.pic.intr;
};

/** `kvm_cpu_has_interrupt`: one that the vCPU can take now, as far as priorities go. Acknowledges nothing. */
export const kvmCpuHasInterrupt = (vcpu: Vcpu): boolean =>
  kvmCpuHasExtint(vcpu) || (vcpu.arch.lapic !== null && vcpu.arch.lapic.hasInterrupt() !== -1);

/** `kvm_cpu_has_injectable_intr`: the same, without AVIC. */
export const kvmCpuHasInjectableIntr = kvmCpuHasInterrupt;

/** `kvm_cpu_get_interrupt`: acknowledges the interrupt and returns its vector; -1: there is none. */
export const kvmCpuGetInterrupt = (vcpu: Vcpu): number => {
  const { lapic, events } = vcpu.arch;
  if (lapic === null) return events.interrupt.injected ? events.interrupt.vector : -1;
  if (kvmCpuHasExtint(vcpu)) return getExtint(vcpu);
  const vector = lapic.hasInterrupt();
  if (vector !== -1) lapic.ackInterrupt(vector);
  return vector;
};

/** `kvm_cpu_get_extint`: from the PIC, or KVM_INTERRUPT's with a split irqchip. */
const getExtint = ({ vm, arch }: Vcpu): number => {
  const { chips } = vm.arch.irq;
  if (chips !== null) return chips.pic.readIrq();
  if (arch.lapic === null) return -1;
  const vector = arch.lapic.pendingExternalVector;
  arch.lapic.pendingExternalVector = -1;
  return vector;
};

/** `kvm_cpu_has_pending_timer`: a halted vCPU has to wake up and inject it. */
export const kvmCpuHasPendingTimer = ({ arch }: Vcpu): boolean => arch.lapic?.hasPendingTimer ?? false;

/** `kvm_inject_pending_timer_irqs`. */
export const kvmInjectPendingTimerIrqs = ({ arch }: Vcpu): void => arch.lapic?.injectTimerIrqs();

/** `kvm_apic_has_pending_init_or_sipi`. */
export const kvmApicHasPendingInitOrSipi = ({ arch }: Vcpu): boolean => (arch.lapic?.pendingEvents ?? 0) !== 0;

/** What INIT and SIPI do to a vCPU; they differ between vendors and with encrypted state. */
export interface InitSipi {
  /** `kvm_vcpu_reset(vcpu, true)`. */
  reset(vcpu: Vcpu): void;
  /** `kvm_x86_ops.vcpu_deliver_sipi_vector`. */
  deliverSipiVector(vcpu: Vcpu, vector: number): void;
}

/** `kvm_apic_accept_events`: takes a pending INIT, and then a SIPI, which only a vCPU after INIT looks at. */
export const kvmApicAcceptEvents = (vcpu: Vcpu, effects: InitSipi): void => {
  const { lapic } = vcpu.arch;
  if (lapic === null) return;
  const events = lapic.pendingEvents;
  lapic.pendingEvents = 0;
  if (events & KVM_APIC_INIT) {
    effects.reset(vcpu);
    const isBsp = vcpu.vm.arch.bspVcpuId === vcpu.id;
    vcpu.arch.mpState = isBsp ? KVM_MP_STATE.RUNNABLE : KVM_MP_STATE.INIT_RECEIVED;
  }
  if (!(events & KVM_APIC_SIPI) || vcpu.arch.mpState !== KVM_MP_STATE.INIT_RECEIVED) return;
  effects.deliverSipiVector(vcpu, lapic.sipiVector);
  vcpu.arch.mpState = KVM_MP_STATE.RUNNABLE;
};

/** `vcpu_scan_ioapic`, for KVM_REQ_SCAN_IOAPIC: finds out which EOIs of this vCPU an IOAPIC wants to see. */
export const vcpuScanIoapic = ({ vm, arch }: Vcpu): void => {
  const { lapic } = arch;
  if (lapic === null || !lapic.hardwareEnabled) return;
  const { irq } = vm.arch;
  lapic.ioapicHandledVectors.fill(0);
  lapic.highestStalePendingIoapicEoi = -1;
  if (irq.chips !== null) {
    irq.chips.ioapic.scan(lapic);
    return;
  }
  // kvm_scan_ioapic_routes(): the level-triggered messages of user space's IOAPIC.
  for (const message of irq.routes.messagesBelow(irq.reservedIoapicPins)) {
    const route = msiToLapicIrq(message, vm.arch.x2apicFormat);
    if (!route.levelTriggered) continue;
    if (apicMatchesDest(lapic, null, route)) lapic.handleEoiOf(route.vector);
    else lapic.handleStaleEoiOf(route.vector);
  }
};

/** KVM_REQ_IOAPIC_EOI_EXIT: the vector for KVM_EXIT_IOAPIC_EOI; -1: nobody wants to hear of it any more. */
export const kvmIoapicEoiVector = ({ arch }: Vcpu): number => {
  const { lapic } = arch;
  return lapic?.ioapicHandles(lapic.pendingIoapicEoi) ? lapic.pendingIoapicEoi : -1;
};
