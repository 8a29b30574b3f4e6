import type { AsidRange } from '../../../hardware/amd/asid-keys.js';
import { type Asid, asid } from '../../../hardware/units.js';
import type { MiscCgroup, MiscResource } from '../../cgroup/misc.js';
import { Failure, type Result } from '../../failure.js';

/** `sev_misc_cg_res`: SEV-SNP guests count as SEV-ES ones. */
export const miscResource = (es: boolean): MiscResource => (es ? 'sev_es' : 'sev');

/** First and last ASID of a class of guests; `first > last`: there is none. */
export interface AsidSpan {
  readonly first: number;
  readonly last: number;
}

/** Plain SEV guests have the upper ASIDs, those of SEV-ES and SEV-SNP lie below them (CPUID Fn8000_001F ECX, EDX). */
export const asidSpan = ({ count, minSev }: AsidRange, es: boolean): AsidSpan =>
  es ? { first: 1, last: Math.min(minSev - 1, count) } : { first: Math.max(minSev, 1), last: count };

const noneOfClass = (es: boolean): Failure =>
  new Failure('ENOTTY', 'NO_ASIDS_OF_CLASS', 'sev_asid_new', { class: miscResource(es) });

const exhausted = ({ first, last }: AsidSpan): Failure =>
  new Failure('EBUSY', 'ASIDS_EXHAUSTED', 'sev_asid_new', { first: String(first), last: String(last) });

export interface AsidAllocatorOptions {
  readonly range: AsidRange;
  /** WBINVD on all CPUs and DF_FLUSH; a failure leaves the freed ASIDs unusable. */
  readonly flush: () => Failure | null;
  /** Told of each ASID that is handed out. */
  readonly onAllocate: (id: Asid) => void;
  /** Told of each ASID that is given back. */
  readonly onFree: (id: Asid) => void;
}

/**
 * `sev_asid_new` and `sev_asid_free`: two bitmaps under `sev_bitmap_lock`, which is never held across a wait. A freed
 * ASID stays allocated, and is only marked as reclaimable: caches may hold lines that are tagged with it. The flush that
 * makes all reclaimable ones free again comes when a class is exhausted.
 */
export class AsidAllocator {
  private readonly allocated = new Set<number>();
  private readonly reclaimable = new Set<number>();

  constructor(private readonly options: AsidAllocatorOptions) {}

  /** Charges `cgroup` and takes the lowest free ASID. ENOTTY: the host has none of this class; EBUSY: all are in use. */
  allocate(cgroup: MiscCgroup, es: boolean): Result<Asid> {
    const span = asidSpan(this.options.range, es);
    if (span.first > span.last) return noneOfClass(es);
    const refused = cgroup.tryCharge(miscResource(es));
    if (refused !== null) return refused;
    const id = this.firstFree(span) ?? (this.reclaim(span) ? this.firstFree(span) : null);
    if (id === null) {
      cgroup.uncharge(miscResource(es));
      return exhausted(span);
    }
    this.allocated.add(id);
    this.options.onAllocate(asid(id));
    return asid(id);
  }

  /**
   * What `allocate` would say now, unless the flush of freed ASIDs fails; null: it would give one. Nothing is taken or charged.
   */
  whyNone(cgroup: MiscCgroup, es: boolean): Failure | null {
    const span = asidSpan(this.options.range, es);
    if (span.first > span.last) return noneOfClass(es);
    const refused = cgroup.whyRefused(miscResource(es));
    if (refused !== null) return refused;
    return this.firstFree(span) === null && !this.canReclaim(span) ? exhausted(span) : null;
  }

  free(id: Asid, cgroup: MiscCgroup, es: boolean): void {
    this.options.onFree(id);
    this.reclaimable.add(id);
    cgroup.uncharge(miscResource(es));
  }

  /** Freed ASIDs that wait for a flush. */
  get toReclaim(): number {
    return this.reclaimable.size;
  }

  /** `__sev_recycle_asids`: one flush for all freed ASIDs of whatever class, if the wanted class has any. */
  private reclaim(span: AsidSpan): boolean {
    if (!this.canReclaim(span)) return false;
    if (this.options.flush() !== null) return false;
    for (const id of this.reclaimable) this.allocated.delete(id);
    this.reclaimable.clear();
    return true;
  }

  private canReclaim({ first, last }: AsidSpan): boolean {
    return [...this.reclaimable].some((id) => id >= first && id <= last);
  }

  private firstFree({ first, last }: AsidSpan): number | null {
    for (let id = first; id <= last; id++) if (!this.allocated.has(id)) return id;
    return null;
  }
}
