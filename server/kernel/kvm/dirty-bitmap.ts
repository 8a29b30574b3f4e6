/** Pages for which one chunk of the bitmap has bits: 4 KiB of it. */
const CHUNK_PAGES = 32_768;
const CHUNK_BYTES = CHUNK_PAGES / 8;

/**
 * `memslot->dirty_bitmap`: one bit for each page of a slot. The kernel allocates all of it; here the pages of it that
 * have never had a bit set are not there, so that a huge slot costs the daemon nothing (it is charged in full).
 */
export class DirtyBitmap {
  private readonly chunks = new Map<number, Uint8Array>();

  constructor(readonly npages: number) {}

  /** `kvm_dirty_bitmap_bytes`: what userspace reads, whole 64-bit words. */
  get bytes(): number {
    return Math.ceil(this.npages / 64) * 8;
  }

  set(page: number): void {
    const chunk = this.chunk(Math.floor(page / CHUNK_PAGES));
    const bit = page % CHUNK_PAGES;
    chunk[bit >>> 3] = (chunk[bit >>> 3] ?? 0) | (1 << (bit & 7));
  }

  test(page: number): boolean {
    const bit = page % CHUNK_PAGES;
    return (((this.chunks.get(Math.floor(page / CHUNK_PAGES))?.[bit >>> 3] ?? 0) >>> (bit & 7)) & 1) === 1;
  }

  /** `bitmap_set` of every page (KVM_DIRTY_LOG_INITIALLY_SET). */
  setAll(): void {
    for (let first = 0; first < this.npages; first += CHUNK_PAGES) {
      const pages = Math.min(CHUNK_PAGES, this.npages - first);
      const chunk = this.chunk(first / CHUNK_PAGES);
      chunk.fill(0xff, 0, pages >>> 3);
      if ((pages & 7) !== 0) chunk[pages >>> 3] = (1 << (pages & 7)) - 1;
    }
  }

  /** Bytes [first, first + length) of the bitmap, little-endian bit order. */
  read(first: number, length: number): Uint8Array {
    const out = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const at = (first + done) % CHUNK_BYTES;
      const count = Math.min(CHUNK_BYTES - at, length - done);
      const chunk = this.chunks.get(Math.floor((first + done) / CHUNK_BYTES));
      if (chunk !== undefined) out.set(chunk.subarray(at, at + count), done);
      done += count;
    }
    return out;
  }

  /** True if no bit has been set since the last `clearAll`. */
  get empty(): boolean {
    return this.chunks.size === 0;
  }

  /** Pages in [first, last) whose bit is set, in ascending order. */
  *pages(first: number, last: number): Generator<number> {
    for (let page = first; page < last; ) {
      const chunk = this.chunks.get(Math.floor(page / CHUNK_PAGES));
      const byte = chunk?.[(page % CHUNK_PAGES) >>> 3] ?? 0;
      if (chunk === undefined) page += CHUNK_PAGES - (page % CHUNK_PAGES);
      else if (byte === 0) page += 8 - (page & 7);
      else if ((byte >>> (page & 7)) & 1) yield page++;
      else page++;
    }
  }

  clear(page: number): void {
    const chunk = this.chunks.get(Math.floor(page / CHUNK_PAGES));
    const bit = page % CHUNK_PAGES;
    if (chunk !== undefined) chunk[bit >>> 3] = (chunk[bit >>> 3] ?? 0) & ~(1 << (bit & 7));
  }

  clearAll(): void {
    this.chunks.clear();
  }

  private chunk(index: number): Uint8Array {
    let chunk = this.chunks.get(index);
    if (chunk === undefined) {
      chunk = new Uint8Array(CHUNK_BYTES);
      this.chunks.set(index, chunk);
    }
    return chunk;
  }
}
