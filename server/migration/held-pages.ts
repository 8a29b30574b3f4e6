import { gfn, PAGE_SIZE } from '../hardware/units.js';
import { Failure, failed, type Result } from '../kernel/failure.js';
import type { Vm } from '../kernel/kvm/vm.js';
import type { Page } from '../kernel/mm/page.js';
import type { BatchRoom } from './batch-room.js';
import type { FrameRun, HeldMemory, PageBatch } from './guest.js';
import type { OwedPages } from './owed-pages.js';

/** Frames that are taken over at once. */
const TAKEN_MAX = 4096;

/** All that is owed still, ascending. */
const takeAll = (owed: OwedPages): number[] => {
  const frames: number[] = [];
  for (let taken = owed.take(TAKEN_MAX, () => true); taken !== null; taken = owed.take(TAKEN_MAX, () => true))
    for (const frame of taken.gfns) frames.push(frame);
  return frames.sort((a, b) => a - b);
};

/** Where a frame lies in the process; EFAULT where it lies in no slot. */
const addressOf = (vm: Vm, frame: number): Result<number> =>
  vm.memslots.find(gfn(frame))?.hva(gfn(frame)) ??
  new Failure('EFAULT', 'FRAME_IN_NO_SLOT', 'server/migration', { gfn: `0x${frame.toString(16)}` });

/** Runs never go from one slot into another that happens to lie behind it. */
const runsOf = (vm: Vm, frames: readonly number[]): FrameRun[] => {
  const begins = new Set([...vm.memslots].map(({ baseGfn }): number => baseGfn));
  const runs: { first: number; count: number }[] = [];
  for (const frame of frames) {
    const last = runs.at(-1);
    if (last !== undefined && last.first + last.count === frame && !begins.has(frame)) last.count++;
    else runs.push({ first: frame, count: 1 });
  }
  return runs;
};

/**
 * Pages of a guest that has gone on before them. They are held by reference, so that they stay when the process unmaps its
 * memory or ends, and whoever writes to it writes to a copy; each is let go as soon as it has been put into a message.
 */
export class HeldPages implements HeldMemory {
  private left: number;
  /** Indices of frames that somebody waits for, in the order in which they were asked for. */
  private readonly wanted = new Set<number>();
  /** Where the next frames that nobody waits for are looked for. */
  private cursor = 0;

  private constructor(
    readonly runs: readonly FrameRun[],
    private readonly frames: readonly number[],
    private readonly pages: (Page | null)[],
    private readonly room: BatchRoom,
  ) {
    this.left = frames.length;
  }

  /** Takes over what is owed of a stopped guest. */
  static hold(vm: Vm, owed: OwedPages, room: BatchRoom): Result<HeldPages> {
    const frames = takeAll(owed);
    const addresses: number[] = [];
    for (const frame of frames) {
      const address = addressOf(vm, frame);
      if (failed(address)) return address;
      addresses.push(address);
    }
    const pages = vm.mm.hold(addresses);
    return failed(pages) ? pages : new HeldPages(runsOf(vm, frames), frames, pages, room);
  }

  get size(): number {
    return this.left;
  }

  get urgent(): boolean {
    return this.wanted.size > 0;
  }

  want(gfns: readonly number[]): number {
    let count = 0;
    for (const frame of gfns) {
      const index = this.indexOf(frame);
      if (index === null || this.pages[index] === null || this.wanted.has(index)) continue;
      this.wanted.add(index);
      count++;
    }
    return count;
  }

  next(pages: number): PageBatch | null {
    if (this.left === 0) return null;
    const indices = this.urgent ? this.longestAwaited(pages) : this.following(pages);
    // What lies behind a page that is touched will be touched next.
    this.cursor = (indices.at(-1) ?? 0) + 1;
    const memory = this.room.take(indices.length * PAGE_SIZE);
    const data = memory.bytes;
    const gfns = indices.map((index, position) => {
      const page = this.pages[index] ?? null;
      const frame = this.frames[index];
      if (page === null || frame === undefined) throw new Error('a page that has been sent is sent again');
      data.set(page.frame.view(null), position * PAGE_SIZE);
      page.put();
      this.pages[index] = null;
      return frame;
    });
    this.left -= indices.length;
    return { form: 'clear', gfns, headers: new Uint8Array(0), data, memory };
  }

  release(): void {
    for (const page of this.pages) page?.put();
    this.pages.fill(null);
    this.wanted.clear();
    this.left = 0;
  }

  private longestAwaited(count: number): number[] {
    const taken: number[] = [];
    for (const index of this.wanted) {
      if (taken.length === count) break;
      taken.push(index);
      this.wanted.delete(index);
    }
    return taken;
  }

  /** The next frames from the cursor on that have not been sent; around the end if there are none. */
  private following(count: number): number[] {
    const { pages } = this;
    const found: number[] = [];
    for (let index = this.cursor; index < pages.length && found.length < count; index++)
      if (pages[index] !== null) found.push(index);
    if (found.length > 0) return found;
    this.cursor = 0;
    return this.following(count);
  }

  private indexOf(frame: number): number | null {
    const { frames } = this;
    let low = 0;
    let high = frames.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((frames[middle] ?? 0) < frame) low = middle + 1;
      else high = middle;
    }
    return frames[low] === frame ? low : null;
  }
}
