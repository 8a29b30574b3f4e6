import { LazyMap } from '../../../lazy-map.js';

/** Who wants to know of acknowledged and of masked interrupts (`kvm_irq_ack_notifier`, `kvm_irq_mask_notifier`). */

/** Told when a guest has ended an interrupt of its GSI. */
export interface IrqAckNotifier {
  irqAcked(): void;
}

/** Told when a guest masks or unmasks the pin of its GSI. */
export interface IrqMaskNotifier {
  masked(mask: boolean): void;
}

/** What stands behind an ack notifier: a resampler is also asked before a pending level interrupt is unmasked. */
export type AckNotifierKind = 'device' | 'resampler';

interface Registration {
  readonly gsi: number;
  readonly kind: AckNotifierKind;
}

export class IrqNotifiers {
  private readonly acks = new LazyMap<IrqAckNotifier, Registration>();
  private readonly masks = new LazyMap<IrqMaskNotifier, number>();

  /** @param changed `kvm_arch_post_irq_ack_notifier_list_update`: EOIs of these GSIs have to be seen from now on */
  constructor(private readonly changed: () => void) {}

  /** `kvm_register_irq_ack_notifier`. */
  registerAck(gsi: number, notifier: IrqAckNotifier, kind: AckNotifierKind): void {
    this.acks.set(notifier, { gsi, kind });
    this.changed();
  }

  /** `kvm_unregister_irq_ack_notifier`. */
  unregisterAck(notifier: IrqAckNotifier): void {
    this.acks.delete(notifier);
    this.changed();
  }

  /** `kvm_register_irq_mask_notifier`. */
  registerMask(gsi: number, notifier: IrqMaskNotifier): void {
    this.masks.set(notifier, gsi);
  }

  /** `kvm_unregister_irq_mask_notifier`. */
  unregisterMask(notifier: IrqMaskNotifier): void {
    this.masks.delete(notifier);
  }

  /** `kvm_notify_acked_gsi`. */
  acked(gsi: number): void {
    for (const [notifier, registration] of [...this.acks]) if (registration.gsi === gsi) notifier.irqAcked();
  }

  /** `kvm_notify_irqfd_resampler`: true if there was one. */
  resample(gsi: number): boolean {
    let found = false;
    for (const [notifier, registration] of [...this.acks]) {
      if (registration.gsi !== gsi || registration.kind !== 'resampler') continue;
      found = true;
      notifier.irqAcked();
    }
    return found;
  }

  /** `kvm_fire_mask_notifiers`. */
  masked(gsi: number, mask: boolean): void {
    for (const [notifier, ofGsi] of [...this.masks]) if (ofGsi === gsi) notifier.masked(mask);
  }

  /** `kvm_irq_has_notifier`. */
  hasAck(gsi: number): boolean {
    for (const registration of this.acks.values()) if (registration.gsi === gsi) return true;
    return false;
  }
}
