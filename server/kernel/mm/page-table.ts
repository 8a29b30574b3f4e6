import { PAGE_SIZE, type Pfn } from '../../hardware/units.js';
import type { Page } from './page.js';
import type { PageProvider } from './page-provider.js';

/** Somebody who wants what a page holds now, also when it is in the address space no longer. */
export interface PageHolder {
  /** Whether a page is one of those, and still here. */
  wants(page: number): boolean;
  /** Takes a page that the address space gives up, with its reference. */
  keep(page: number, entry: Page | Pfn): void;
}

/** Entries of one table, as on x86. */
const ENTRIES = 512;

interface Table {
  /** Pages, and the frame numbers of bare ones. */
  readonly entries: (Page | Pfn | undefined)[];
  /** 1: a write does not fault. */
  readonly writable: Uint8Array;
  present: number;
}

const createTable = (): Table => ({
  entries: new Array<Page | Pfn | undefined>(ENTRIES).fill(undefined),
  writable: new Uint8Array(ENTRIES),
  present: 0,
});

/** Pages that follow one another. */
export interface PageRun {
  readonly first: number;
  readonly count: number;
}

/** Number of the page that an address lies in. */
export const pageOf = (address: number): number => Math.floor(address / PAGE_SIZE);

const tableIndex = (page: number): number => Math.floor(page / ENTRIES);

/**
 * The page tables of an address space, by page number (address / 4096). A bare page (see `PageProvider`) is a number here and
 * nothing else: it belongs to this address space alone, and is writable unless it is held.
 */
export class PageTable {
  /** Pages that are present. */
  size = 0;
  private readonly tables = new Map<number, Table>();
  /** The table that was looked at last. */
  private lastIndex = -1;
  private last: Table | undefined;
  private holders: readonly PageHolder[] = [];

  constructor(private readonly provider: PageProvider) {}

  has(page: number): boolean {
    return this.tableOf(page)?.entries[page % ENTRIES] !== undefined;
  }

  /** The page, which is not bare from now on. */
  get(page: number): Page | undefined {
    const table = this.tableOf(page);
    if (table === undefined) return undefined;
    const entry = table.entries[page % ENTRIES];
    if (typeof entry !== 'number') return entry;
    const made = this.provider.page(entry);
    table.entries[page % ENTRIES] = made;
    return made;
  }

  isWritable(page: number): boolean {
    return this.tableOf(page)?.writable[page % ENTRIES] === 1;
  }

  /** Maps a page, whose reference becomes the table's. */
  set(page: number, entry: Page, writable: boolean): void {
    this.enter(page, entry, writable);
  }

  setBare(page: number, frame: Pfn): void {
    this.enter(page, frame, true);
  }

  /** @param page one that is present */
  setWritable(page: number, writable: boolean): void {
    const table = this.tableOf(page);
    if (table !== undefined) table.writable[page % ENTRIES] = writable ? 1 : 0;
  }

  /** Puts a page in the place of one that is present. */
  replace(page: number, entry: Page, writable: boolean): void {
    this.remove(page);
    this.enter(page, entry, writable);
  }

  /** Makes the next write to any of the pages [first, last) fault. */
  writeProtect(first: number, last: number): void {
    for (let page = first; page < last; ) {
      const end = Math.min(last, (tableIndex(page) + 1) * ENTRIES);
      const from = page % ENTRIES;
      this.tableOf(page)?.writable.fill(0, from, from + end - page);
      page = end;
    }
  }

  /** From now on a page that somebody holds is not given up without him. */
  join(holder: PageHolder): void {
    this.holders = [...this.holders, holder];
  }

  leave(holder: PageHolder): void {
    this.holders = this.holders.filter((each) => each !== holder);
  }

  isHeld(page: number): boolean {
    return this.holders.some((each) => each.wants(page));
  }

