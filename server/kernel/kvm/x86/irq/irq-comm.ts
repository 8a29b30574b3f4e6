import type { Vm } from '../../vm.js';
import { IRQ_SOURCE, type IrqSource } from './irq-line.js';
import type { IrqAckNotifier } from './irq-notifiers.js';
import type { MsiMessage } from './lapic-irq.js';

/** What the generic code asks of x86's interrupt controllers (virt/kvm/irqchip.c, arch/x86/kvm/irq.c). */

export const KVM_USERSPACE_IRQ_SOURCE_ID = IRQ_SOURCE.USERSPACE;
export const KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID = IRQ_SOURCE.IRQFD_RESAMPLE;

/** `kvm_set_irq`. @returns how many took it, 0 coalesced, -1 ignored (masked, no route, nobody there) */
export const kvmSetIrq = (vm: Vm, source: IrqSource, gsi: number, level: number, lineStatus = false): number =>
  vm.arch.irq.setIrq(source, gsi, level !== 0, lineStatus);

/** `kvm_set_msi`, as KVM_SIGNAL_MSI uses it. @returns how many APICs accepted it, or below 0 */
export const kvmSetMsi = (vm: Vm, message: MsiMessage): number => vm.arch.irq.setMsi(message);

/** `kvm_register_irq_ack_notifier` for an irqfd's resampler, which hears of the EOIs of its GSI. */
export const kvmRegisterIrqAckNotifier = (vm: Vm, gsi: number, notifier: IrqAckNotifier): void =>
  vm.arch.irq.notifiers.registerAck(gsi, notifier, 'resampler');

/** `kvm_unregister_irq_ack_notifier`. */
export const kvmUnregisterIrqAckNotifier = (vm: Vm, notifier: IrqAckNotifier): void =>
  vm.arch.irq.notifiers.unregisterAck(notifier);
