import type { Gfn } from '../../hardware/units.js';

/** Guest frames of a slot. It keeps them as long as it is in a set. */
export interface FrameRange {
  readonly baseGfn: Gfn;
  readonly endGfn: Gfn;
}

/** Places of a leaf, a power of four: a search reads two or three lines of a cache. */
const LEAF = 16;
/** Base and end of a place that is free: above every guest frame. */
const FREE = Number.POSITIVE_INFINITY;

/**
 * Index of the first end above a guest frame. Three places at a time, which the processor reads at once, cut what is left into
 * quarters; where to go on is computed and not branched to, for no predictor would know.
 */
const firstAbove = (ends: readonly number[], frame: number): number => {
  let low = 0;
  let left = ends.length;
  while (left >= 4) {
    const quarter = left >>> 2;
    low += quarter * quartersBelow(ends, low + quarter - 1, quarter, frame);
    left -= 3 * quarter;
  }
  for (const end = low + left; low < end && ends[low] <= frame; ) low++;
  return low;
};

/** How many of three ends, `step` apart, are not above a guest frame. */
const quartersBelow = (ends: readonly number[], first: number, step: number, frame: number): number =>
  Number(ends[first] <= frame) + Number(ends[first + step] <= frame) + Number(ends[first + 2 * step] <= frame);

/**
 * `kvm_memslots::gfn_tree`: slots that do not overlap, by guest frame. A tree of two levels, whose leaves lie one after the
 * other in three arrays: a search reads the ends of one leaf, and no slot but the one that it gives; a change moves what is in
 * one leaf.
 */
export class SlotsByGfn<S extends FrameRange> {
  /** Where the last slot of each leaf ends, in ascending order, and at which place the leaf begins. */
  private readonly leafEnds: number[] = [];
  private readonly leafAt: number[] = [];
  /** By place. In a leaf they ascend, and the free places are the last. */
  private readonly bases: number[] = [];
  private readonly ends: number[] = [];
  private readonly slots: (S | undefined)[] = [];
  /** Where leaves begin that are in no use. */
  private readonly spare: number[] = [];
  /** `last_used_slot`: a place and not a slot, so that a change leaves nothing behind that is wrong. */
  private last = 0;

  /** In ascending order of guest frames. */
  *[Symbol.iterator](): Generator<S> {
    for (const begin of this.leafAt)
      for (const slot of this.slots.slice(begin, begin + LEAF)) {
        if (slot === undefined) break;
        yield slot;
      }
  }

  /** The slot that holds a guest frame. */
  find(frame: Gfn): S | undefined {
    if (!this.holds(this.last, frame)) {
      const at = this.search(frame);
      if (!this.holds(at, frame)) return undefined;
      this.last = at;
    }
    return this.slots[this.last];
  }

  /** The lowest slot that ends above a guest frame. */
  firstEndingAbove(frame: Gfn): S | undefined {
    return this.slots[this.search(frame)];
  }

  add(slot: S): void {
    const leaf = this.leafFor(slot);
    const begin = this.leafAt[leaf];
    let at = begin + LEAF - 1;
    for (; at > begin && slot.baseGfn < this.ends[at - 1]; at--) this.move(at - 1, at);
    this.bases[at] = slot.baseGfn;
    this.ends[at] = slot.endGfn;
    this.slots[at] = slot;
    this.leafEnds[leaf] = Math.max(this.leafEnds[leaf], slot.endGfn);
  }

  remove(slot: S): void {
    const { slots } = this;
    const leaf = firstAbove(this.leafEnds, slot.baseGfn);
    let at = this.search(slot.baseGfn);
    if (slots[at] !== slot) throw new Error(`no slot at guest frame ${slot.baseGfn}, or another`);
    const begin = this.leafAt[leaf];
    for (; at < begin + LEAF - 1; at++) this.move(at + 1, at);
    this.vacate(at);
    if (slots[begin] === undefined) {
      this.leafEnds.splice(leaf, 1);
      this.leafAt.splice(leaf, 1);
      this.spare.push(begin);
    } else this.leafEnds[leaf] = this.lastEnd(begin);
  }

  clear(): void {
    for (const places of [this.leafEnds, this.leafAt, this.bases, this.ends, this.slots, this.spare]) places.length = 0;
  }

  private holds(at: number, frame: number): boolean {
    return at < this.ends.length && frame < this.ends[at] && this.bases[at] <= frame;
  }

  /** The place of the lowest slot that ends above a guest frame; behind all places if there is none. */
  private search(frame: number): number {
    const leaf = firstAbove(this.leafEnds, frame);
    if (leaf === this.leafEnds.length) return this.slots.length;
    let at = this.leafAt[leaf];
    for (let quarter = LEAF / 4; quarter > 0; quarter >>>= 2)
      at += quarter * quartersBelow(this.ends, at + quarter - 1, quarter, frame);
    return at;
  }

  /** The leaf, with a free place, that a slot belongs to. */
  private leafFor(slot: S): number {
    if (this.leafEnds.length === 0) this.insertLeaf(0);
    const leaf = Math.min(firstAbove(this.leafEnds, slot.baseGfn), this.leafEnds.length - 1);
    if (this.slots[this.leafAt[leaf] + LEAF - 1] === undefined) return leaf;
    this.split(leaf);
    return slot.baseGfn < this.leafEnds[leaf] ? leaf : leaf + 1;
  }

  /** The upper half of a full leaf becomes the next one. */
  private split(leaf: number): void {
    const begin = this.leafAt[leaf];
    const next = this.insertLeaf(leaf + 1);
    for (let half = 0; half < LEAF / 2; half++) {
      const from = begin + LEAF / 2 + half;
      this.move(from, next + half);
      this.vacate(from);
    }
    this.leafEnds[leaf] = this.lastEnd(begin);
    this.leafEnds[leaf + 1] = this.lastEnd(next);
  }

  /** A leaf of free places, which is put before the one that now has its number. @returns where it begins */
  private insertLeaf(leaf: number): number {
    const begin = this.spare.pop() ?? this.slots.length;
    for (let at = begin; at < begin + LEAF; at++) this.vacate(at);
    this.leafEnds.splice(leaf, 0, 0);
    this.leafAt.splice(leaf, 0, begin);
    return begin;
  }

  private move(from: number, to: number): void {
    const { bases, ends, slots } = this;
    bases[to] = bases[from];
    ends[to] = ends[from];
    slots[to] = slots[from];
  }

  private vacate(at: number): void {
    this.bases[at] = FREE;
    this.ends[at] = FREE;
    this.slots[at] = undefined;
  }

  /** Where the last slot of a leaf ends that is not empty. */
  private lastEnd(begin: number): number {
    let at = begin + LEAF - 1;
    while (this.ends[at] === FREE) at--;
    return this.ends[at];
  }
}