  /** Contents of the bare pages from `first` on, at most `count`, as far as they lie in one piece; null: that one is not bare. */
  bareRun(first: number, count: number): Uint8Array | null {
    const { provider } = this;
    const frame = this.bareAt(first);
    if (frame === null) return null;
    let pages = 1;
    for (let last = frame; pages < count; pages++) {
      const next = this.bareAt(first + pages);
      if (next === null || !provider.adjoins(last, next)) break;
      last = next;
    }
    return provider.contents(frame, pages);
  }

  /** Numbers of the pages in [first, last) that are present, in ascending order. */
  *pages(first: number, last: number): Generator<number> {
    for (const { first: begin, count } of this.runs(first, last)) for (let page = begin; page < begin + count; page++) yield page;
  }

  /** The same as runs of pages of one table: going through a large guest's one by one takes a while. */
  *runs(first: number, last: number): Generator<PageRun> {
    for (const index of this.indices(first, last)) {
      const [from, to] = [Math.max(first, index * ENTRIES), Math.min(last, (index + 1) * ENTRIES)];
      for (let begin = from, end = from; begin < to; begin = end + 1) {
        for (end = begin; end < to && this.has(end); ) end++;
        if (end > begin) yield { first: begin, count: end - begin };
      }
    }
  }

  /** Unmaps pages [first, last), but for those that are to stay. */
  drop(first: number, last: number, stays: (page: number) => boolean): void {
    for (const index of this.indices(first, last)) {
      const [from, to] = [Math.max(first, index * ENTRIES), Math.min(last, (index + 1) * ENTRIES)];
      for (let page = from; page < to; page++) if (this.has(page) && !stays(page)) this.remove(page);
    }
  }

  private remove(page: number): void {
    const table = this.tableOf(page);
    const entry = table?.entries[page % ENTRIES];
    if (table === undefined || entry === undefined) return;
    table.entries[page % ENTRIES] = undefined;
    this.size--;
    if (--table.present === 0) {
      this.tables.delete(tableIndex(page));
      this.lastIndex = -1;
    }
    if (this.isHeld(page)) this.handOver(page, entry);
    else if (typeof entry === 'number') this.provider.free(entry);
    else entry.put();
  }

  private handOver(page: number, entry: Page | Pfn): void {
    const holders = this.holders.filter((each) => each.wants(page));
    const given = holders.length > 1 && typeof entry === 'number' ? this.provider.page(entry) : entry;
    for (const [index, holder] of holders.entries())
      holder.keep(page, index > 0 && typeof given !== 'number' ? given.get() : given);
  }

  private enter(page: number, entry: Page | Pfn, writable: boolean): void {
    const at = page % ENTRIES;
    const table = this.tableOf(page) ?? this.addTable(tableIndex(page));
    if (table.entries[at] === undefined) {
      table.present++;
      this.size++;
    }
    table.entries[at] = entry;
    table.writable[at] = writable ? 1 : 0;
  }

  private addTable(index: number): Table {
    const table = createTable();
    this.tables.set(index, table);
    this.lastIndex = -1;
    return table;
  }

  private tableOf(page: number): Table | undefined {
    const index = tableIndex(page);
    if (index !== this.lastIndex) {
      this.lastIndex = index;
      this.last = this.tables.get(index);
    }
    return this.last;
  }

  private bareAt(page: number): Pfn | null {
    const entry = this.tableOf(page)?.entries[page % ENTRIES];
    return typeof entry === 'number' ? entry : null;
  }

  /** Of the tables that have pages of [first, last), in ascending order. */
  private *indices(first: number, last: number): Generator<number> {
    const [from, to] = [tableIndex(first), Math.ceil(last / ENTRIES)];
    if (to - from > this.tables.size) {
      const present = [...this.tables.keys()].filter((index) => index >= from && index < to);
      yield* present.sort((a, b) => a - b);
    } else for (let index = from; index < to; index++) if (this.tables.has(index)) yield index;
  }
}
