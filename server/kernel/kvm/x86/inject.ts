import { Rflags } from '../../../hardware/cpu/flags.js';
import { Vector } from '../../../hardware/cpu/registers.js';
import type { EventInfo } from '../../../hardware/cpu/types.js';
import { KVM_GUESTDBG } from '../../uapi/constants.js';
import { REQUEST, type Vcpu } from '../vcpu.js';
import { isFault } from './events.js';
import { kvmCpuGetInterrupt, kvmCpuHasInjectableIntr } from './irq/vcpu-irq.js';

const DR7_INDEX = 7;
const DR6_INDEX = 6;
const DR7_GD = 1n << 13n;

/** `kvm_queue_exception`, with an error code or without: taken at the next entry. */
export const queueException = (vcpu: Vcpu, vector: number, errorCode: number | null = null): void => {
  if (!vcpu.arch.events.queueException(vector, errorCode)) vcpu.request(REQUEST.TRIPLE_FAULT);
  vcpu.request(REQUEST.EVENT);
};

/** `get_if_flag`. Read from the CPU: the VMCB shows it of a protected guest too. */
export const interruptsEnabled = ({ arch }: Vcpu): boolean => (arch.cpu.state.flags.control & Rflags.IF) !== 0;

/** `kvm_arch_interrupt_allowed`. */
export const interruptAllowed = (vcpu: Vcpu): boolean =>
  interruptsEnabled(vcpu) && vcpu.arch.cpu.state.interruptShadow === 'none';

/** `nmi_allowed`. */
export const nmiAllowed = ({ arch }: Vcpu): boolean => !arch.cpu.state.nmiBlocked && arch.cpu.state.interruptShadow === 'none';

/** `kvm_inject_nmi`. */
export const injectNmi = (vcpu: Vcpu): void => {
  vcpu.arch.events.nmiQueued++;
  vcpu.request(REQUEST.NMI);
};

/** `process_nmi`. */
export const processNmi = (vcpu: Vcpu): void => {
  const { events, cpu } = vcpu.arch;
  events.processNmi(cpu.state.nmiBlocked);
  if (events.nmiPending > 0) vcpu.request(REQUEST.EVENT);
};

/** `kvm_deliver_exception_payload`: CR2, or the bits of DR6. */
export const deliverExceptionPayload = ({ arch }: Vcpu): void => {
  const { exception } = arch.events;
  if (exception.payload === null) return;
  if (exception.vector === Vector.PF) arch.state.cr2 = exception.payload;
  if (exception.vector === Vector.DB) {
    const sticky = arch.state.debugRegister(DR6_INDEX) & ~0xfn;
    arch.state.setDebugRegister(DR6_INDEX, sticky | exception.payload);
  }
  exception.payload = null;
};

/** What of an exception the registers have to show before it is delivered. */
const prepareException = (vcpu: Vcpu, event: EventInfo): void => {
  const { state } = vcpu.arch;
  if (isFault(event.vector)) state.rflags |= BigInt(Rflags.RF);
  if (event.vector === Vector.DB) {
    deliverExceptionPayload(vcpu);
    state.setDebugRegister(DR7_INDEX, state.debugRegister(DR7_INDEX) & ~DR7_GD);
  }
};

/**
 * `kvm_check_and_inject_events`: the one event that goes in with this entry, in the order of the real function: what
 * was injected before, an exception, an NMI, an interrupt. Windows are asked for where one has to wait.
 * @param windowWanted userspace wants KVM_EXIT_IRQ_WINDOW_OPEN
 */
export const checkAndInjectEvents = (vcpu: Vcpu, windowWanted: boolean): void => {
  const { events, cpu, stat, guestDebug } = vcpu.arch;
  let event = events.reinjection();
  if (event === null) {
    event = events.takeException();
    if (event !== null) prepareException(vcpu, event);
  }
  const blocked = (guestDebug.control & KVM_GUESTDBG.BLOCKIRQ) !== 0;
  if (!blocked && event === null && events.nmiPending > 0 && nmiAllowed(vcpu)) {
    event = events.takeNmi();
    stat.nmi_injections++;
  }
  if (!blocked && event === null && interruptAllowed(vcpu)) event = takeInterrupt(vcpu);
  cpu.requestWindow({
    interrupt: windowWanted || (!blocked && kvmCpuHasInjectableIntr(vcpu)),
    nmi: !blocked && events.nmiPending > 0,
  });
  cpu.pendingEvent = event;
};

/** Acknowledges the highest interrupt, which goes in now. */
const takeInterrupt = (vcpu: Vcpu): EventInfo | null => {
  const { events, stat } = vcpu.arch;
  const vector = kvmCpuHasInjectableIntr(vcpu) ? kvmCpuGetInterrupt(vcpu) : -1;
  if (vector === -1) return null;
  events.queueInterrupt(vector, false);
  stat.irq_injections++;
  return events.reinjection();
};

/** What the CPU holds for its next entry after an instruction was emulated goes to KVM's own queue. */
export const takeBackEvent = (vcpu: Vcpu): void => {
  const { cpu, events } = vcpu.arch;
  const event = cpu.pendingEvent;
  if (event === null) return;
  cpu.pendingEvent = null;
  if (event.type === 'exception') queueException(vcpu, event.vector, event.errorCode);
  else events.requeue(event);
};
