import {
  APIC_DEST_LOGICAL,
  APIC_DEST_SHORTHAND,
  APIC_DM,
  APIC_ICR_BUSY,
  APIC_INT_ASSERT,
  APIC_INT_LEVELTRIG,
  APIC_MODE_MASK,
  APIC_SHORT_MASK,
  APIC_VECTOR_MASK,
} from './apic-registers.js';

/** `struct kvm_lapic_irq`: an interrupt message on its way to local APICs. */
export interface LapicIrq {
  readonly vector: number;
  /** Out of APIC_DM. */
  readonly deliveryMode: number;
  readonly logical: boolean;
  readonly level: boolean;
  /** Trigger mode: true is level. */
  readonly levelTriggered: boolean;
  /** Out of APIC_DEST_SHORTHAND. */
  readonly shorthand: number;
  readonly destId: number;
  /** Redirection hint of an MSI: lowest priority whatever the delivery mode says. */
  readonly msiRedirHint: boolean;
}

/** `kvm_lowest_prio_delivery`. */
export const isLowestPriority = (irq: LapicIrq): boolean => irq.deliveryMode === APIC_DM.LOWEST || irq.msiRedirHint;

/** `kvm_icr_to_lapic_irq`. @param destId bits 24-31 of ICR2, or all of it in x2APIC mode */
export const icrToLapicIrq = (icrLow: number, destId: number): LapicIrq => {
  if (icrLow & APIC_ICR_BUSY) throw new Error('ICR was sent with its busy bit');
  return {
    vector: icrLow & APIC_VECTOR_MASK,
    deliveryMode: icrLow & APIC_MODE_MASK,
    logical: (icrLow & APIC_DEST_LOGICAL) !== 0,
    level: (icrLow & APIC_INT_ASSERT) !== 0,
    levelTriggered: (icrLow & APIC_INT_LEVELTRIG) !== 0,
    shorthand: icrLow & APIC_SHORT_MASK,
    destId,
    msiRedirHint: false,
  };
};

/** Address and data of a message signalled interrupt. */
export interface MsiMessage {
  readonly addressLo: number;
  readonly addressHi: number;
  readonly data: number;
}

/**
 * `kvm_set_msi_irq`. The address is looked at for destination, mode and redirection hint alone, not for 0xfee.
 * @param x2apicFormat bits 8-31 of the high address word are bits 8-31 of the destination (KVM_CAP_X2APIC_API)
 */
export const msiToLapicIrq = ({ addressLo, addressHi, data }: MsiMessage, x2apicFormat: boolean): LapicIrq => ({
  vector: data & 0xff,
  deliveryMode: data & APIC_MODE_MASK,
  logical: (addressLo & 0x4) !== 0,
  level: true,
  levelTriggered: (data & 0x8000) !== 0,
  shorthand: APIC_DEST_SHORTHAND.NONE,
  destId: (((addressLo >>> 12) & 0xff) | (x2apicFormat ? addressHi & 0xffff_ff00 : 0)) >>> 0,
  msiRedirHint: (addressLo & 0x8) !== 0,
});
