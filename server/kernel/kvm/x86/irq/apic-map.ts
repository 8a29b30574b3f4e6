import { apicMatchesDest } from './apic-match.js';
import { APIC, APIC_BROADCAST, APIC_DEST_SHORTHAND, APIC_DFR_FLAT, APIC_DM, X2APIC_BROADCAST } from './apic-registers.js';
import type { Lapic } from './lapic.js';
import { isLowestPriority, type LapicIrq } from './lapic-irq.js';
import type { RtcStatus } from './rtc-status.js';
import type { VmIrq } from './vm-irq.js';

/** `enum kvm_apic_logical_mode`; 'map-disabled': APICs disagree, so logical destinations are looked for one by one. */
type LogicalMode = 'sw-disabled' | 'x2apic' | 'xapic-flat' | 'xapic-cluster' | 'map-disabled';

/** Destinations of xAPIC ids always have room. */
const MIN_MAX_APIC_ID = 255;

/** APICs of one cluster by bit of the logical id. */
type Cluster = (Lapic | undefined)[];

/**
 * `struct kvm_apic_map`: from destination to APIC. It is built when an APIC register of which it is made has been
 * written, not when a vCPU comes online: a message to a vCPU that no such write has followed finds nobody.
 */
export interface ApicMap {
  readonly maxApicId: number;
  readonly physical: ReadonlyMap<number, Lapic>;
  readonly logicalMode: LogicalMode;
  readonly flat: Cluster;
  readonly clusters: readonly Cluster[];
}

class ApicMapBuilder implements ApicMap {
  readonly physical = new Map<number, Lapic>();
  logicalMode: LogicalMode = 'sw-disabled';
  readonly flat: Cluster = [];
  readonly clusters: Cluster[] = Array.from({ length: 16 }, () => []);

  constructor(
    readonly maxApicId: number,
    private readonly x2apicFormat: boolean,
  ) {}

  /**
   * `kvm_recalculate_phys_map`. With 32-bit ids (KVM_X2APIC_API_USE_32BIT_IDS) a vCPU in xAPIC mode can be reached by an
   * id above 255, and aliases are ignored; without, two APICs with one id make the map useless.
   * @returns false for that
   */
  addPhysical(apic: Lapic): boolean {
    if (this.x2apicFormat) {
      if (apic.x2apic || apic.id > 0xff) this.physical.set(apic.id, apic);
      if (!apic.x2apic && !this.physical.has(apic.xapicId)) this.physical.set(apic.xapicId, apic);
      return true;
    }
    const id = apic.x2apic ? apic.id : apic.xapicId;
    if (this.physical.has(id)) return false;
    this.physical.set(id, apic);
    return true;
  }

  /** `kvm_recalculate_logical_map`. */
  addLogical(apic: Lapic): void {
    const ldr = apic.reg(APIC.LDR);
    if (this.logicalMode === 'map-disabled' || !apic.swEnabled || ldr === 0) return;
    const mode = logicalModeOf(apic);
    if (this.logicalMode === 'sw-disabled') this.logicalMode = mode;
    else if (this.logicalMode !== mode) this.logicalMode = 'map-disabled';
    if (this.logicalMode !== 'xapic-flat' && this.logicalMode !== 'xapic-cluster') return;
    const { cluster, mask } = logicalCluster(this, ldr >>> 24);
    if (mask === 0) return;
    const bit = 31 - Math.clz32(mask);
    if (mask !== 1 << bit || cluster[bit] !== undefined) this.logicalMode = 'map-disabled';
    else cluster[bit] = apic;
  }
}

const logicalModeOf = (apic: Lapic): LogicalMode => {
  if (apic.x2apic) return 'x2apic';
  return apic.reg(APIC.DFR) === APIC_DFR_FLAT ? 'xapic-flat' : 'xapic-cluster';
};

/** `kvm_apic_map_get_logical_dest`: the cluster that a logical destination names, and which of it. */
const logicalCluster = (map: ApicMap, destId: number): { readonly cluster: Cluster; readonly mask: number } => {
  switch (map.logicalMode) {
    case 'x2apic': {
      const offset = (destId >>> 16) * 16;
      const size = Math.min(map.maxApicId - offset + 1, 16);
      if (size <= 0) return { cluster: [], mask: 0 };
      const cluster = Array.from({ length: size }, (_, bit) => map.physical.get(offset + bit));
      return { cluster, mask: destId & (0xffff >> (16 - size)) };
    }
    case 'xapic-flat':
      return { cluster: map.flat, mask: destId & 0xff };
    case 'xapic-cluster':
      return { cluster: map.clusters[(destId >>> 4) & 0xf] ?? [], mask: destId & 0xf };
    default:
      return { cluster: [], mask: 0 };
  }
};

