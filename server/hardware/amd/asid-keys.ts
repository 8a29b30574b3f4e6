import type { MemoryKey } from '../dram.js';
import { type Asid, asid } from '../units.js';

/** The ASIDs of a host, as CPUID Fn8000_001F reports them in ECX and EDX. */
export interface AsidRange {
  /** Highest ASID; 0 is the host. */
  readonly count: number;
  /** Lowest ASID of a plain SEV guest; below it are those of SEV-ES and SEV-SNP guests. */
  readonly minSev: number;
}

export type FlushResult = 'flushed' | 'wbinvd-required';

/**
 * The key slots of the memory controllers, one for each ASID, and what the secure processor remembers about flushing
 * them (sev-firmware.md 1.3, 4.4): an ASID whose key was removed is dirty until every core has executed WBINVD and the
 * data fabric has been flushed, in this order, because the caches may still hold lines that are tagged with it.
 */
export class AsidKeys {
  private readonly slots: (MemoryKey | null)[];
  private readonly dirty = new Set<Asid>();
  /** Of the dirty ones, those of which caches do hold lines: a guest's key was in their slot. */
  private readonly stale = new Set<Asid>();
  /** Cores that have not executed WBINVD since the last key was removed. */
  private readonly wbinvdPending = new Set<number>();

  /** @param cpus number of CPUs of the host, each of which must execute WBINVD before a flush */
  constructor(
    readonly range: AsidRange,
    readonly cpus: number,
  ) {
    this.slots = new Array<MemoryKey | null>(range.count + 1).fill(null);
  }

  /** The key that the controllers use for an ASID, or null: VMRUN with such an ASID fails. */
  keyOf(id: Asid): MemoryKey | null {
    return this.slots[id] ?? null;
  }

  /** Whether some ASID has this key. A line that is dirty under a key without a slot can no longer reach DRAM intact. */
  isLoaded(key: MemoryKey): boolean {
    return this.slots.includes(key);
  }

  /** ASIDs that have a key now, in ascending order. */
  loaded(): Asid[] {
    return this.slots.flatMap((key, id) => (key === null ? [] : [asid(id)]));
  }

  /** Whether this ASID was used and has not been flushed since, so that ACTIVATE refuses it. */
  isDirty(id: Asid): boolean {
    return this.dirty.has(id);
  }

  /** Whether a guest had this ASID, and it has not been flushed since. */
  isStale(id: Asid): boolean {
    return this.stale.has(id);
  }

  /** Whether some ASID was used and has not been flushed since. */
  get needsFlush(): boolean {
    return this.dirty.size > 0;
  }

  /** ACTIVATE: puts a guest's key in a slot. The secure processor has checked that the slot is free and clean. */
  load(id: Asid, key: MemoryKey): void {
    if (this.keyOf(id) !== null || this.dirty.has(id)) throw new Error(`ASID ${id} loaded while in use or dirty`);
    this.slots[id] = key;
  }

  /** DEACTIVATE: removes the key; the ASID is dirty, and every core's WBINVD counts as not done. */
  unload(id: Asid): void {
    this.slots[id] = null;
    this.dirty.add(id);
    this.stale.add(id);
    this.requireWbinvd();
  }

  /** Initialisation and shutdown: nothing is known about what the caches hold, so every ASID without a key is dirty. */
  invalidateUnused(): void {
    for (let id = 1; id <= this.range.count; id++) if (this.slots[id] === null) this.dirty.add(asid(id));
    this.requireWbinvd();
  }

  /** A core has executed WBINVD. */
  wbinvd(cpu: number): void {
    this.wbinvdPending.delete(cpu);
  }

  /** DF_FLUSH: makes all dirty ASIDs usable, if no core's WBINVD is missing. */
  flushDataFabric(): FlushResult {
    if (this.wbinvdPending.size > 0) return 'wbinvd-required';
    this.dirty.clear();
    this.stale.clear();
    return 'flushed';
  }

  private requireWbinvd(): void {
    for (let cpu = 0; cpu < this.cpus; cpu++) this.wbinvdPending.add(cpu);
  }
}
