/** Pages of one chunk, a bit for each: 16 MiB of address space in 512 bytes. */
const CHUNK = 4096;
const WORD_BITS = 32;

interface Chunk {
  readonly words: Uint32Array;
  count: number;
}

/** A set of page numbers: sparse over an address space, dense where there are many. */
export class PageSet {
  size = 0;
  private readonly chunks = new Map<number, Chunk>();

  has(page: number): boolean {
    const words = this.chunks.get(Math.floor(page / CHUNK))?.words;
    return words !== undefined && ((words[wordOf(page)] ?? 0) & bitOf(page)) !== 0;
  }

  /** Adds pages [first, last). */
  addRange(first: number, last: number): void {
    for (let from = first; from < last; ) {
      const to = Math.min(last, (Math.floor(from / CHUNK) + 1) * CHUNK);
      this.addToChunk(from, to);
      from = to;
    }
  }

  /** @returns whether it was there */
  delete(page: number): boolean {
    const index = Math.floor(page / CHUNK);
    const chunk = this.chunks.get(index);
    const word = chunk?.words[wordOf(page)] ?? 0;
    if (chunk === undefined || (word & bitOf(page)) === 0) return false;
    chunk.words[wordOf(page)] = word & ~bitOf(page);
    this.size--;
    if (--chunk.count === 0) this.chunks.delete(index);
    return true;
  }

  /** Those in [first, last), which may be deleted meanwhile. */
  *within(first: number, last: number): Generator<number> {
    for (const [index, { words }] of this.chunks) {
      const [from, to] = [Math.max(first, index * CHUNK), Math.min(last, (index + 1) * CHUNK)];
      for (let page = from; page < to; page++) if (((words[wordOf(page)] ?? 0) & bitOf(page)) !== 0) yield page;
    }
  }

  /** Pages of one chunk. */
  private addToChunk(from: number, to: number): void {
    const index = Math.floor(from / CHUNK);
    let chunk = this.chunks.get(index);
    if (chunk === undefined) {
      chunk = { words: new Uint32Array(CHUNK / WORD_BITS), count: 0 };
      this.chunks.set(index, chunk);
    }
    const { words, count } = chunk;
    if (count === 0 && to - from === CHUNK) {
      words.fill(-1 >>> 0);
      chunk.count = CHUNK;
    } else
      for (let page = from; page < to; page++) {
        const word = words[wordOf(page)] ?? 0;
        if ((word & bitOf(page)) !== 0) continue;
        words[wordOf(page)] = word | bitOf(page);
        chunk.count++;
      }
    this.size += chunk.count - count;
  }
}

const wordOf = (page: number): number => Math.floor((page % CHUNK) / WORD_BITS);
const bitOf = (page: number): number => 1 << (page % WORD_BITS);
