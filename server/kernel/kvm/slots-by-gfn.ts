import type { Gfn } from '../../hardware/units.js';

/** Guest frames of a slot. It keeps them as long as it is in a set. */
export interface FrameRange {
  readonly baseGfn: Gfn;
  readonly endGfn: Gfn;
}

/** More slots than this are two leaves. */
const LEAF_MAX = 128;

interface Leaf<S> {
  /** In ascending order of guest frames; never empty. */
  readonly slots: S[];
  /** Where each of them ends: a search goes through these words alone and not through the slots. */
  readonly ends: number[];
}

/** Index of the first end above a guest frame. */
const firstAbove = (ends: readonly number[], frame: number): number => {
  let low = 0;
  let high = ends.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((ends[middle] ?? 0) <= frame) low = middle + 1;
    else high = middle;
  }
  return low;
};

/**
 * `kvm_memslots::gfn_tree`: slots that do not overlap, by guest frame. A tree of two levels: what a change moves is one
 * leaf, and a search ends in the few words of one.
 */
export class SlotsByGfn<S extends FrameRange> {
  private readonly leaves: Leaf<S>[] = [];
  /** Where the last slot of each leaf ends. */
  private readonly ends: number[] = [];

  /** In ascending order of guest frames. */
  *[Symbol.iterator](): Generator<S> {
    for (const { slots } of this.leaves) yield* slots;
  }

  /** The lowest slot that ends above a guest frame. */
  firstEndingAbove(frame: Gfn): S | undefined {
    const leaf = this.leaves[firstAbove(this.ends, frame)];
    return leaf?.slots[firstAbove(leaf.ends, frame)];
  }

  add(slot: S): void {
    const last = Math.max(0, this.leaves.length - 1);
    const index = Math.min(firstAbove(this.ends, slot.baseGfn), last);
    const leaf = this.leaves[index] ?? { slots: [], ends: [] };
    const at = firstAbove(leaf.ends, slot.baseGfn);
    leaf.slots.splice(at, 0, slot);
    leaf.ends.splice(at, 0, slot.endGfn);
    this.put(index, leaf);
    if (leaf.slots.length > LEAF_MAX) this.split(index, leaf);
  }

  remove(slot: S): void {
    const index = firstAbove(this.ends, slot.baseGfn);
    const leaf = this.leaves[index];
    const at = leaf === undefined ? -1 : firstAbove(leaf.ends, slot.baseGfn);
    if (leaf === undefined || leaf.slots[at] !== slot) throw new Error(`no slot at guest frame ${slot.baseGfn}, or another`);
    leaf.slots.splice(at, 1);
    leaf.ends.splice(at, 1);
    if (leaf.slots.length > 0) this.put(index, leaf);
    else {
      this.leaves.splice(index, 1);
      this.ends.splice(index, 1);
    }
  }

  clear(): void {
    this.leaves.length = 0;
    this.ends.length = 0;
  }

  private put(index: number, leaf: Leaf<S>): void {
    this.leaves[index] = leaf;
    this.ends[index] = leaf.ends.at(-1) ?? 0;
  }

  private split(index: number, leaf: Leaf<S>): void {
    const half = LEAF_MAX / 2;
    const upper = { slots: leaf.slots.splice(half), ends: leaf.ends.splice(half) };
    this.leaves.splice(index + 1, 0, upper);
    this.ends.splice(index + 1, 0, upper.ends.at(-1) ?? 0);
    this.put(index, leaf);
  }
}
