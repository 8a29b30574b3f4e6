import type { FrameRun } from './guest.js';

const WORD_BITS = 32;

/** A set of guest frames inside one slot, one bit for each: ordered, and cheap to go through. */
export class FrameSet {
  size = 0;
  private readonly words: Uint32Array;

  constructor(
    private readonly base: number,
    private readonly count: number,
  ) {
    this.words = new Uint32Array(Math.ceil(count / WORD_BITS));
  }

  get end(): number {
    return this.base + this.count;
  }

  contains(frame: number): boolean {
    return frame >= this.base && frame < this.end;
  }

  /** @param frame one that the slot contains */
  has(frame: number): boolean {
    const index = frame - this.base;
    return ((this.words[index >>> 5] ?? 0) & (1 << (index & 31))) !== 0;
  }

  /** @param frame one that the slot contains */
  add(frame: number): void {
    const index = frame - this.base;
    const word = this.words[index >>> 5] ?? 0;
    const bit = 1 << (index & 31);
    if ((word & bit) !== 0) return;
    this.words[index >>> 5] = word | bit;
    this.size++;
  }

  delete(frame: number): void {
    const index = frame - this.base;
    const word = this.words[index >>> 5] ?? 0;
    const bit = 1 << (index & 31);
    if ((word & bit) === 0) return;
    this.words[index >>> 5] = word & ~bit;
    this.size--;
  }

  /** The first frame of the set from one on; null: there is none. */
  next(from: number): number | null {
    return this.find(from, 0);
  }

  /** Those that follow one another, in ascending order. */
  *runs(): Generator<FrameRun> {
    for (let first = this.next(this.base); first !== null; ) {
      // Behind the last frame of the slot the last word has bits that are in no set.
      const end = Math.min(this.find(first, -1) ?? this.end, this.end);
      yield { first, count: end - first };
      first = this.next(end);
    }
  }

  /** The first frame from one on that is in the set (`inverted` 0), or is not (-1: the words are looked at inverted). */
  private find(from: number, inverted: 0 | -1): number | null {
    const { words, base } = this;
    const start = Math.max(0, from - base);
    let at = start >>> 5;
    if (at >= words.length) return null;
    let word = ((words[at] ?? 0) ^ inverted) & (-1 << (start & 31));
    while (word === 0) {
      if (++at >= words.length) return null;
      word = (words[at] ?? 0) ^ inverted;
    }
    return base + at * WORD_BITS + (31 - Math.clz32(word & -word));
  }
}
