import { PAGE_SIZE } from '../hardware/units.js';
import type { Memslots } from '../kernel/kvm/memslots.js';

/** Frames [first, end) show the memory of the frames that lie `less` below them. */
interface Alias {
  readonly first: number;
  readonly end: number;
  readonly less: number;
}

/** Guest frames from `frame` on show pages [start, end) of the process. */
interface Window {
  readonly frame: number;
  readonly start: number;
  readonly end: number;
}

/** What of two windows is the same memory: the later guest frames are aliases of the earlier ones. */
const aliasOf = (one: Window, other: Window): Alias => {
  const [before, behind] = one.frame < other.frame ? [one, other] : [other, one];
  const start = Math.max(one.start, other.start);
  const first = behind.frame + start - behind.start;
  return {
    first,
    end: first + Math.min(one.end, other.end) - start,
    less: first - (before.frame + start - before.start),
  };
};

/**
 * Guest frames that show the same memory as frames of a slot before theirs. Such memory is sent once, as the first of its
 * frames, and is the same memory at the destination.
 */
export class Aliases {
  /** Those that lead furthest back come first. */
  private readonly aliases: readonly Alias[];

  constructor(memslots: Memslots) {
    const windows = [...memslots].map(({ baseGfn, npages, userspaceAddr }): Window => {
      const start = userspaceAddr / PAGE_SIZE;
      return { frame: baseGfn, start, end: start + npages };
    });
    windows.sort((one, other) => one.start - other.start);
    const found: Alias[] = [];
    let open: Window[] = [];
    for (const window of windows) {
      open = open.filter(({ end }) => end > window.start);
      for (const other of open) found.push(aliasOf(window, other));
      open.push(window);
    }
    this.aliases = found.sort((one, other) => one.first - one.less - (other.first - other.less));
  }

  /** The first frame that shows what `frame` shows. */
  firstOf(frame: number): number {
    for (const { first, end, less } of this.aliases) if (frame >= first && frame < end) return frame - less;
    return frame;
  }
}
