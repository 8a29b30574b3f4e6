import { PAGE_SIZE, type Pfn } from '../../hardware/units.js';
import type { Page } from './page.js';
import type { PageProvider } from './page-provider.js';
import { PageSet } from './page-set.js';
import type { PageHolder, PageTable } from './page-table.js';

/**
 * What pages of an address space held at one moment, for somebody who only reads them, as fork keeps it for a child, at the cost
 * of a bit for each: a page stays where it is, write-protected, until it is written to or unmapped. Then whoever writes gets a
 * copy, and the page comes here. Shared memory is what its other users make of it. Addresses are those of first bytes.
 */
export class PageSnapshot implements PageHolder {
  /** By number: address / 4096. */
  private readonly pages = new PageSet();
  /** Those that the address space has given up. */
  private readonly kept = new Map<number, Page | Pfn>();

  /** For the address space. */
  constructor(
    private readonly table: PageTable,
    private readonly provider: PageProvider,
  ) {
    table.join(this);
  }

  /** Pages that have not been taken. */
  get size(): number {
    return this.pages.size;
  }

  /** For the address space: pages [first, last), all of which are present. */
  add(first: number, last: number): void {
    this.pages.addRange(first, last);
  }

  /** For the page table: whether it would have to give a page to this one. */
  wants(page: number): boolean {
    return this.pages.has(page) && !this.kept.has(page);
  }

  /** For the page table: it gives a page up, with its reference. */
  keep(page: number, entry: Page | Pfn): void {
    this.kept.set(page, entry);
  }

  /** Takes pages that follow one another: their contents go to `out`, and nobody keeps them for this one any more. */
  take(address: number, out: Uint8Array): void {
    const first = address / PAGE_SIZE;
    for (let done = 0; done < out.length; ) {
      const page = first + done / PAGE_SIZE;
      const bytes = this.contents(page, (out.length - done) / PAGE_SIZE);
      out.set(bytes, done);
      done += bytes.length;
      for (let taken = page; taken < first + done / PAGE_SIZE; taken++) this.letGo(taken);
    }
    if (this.size === 0) this.table.leave(this);
  }

  /** Nobody wants the rest any more. */
  release(): void {
    for (const page of this.pages.within(0, Number.POSITIVE_INFINITY)) this.letGo(page);
    this.table.leave(this);
  }

  /** Of a page, and of those behind it as far as they lie in one piece. */
  private contents(page: number, most: number): Uint8Array {
    const own = this.kept.get(page);
    if (own !== undefined) return typeof own === 'number' ? this.provider.contents(own, 1) : own.frame.view(null);
    let present = 1;
    while (present < most && this.wants(page + present)) present++;
    const bytes = this.table.bareRun(page, present) ?? this.table.get(page)?.frame.view(null);
    if (bytes === undefined || !this.pages.has(page)) throw new Error(`page ${page} is not in the snapshot`);
    return bytes;
  }

  private letGo(page: number): void {
    this.pages.delete(page);
    const own = this.kept.get(page);
    if (own === undefined) return;
    this.kept.delete(page);
    if (typeof own === 'number') this.provider.free(own);
    else own.put();
  }
}
