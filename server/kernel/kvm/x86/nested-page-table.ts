import type { Charge } from '../../../hardware/costs.js';
import type { Frame } from '../../../hardware/dram.js';
import { type Gfn, gfn, PAGE_SIZE } from '../../../hardware/units.js';
import type { KmemCharge, KmemOwner } from '../../kmem.js';
import { LazyMap } from '../../lazy-map.js';
import { KMEM_SIZE } from '../kmem-sizes.js';
import type { Memslot } from '../memslots.js';

const ENTRY_BITS = 9;
const ENTRIES = 1 << ENTRY_BITS;
/** `get_npt_level` of a host without five-level paging: guest frame numbers of 36 bits. */
const LEVELS = 4;
/** First guest frame that the table cannot hold. */
const GFN_END = ENTRIES ** LEVELS;

/** A leaf of the table. It holds no reference on the frame: whoever takes the frame away zaps the entry first. */
export type Spte =
  | { readonly kind: 'mapped'; readonly frame: Frame; readonly slot: Memslot; writable: boolean }
  /** No slot was there when the memslots had this generation. Marked by a reserved bit in the real entry. */
  | { readonly kind: 'mmio'; readonly generation: number };

type Entry = Table | Spte | undefined;

/** One page of the table. */
class Table {
  readonly entries: Entry[] = new Array<Entry>(ENTRIES);

  constructor(
    /** 1: its entries are leaves. */
    readonly level: number,
  ) {}
}

const indexAt = (frame: number, level: number): number => Math.floor(frame / ENTRIES ** (level - 1)) % ENTRIES;

/**
 * The nested page table of a VM, as the TDP MMU keeps it: one root for all vCPUs, four levels of 512 entries, pages
 * allocated when an entry needs them. The host maps 4 KiB pages only; there are no huge entries.
 */
export class NestedPageTable {
  private root: Table | null = null;
  private tables = 0;
  private readonly pages: KmemCharge;
  private readonly headers: KmemCharge;
  /** How many entries map a frame: the other way round, for whoever asks who can reach it. */
  private readonly reverse = new LazyMap<Frame, number>();

  constructor(
    kmem: KmemOwner,
    private readonly charge: Charge,
  ) {
    this.pages = kmem.charge('mmu_page_table', 0);
    this.headers = kmem.charge('kvm_mmu_page_header', 0);
  }

  /** Pages of the table, the root included. */
  get tableCount(): number {
    return this.tables;
  }

  get hasRoot(): boolean {
    return this.root !== null;
  }

  /** Guest frames that the table can hold. */
  static holds(frame: Gfn): boolean {
    return frame < GFN_END;
  }

  maps(frame: Frame): boolean {
    return this.reverse.has(frame);
  }

  /** `kvm_mmu_load`: the root is there afterwards. */
  load(): void {
    this.root ??= this.allocate(LEVELS);
  }

  find(frame: Gfn): Spte | undefined {
    let table: Table | null = NestedPageTable.holds(frame) ? this.root : null;
    while (table !== null) {
      const entry: Entry = table.entries[indexAt(frame, table.level)];
      if (!(entry instanceof Table)) return entry;
      table = entry;
    }
    return undefined;
  }

  set(frame: Gfn, spte: Spte): void {
    this.root ??= this.allocate(LEVELS);
    let table = this.root;
    while (table.level > 1) {
      const index = indexAt(frame, table.level);
      const entry = table.entries[index];
      if (entry instanceof Table) {
        table = entry;
        continue;
      }
      const below = this.allocate(table.level - 1);
      table.entries[index] = below;
      table = below;
    }
    const index = indexAt(frame, 1);
    const old = table.entries[index];
    if (old !== undefined && !(old instanceof Table)) this.forget(old);
    table.entries[index] = spte;
    if (spte.kind === 'mapped') this.reverse.set(spte.frame, (this.reverse.get(spte.frame) ?? 0) + 1);
  }

  /** `kvm_tdp_mmu_zap_leafs`: clears the leaves of [first, last); the table's pages stay. Returns how many there were. */
  zapLeaves(first: Gfn, last: Gfn): number {
    let zapped = 0;
    this.forEachLeaf(first, last, (spte, table, index) => {
      table.entries[index] = undefined;
      this.forget(spte);
      zapped++;
    });
    if (zapped > 0) this.charge('pte_zapped', zapped);
    return zapped;
  }

  /** `kvm_tdp_mmu_invalidate_roots` and `kvm_tdp_mmu_zap_invalidated_roots`: the whole table goes. Returns the leaves. */
  zapAll(): number {
    const zapped = this.zapLeaves(gfn(0), gfn(GFN_END));
    if (this.tables > 0) this.charge('page_table_freed', this.tables);
    this.root = null;
    this.tables = 0;
    this.account();
    return zapped;
  }

  /** Every mapped leaf in [first, last). */
  forEachMapped(first: Gfn, last: Gfn, visit: (frame: Gfn, spte: Spte & { readonly kind: 'mapped' }) => void): void {
    this.forEachLeaf(first, last, (spte, _table, _index, frame) => {
      if (spte.kind === 'mapped') visit(frame, spte);
    });
  }

  /** The VM is gone. */
  free(): void {
    this.zapAll();
    this.pages.release();
    this.headers.release();
  }

  private forEachLeaf(first: Gfn, last: Gfn, visit: (spte: Spte, table: Table, index: number, frame: Gfn) => void): void {
    const end = Math.min(last, GFN_END);
    const walk = (table: Table, base: number): void => {
      const span = ENTRIES ** (table.level - 1);
      const from = Math.max(0, Math.floor((first - base) / span));
      const to = Math.min(ENTRIES - 1, Math.floor((end - 1 - base) / span));
      for (let index = from; index <= to; index++) {
        const entry = table.entries[index];
        if (entry instanceof Table) walk(entry, base + index * span);
        else if (entry !== undefined) visit(entry, table, index, gfn(base + index));
      }
    };
    if (this.root !== null && first < end) walk(this.root, 0);
  }

  private forget(spte: Spte): void {
    if (spte.kind !== 'mapped') return;
    const count = this.reverse.get(spte.frame) ?? 0;
    if (count <= 1) this.reverse.delete(spte.frame);
    else this.reverse.set(spte.frame, count - 1);
  }

  private allocate(level: number): Table {
    this.tables++;
    this.charge('page_allocated');
    this.charge('page_zeroed');
    this.account();
    return new Table(level);
  }

  private account(): void {
    this.pages.resize(this.tables * PAGE_SIZE);
    this.headers.resize(this.tables * KMEM_SIZE.kvm_mmu_page_header);
  }
}
