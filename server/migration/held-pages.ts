import { gfn, PAGE_SIZE } from '../hardware/units.js';
import { failed, type Result } from '../kernel/failure.js';
import type { Vm } from '../kernel/kvm/vm.js';
import type { PageSnapshot } from '../kernel/mm/page-snapshot.js';
import type { BatchRoom } from './batch-room.js';
import type { FrameQueue } from './frame-queue.js';
import type { FrameRun, HeldMemory, PageBatch } from './guest.js';
import { inNoSlot } from './guest-pages.js';
import type { OwedPages } from './owed-pages.js';

/** Where frames [first, end) lie in the process. */
interface Place {
  readonly first: number;
  readonly end: number;
  readonly address: number;
}

/** Of the slots of a VM, which may be gone when the pages are sent. */
const placesOf = ({ memslots }: Vm): readonly Place[] =>
  [...memslots].map(({ baseGfn, endGfn, userspaceAddr }) => ({ first: baseGfn, end: endGfn, address: userspaceAddr }));

/**
 * Pages of a guest that has gone on before them, as they were then: they stay when the process unmaps its memory or ends, and
 * whoever writes to it writes to a copy. Each is let go as soon as it has been put into a message.
 */
export class HeldPages implements HeldMemory {
  /** Frames that somebody waits for, in the order in which they were asked for. */
  private readonly wanted = new Set<number>();

  private constructor(
    readonly runs: readonly FrameRun[],
    private readonly frames: FrameQueue,
    private readonly places: readonly Place[],
    private readonly snapshot: PageSnapshot,
    private readonly room: BatchRoom,
  ) {}

  /** Takes over what is owed of a stopped guest. EFAULT where it lies in no slot any more, or in memory that cannot be read. */
  static hold(vm: Vm, owed: OwedPages, room: BatchRoom): Result<HeldPages> {
    const frames = owed.takeAll();
    const runs = [...frames.runs()];
    const ranges: { readonly start: number; readonly end: number }[] = [];
    for (const { first, count } of runs) {
      const slot = vm.memslots.find(gfn(first));
      if (slot === undefined || first + count > slot.endGfn) return inNoSlot(first);
      const start = slot.hva(gfn(first));
      ranges.push({ start, end: start + count * PAGE_SIZE });
    }
    const snapshot = vm.mm.snapshot(ranges);
    return failed(snapshot) ? snapshot : new HeldPages(runs, frames, placesOf(vm), snapshot, room);
  }

  get size(): number {
    return this.snapshot.size;
  }

  get urgent(): boolean {
    return this.wanted.size > 0;
  }

  want(gfns: readonly number[]): number {
    const before = this.wanted.size;
    for (const frame of gfns) if (this.frames.has(frame)) this.wanted.add(frame);
    return this.wanted.size - before;
  }

  next(pages: number): PageBatch | null {
    const gfns = this.urgent ? this.longestAwaited(pages) : this.frames.take(pages)?.gfns;
    if (gfns === undefined) return null;
    const memory = this.room.take(gfns.length * PAGE_SIZE);
    const data = memory.bytes;
    for (let at = 0, count: number; at < gfns.length; at += count) {
      const [address, most] = this.locate(gfns[at] ?? 0);
      count = 1;
      while (count < most && gfns[at + count] === (gfns[at] ?? 0) + count) count++;
      this.snapshot.take(address, data.subarray(at * PAGE_SIZE, (at + count) * PAGE_SIZE));
    }
    return { form: 'clear', gfns, headers: new Uint8Array(0), data, memory };
  }

  release(): void {
    this.snapshot.release();
    this.frames.clear();
    this.wanted.clear();
  }

  private longestAwaited(count: number): number[] {
    const taken: number[] = [];
    for (const frame of this.wanted) {
      if (taken.length === count) break;
      taken.push(frame);
      this.wanted.delete(frame);
      this.frames.delete(frame);
    }
    // What lies behind a page that is touched will be touched next.
    this.frames.goOnBehind(taken.at(-1) ?? 0);
    return taken;
  }

  /** Address of a frame, and how many frames of its slot begin with it. */
  private locate(frame: number): readonly [number, number] {
    const place = this.places.find(({ first, end }) => frame >= first && frame < end);
    if (place === undefined) throw new Error('a frame is held that lies in no slot');
    return [place.address + (frame - place.first) * PAGE_SIZE, place.end - frame];
  }
}
