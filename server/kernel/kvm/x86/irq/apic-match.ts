import {
  APIC,
  APIC_BROADCAST,
  APIC_DEST_SHORTHAND,
  APIC_DFR_CLUSTER,
  APIC_DFR_FLAT,
  X2APIC_BROADCAST,
} from './apic-registers.js';
import type { Lapic } from './lapic.js';

/**
 * `kvm_apic_mda`: a device's broadcast reaches x2APICs too, since there is no interrupt remapping, unless user space has
 * asked for KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK.
 */
const messageDestination = (target: Lapic, destId: number, source: Lapic | null): number => {
  const quirk = !target.vm.settings.x2apicBroadcastQuirkDisabled && source === null;
  return quirk && destId === APIC_BROADCAST && target.x2apic ? X2APIC_BROADCAST : destId;
};

/** `kvm_apic_match_physical_addr`; an id above 255 finds a vCPU that is still in xAPIC mode, too. */
const matchesPhysical = (target: Lapic, mda: number): boolean =>
  target.x2apic || mda > 0xff ? mda === target.id : mda === target.xapicId;

/** `kvm_apic_match_logical_addr`. */
const matchesLogical = (target: Lapic, mda: number): boolean => {
  const ldr = target.reg(APIC.LDR);
  if (target.x2apic) return ldr >>> 16 === mda >>> 16 && (ldr & mda & 0xffff) !== 0;
  const logicalId = ldr >>> 24;
  switch (target.reg(APIC.DFR)) {
    case APIC_DFR_FLAT:
      return (logicalId & mda) !== 0;
    case APIC_DFR_CLUSTER:
      return logicalId >> 4 === mda >>> 4 && (logicalId & mda & 0xf) !== 0;
    default:
      return false;
  }
};

/** Where a message goes: shorthand, or destination id and mode. */
export interface ApicDestination {
  readonly shorthand: number;
  readonly destId: number;
  readonly logical: boolean;
}

/** `kvm_apic_match_dest`. @param source null for a message from a device */
export const apicMatchesDest = (target: Lapic, source: Lapic | null, destination: ApicDestination): boolean => {
  switch (destination.shorthand) {
    case APIC_DEST_SHORTHAND.NONE: {
      const mda = messageDestination(target, destination.destId, source);
      if (mda === (target.x2apic ? X2APIC_BROADCAST : APIC_BROADCAST)) return true;
      return destination.logical ? matchesLogical(target, mda) : matchesPhysical(target, mda);
    }
    case APIC_DEST_SHORTHAND.SELF:
      return target === source;
    case APIC_DEST_SHORTHAND.ALLINC:
      return true;
    default:
      return target !== source;
  }
};
