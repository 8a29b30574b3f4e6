import type { Frame, MemoryKey } from '../dram.js';
import type { MappedPage } from './types.js';

const ENTRIES = 512;
const PAGE_BASE = ~0xfff;
/** No page begins here. */
const EMPTY = 1;

/** A translation: the frame and its bytes through the key. */
export class TlbEntry {
  readonly frame: Frame;
  readonly key: MemoryKey | null;
  bytes: Uint8Array;
  view: DataView;
  private generation: number;

  constructor(
    page: MappedPage,
    readonly global: boolean,
    readonly large: boolean,
  ) {
    this.frame = page.frame;
    this.key = page.key;
    this.bytes = page.frame.view(page.key);
    this.view = viewOf(this.bytes);
    this.generation = page.frame.generation;
  }

  /**
   * Whether `view` may be written to as it is: not where others hold decoded instructions from the frame. A write
   * through a key leaves dirty lines under it, which the frame is told.
   */
  admitWrite(): boolean {
    if (this.frame.codeCached) return false;
    if (this.key !== null) this.frame.viewForWrite(this.key);
    return true;
  }

  /** Makes `bytes` current again after somebody has looked at the frame through another key. */
  refresh(): void {
    if (this.frame.generation === this.generation) return;
    const bytes = this.frame.view(this.key);
    if (bytes !== this.bytes) {
      this.bytes = bytes;
      this.view = viewOf(bytes);
    }
    this.generation = this.frame.generation;
  }
}

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** The tags of every cache that holds nothing; never written. A CPU that has not run takes no memory for its TLBs. */
const NO_TAGS = new Int32Array(ENTRIES).fill(EMPTY);

/** Direct-mapped cache of translations for one kind of access at one privilege. */
export class Tlb {
  private tagLo = NO_TAGS;
  private tagHi = NO_TAGS;
  private entries: (TlbEntry | null)[] = [];
  private large = false;

  static entry(page: MappedPage, global: boolean, large: boolean): TlbEntry {
    return new TlbEntry(page, global, large);
  }

  /** The current translation of an address, or null. */
  find(lo: number, hi: number): TlbEntry | null {
    const index = (lo >>> 12) & (ENTRIES - 1);
    if (this.tagLo[index] !== (lo & PAGE_BASE) || this.tagHi[index] !== hi) return null;
    const entry = this.entries[index];
    if (entry !== null) entry.refresh();
    return entry;
  }

  insert(lo: number, hi: number, page: MappedPage, global: boolean, large: boolean): TlbEntry {
    if (this.tagLo === NO_TAGS) this.allocate();
    const index = (lo >>> 12) & (ENTRIES - 1);
    const entry = new TlbEntry(page, global, large);
    this.tagLo[index] = lo & PAGE_BASE;
    this.tagHi[index] = hi;
    this.entries[index] = entry;
    this.large ||= large;
    return entry;
  }

  private allocate(): void {
    this.tagLo = new Int32Array(ENTRIES).fill(EMPTY);
    this.tagHi = new Int32Array(ENTRIES);
    this.entries = new Array<TlbEntry | null>(ENTRIES).fill(null);
  }

  flush(): void {
    if (this.tagLo === NO_TAGS) return;
    this.tagLo.fill(EMPTY);
    this.entries.fill(null);
    this.large = false;
  }

  flushNonGlobal(): void {
    if (this.tagLo === NO_TAGS) return;
    for (let index = 0; index < ENTRIES; index++) {
      if (this.entries[index]?.global === true) continue;
      this.tagLo[index] = EMPTY;
      this.entries[index] = null;
    }
  }

  /** A large page is here in pieces, and all of them go. */
  invalidate(lo: number, hi: number): void {
    const index = (lo >>> 12) & (ENTRIES - 1);
    if (this.tagLo[index] === (lo & PAGE_BASE) && this.tagHi[index] === hi) {
      this.tagLo[index] = EMPTY;
      this.entries[index] = null;
    }
    if (!this.large) return;
    this.large = false;
    for (let other = 0; other < ENTRIES; other++) {
      if (this.entries[other]?.large !== true) continue;
      this.tagLo[other] = EMPTY;
      this.entries[other] = null;
    }
  }
}
