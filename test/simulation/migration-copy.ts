import type { HeldMemory } from '../../server/migration/guest.js';

/** Of the guest. */
export const PAGES = 24;

/** A copy of the guest on one host. */
export class Copy {
  readonly memory: number[] = new Array(PAGES).fill(0);
  /** Its vCPUs may run. */
  runnable = false;
  /** It takes no memory any more. */
  gone = false;
  /** Post-copy: pages that have not come, and whose guest waits for them. */
  readonly missing = new Set<number>();
  readonly awaited = new Set<number>();
  /** What is missing will never come. */
  lost = false;
  /** Of the source: memory that it keeps for a guest that has gone. */
  held: HeldMemory | null = null;
}

export const bytesOf = (values: readonly number[]): Uint8Array => new Uint8Array(Uint32Array.from(values).buffer);

/** The counters of pages that are owed, as they are now. */
export const heldMemory = (owed: Set<number>, copy: Copy): HeldMemory => {
  const left = new Map([...owed].map((page) => [page, copy.memory[page] ?? 0]));
  const wanted: number[] = [];
  owed.clear();
  return {
    get size() {
      return left.size;
    },
    runs: [...left.keys()].map((first) => ({ first, count: 1 })),
    get urgent() {
      return wanted.length > 0;
    },
    want: (gfns) => {
      const fresh = gfns.filter((gfn) => left.has(gfn) && !wanted.includes(gfn));
      wanted.push(...fresh);
      return fresh.length;
    },
    next: (count) => {
      const gfns = wanted.length > 0 ? wanted.splice(0, count) : [...left.keys()].slice(0, count);
      if (gfns.length === 0) return null;
      const data = bytesOf(gfns.map((gfn) => left.get(gfn) ?? 0));
      for (const gfn of gfns) left.delete(gfn);
      return { form: 'clear', gfns, headers: new Uint8Array(0), data };
    },
    release: () => {
      left.clear();
      copy.held = null;
    },
  };
};