/** `kvm_recalculate_apic_map`: null if two vCPUs have one physical id. */
export const buildApicMap = (apics: Iterable<Lapic>, x2apicFormat: boolean): ApicMap | null => {
  const present = [...apics].filter((apic) => apic.hardwareEnabled);
  const map = new ApicMapBuilder(
    present.reduce((highest, apic) => Math.max(highest, apic.id), MIN_MAX_APIC_ID),
    x2apicFormat,
  );
  for (const apic of present) {
    if (!map.addPhysical(apic)) return null;
    map.addLogical(apic);
  }
  return map;
};

/** Number of set bits. */
const weight = (mask: number): number => {
  let count = 0;
  for (let rest = mask; rest !== 0; rest &= rest - 1) count++;
  return count;
};

/** `kvm_vector_to_index`: spreads lowest-priority interrupts over their destinations by vector (`vector_hashing`). */
const hashedIndex = (vector: number, mask: number): number => {
  let skip = vector % weight(mask);
  for (let bit = 0; ; bit++) {
    if (((mask >>> bit) & 1) === 0) continue;
    if (skip-- === 0) return bit;
  }
};

/** `kvm_apic_is_broadcast_dest`. */
const isBroadcast = (vm: VmIrq, source: Lapic | null, irq: LapicIrq, map: ApicMap): boolean => {
  if (vm.settings.x2apicBroadcastQuirkDisabled)
    return irq.destId === X2APIC_BROADCAST || (irq.destId === APIC_BROADCAST && map.logicalMode !== 'x2apic');
  return irq.destId === (source?.x2apic ? X2APIC_BROADCAST : APIC_BROADCAST);
};

const one = (apic: Lapic | undefined): readonly Lapic[] => (apic === undefined ? [] : [apic]);

/**
 * `kvm_apic_map_get_dest_lapic`: the destinations, possibly none; null if the map cannot tell and every APIC has to be
 * asked.
 */
const mappedDestinations = (vm: VmIrq, source: Lapic | null, irq: LapicIrq): readonly Lapic[] | null => {
  const map = vm.apicMap;
  if (irq.shorthand !== APIC_DEST_SHORTHAND.NONE || map === null || isBroadcast(vm, source, irq, map)) return null;
  if (!irq.logical) return irq.destId > map.maxApicId ? [] : one(map.physical.get(irq.destId));
  if (map.logicalMode === 'map-disabled') return null;
  const { cluster, mask } = logicalCluster(map, irq.destId);
  if (mask === 0) return [];
  if (isLowestPriority(irq)) return one(cluster[hashedIndex(irq.vector, mask)]);
  return cluster.filter((apic, bit): apic is Lapic => apic !== undefined && ((mask >>> bit) & 1) === 1);
};

/**
 * `kvm_irq_delivery_to_apic`. @returns how many APICs accepted the message; -1 if there was nobody to ask
 * @param source null for a message from a device
 */
export const deliverToApic = (vm: VmIrq, source: Lapic | null, irq: LapicIrq, rtc: RtcStatus | null): number => {
  if (irq.shorthand === APIC_DEST_SHORTHAND.SELF && source !== null) return source.setIrq(irq, rtc);
  const mapped = mappedDestinations(vm, source, irq);
  if (mapped !== null) return mapped.reduce((count, apic) => count + apic.setIrq(irq, rtc), 0);
  return deliverOneByOne(vm, source, withoutBroadcastLowest(irq), rtc);
};

/** A physical broadcast of lowest priority goes to everybody. */
const withoutBroadcastLowest = (irq: LapicIrq): LapicIrq =>
  !irq.logical && irq.destId === APIC_BROADCAST && isLowestPriority(irq) ? { ...irq, deliveryMode: APIC_DM.FIXED } : irq;

const deliverOneByOne = (vm: VmIrq, source: Lapic | null, irq: LapicIrq, rtc: RtcStatus | null): number => {
  let accepted = -1;
  const candidates: Lapic[] = [];
  for (const apic of vm.host.lapics()) {
    if (!apic.hardwareEnabled || !apicMatchesDest(apic, source, irq)) continue;
    if (!isLowestPriority(irq)) accepted = Math.max(accepted, 0) + apic.setIrq(irq, rtc);
    else if (apic.swEnabled) candidates.push(apic);
  }
  const chosen = candidates[irq.vector % candidates.length];
  return chosen === undefined ? accepted : chosen.setIrq(irq, rtc);
};

/** `kvm_bitmap_or_dest_vcpus`: the APICs that a device's message would reach. */
export const destinationsOf = (vm: VmIrq, irq: LapicIrq): readonly Lapic[] =>
  mappedDestinations(vm, null, irq) ??
  [...vm.host.lapics()].filter((apic) => apic.hardwareEnabled && apicMatchesDest(apic, null, irq));
