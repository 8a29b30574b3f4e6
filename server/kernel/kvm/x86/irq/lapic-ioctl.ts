import { Failure, failed, type Result } from '../../../failure.js';
import type { IoctlArg } from '../../../fs/ioctl-arg.js';
import { IOCTL } from '../../../uapi/ioctls.js';
import { kvm_interrupt } from '../../../uapi/kvm-structs.js';
import { copyStruct } from '../../copy-struct.js';
import { REQUEST, type Vcpu } from '../../vcpu.js';
import { KVM_APIC_REG_SIZE } from './apic-registers.js';
import { lapicGetState, lapicSetState } from './lapic-state.js';
import { setVapicAddr } from './vapic.js';

/** The ioctls of a vCPU fd that are about interrupts (`kvm_arch_vcpu_ioctl`). */

/** `KVM_NR_INTERRUPTS`. */
const NR_INTERRUPTS = 256;

const refuse = (
  errno: 'EINVAL' | 'ENXIO' | 'EEXIST',
  reason: string,
  vcpu: Vcpu,
  details: Record<string, string> = {},
): Failure =>
  new Failure(errno, reason, 'kvm_arch_vcpu_ioctl', { object: `vcpu ${vcpu.id}`, irqchip: vcpu.vm.arch.irqchipMode, ...details });

/** KVM_GET_LAPIC: EINVAL without an in-kernel APIC, before the argument is looked at. */
const getLapic = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const { lapic } = vcpu.arch;
  if (lapic === null) return refuse('EINVAL', 'NO_LAPIC', vcpu);
  return arg.user.copyOut(arg.value, lapicGetState(lapic)) ?? 0;
};

/** KVM_SET_LAPIC. */
const setLapic = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const { lapic } = vcpu.arch;
  if (lapic === null) return refuse('EINVAL', 'NO_LAPIC', vcpu);
  const state = arg.user.copyIn(arg.value, KVM_APIC_REG_SIZE);
  if (failed(state)) return state;
  return lapicSetState(lapic, state) ?? 0;
};

/**
 * KVM_INTERRUPT (`kvm_vcpu_ioctl_interrupt`): user space's PIC. Without any in-kernel controller it queues the interrupt, in
 * place of one that waits; with a split one it is for LVT0 (EEXIST while one waits); the full one has its own PIC (ENXIO).
 */
const interrupt = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const given = copyStruct(arg, kvm_interrupt);
  if (failed(given)) return given;
  const { irq } = given;
  if (irq >= NR_INTERRUPTS)
    return refuse('EINVAL', 'VECTOR_RANGE', vcpu, { field: 'irq', given: String(irq), allowed: '0 to 255' });
  const { lapic, events } = vcpu.arch;
  if (lapic === null) events.queueInterrupt(irq, false);
  else if (vcpu.vm.arch.picInKernel) return refuse('ENXIO', 'PIC_IN_KERNEL', vcpu);
  else if (lapic.pendingExternalVector !== -1)
    return refuse('EEXIST', 'INTERRUPT_PENDING', vcpu, { pending: String(lapic.pendingExternalVector) });
  else lapic.pendingExternalVector = irq;
  vcpu.request(REQUEST.EVENT);
  return 0;
};

/** The vCPU ioctls about interrupts; null if the request is not one of them. */
export const irqVcpuIoctl = (vcpu: Vcpu, request: number, arg: IoctlArg): Result<number> | null => {
  switch (request) {
    case IOCTL.KVM_GET_LAPIC:
      return getLapic(vcpu, arg);
    case IOCTL.KVM_SET_LAPIC:
      return setLapic(vcpu, arg);
    case IOCTL.KVM_INTERRUPT:
      return interrupt(vcpu, arg);
    case IOCTL.KVM_SET_VAPIC_ADDR:
      return setVapicAddr(vcpu, arg);
    default:
      return null;
  }
};
