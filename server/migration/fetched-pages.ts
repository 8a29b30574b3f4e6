import { PAGE_SIZE } from '../hardware/units.js';
import { Failure } from '../kernel/failure.js';
import type { AddressSpace } from '../kernel/mm/address-space.js';
import { MissingPages } from '../kernel/mm/missing-pages.js';
import type { FrameRun, OwedFramesHandler, PageBatch } from './guest.js';
import { checkBatch } from './guest-pages.js';

/** Guest memory as it was mapped for a guest that is received; the VMM may have changed its slots since. */
interface MappedSlot {
  readonly gpa: number;
  readonly bytes: number;
  readonly address: number;
}

/** Frames of a guest that runs here, and whose contents the source still has. */
export class FetchedPages {
  private readonly missing: MissingPages;

  constructor(
    private readonly mm: AddressSpace,
    private readonly slots: readonly MappedSlot[],
    handler: OwedFramesHandler,
  ) {
    this.missing = new MissingPages({
      wanted: (addresses) => handler.wanted(addresses.map((address) => this.frameAt(address))),
      whole: () => handler.whole(),
    });
  }

  get size(): number {
    return this.missing.size;
  }

  /** EINVAL for frames that lie in no slot, ENOMEM where its memory has been unmapped, or there is none for them; others may be missing already then. */
  expect(runs: readonly FrameRun[]): Failure | null {
    for (const { first, count } of runs) {
      const address = this.addressOf(first, count);
      if (address === null)
        return new Failure('EINVAL', 'FRAME_IN_NO_SLOT', 'server/migration', {
          gfn: `0x${first.toString(16)}`,
          count: String(count),
        });
      const failure = this.mm.expect(this.missing, address, address + count * PAGE_SIZE);
      if (failure !== null) return failure;
    }
    return null;
  }

  /** Pages that are not missing (any more) are left as they are: somebody may have written to them since. */
  receive(batch: PageBatch): Failure | null {
    const { gfns, data } = batch;
    const wrong = checkBatch(batch, 0);
    if (wrong !== null) return wrong;
    for (const [index, frame] of gfns.entries()) {
      const address = this.addressOf(frame, 1);
      if (address === null) continue;
      const bytes = data.subarray(index * PAGE_SIZE, (index + 1) * PAGE_SIZE);
      const failure = this.mm.fill(this.missing, address, bytes);
      if (failure !== null) return failure;
    }
    return null;
  }

  lose(): void {
    this.mm.lose(this.missing);
  }

  /** Address of frames that lie one behind the other in one slot. */
  private addressOf(first: number, count: number): number | null {
    const start = first * PAGE_SIZE;
    const slot = this.slots.find(({ gpa, bytes }) => start >= gpa && start + count * PAGE_SIZE <= gpa + bytes);
    return slot === undefined ? null : slot.address + (start - slot.gpa);
  }

  private frameAt(at: number): number {
    const slot = this.slots.find(({ address, bytes }) => at >= address && at < address + bytes);
    if (slot === undefined) throw new Error('a page is missing that no slot has');
    return (slot.gpa + (at - slot.address)) / PAGE_SIZE;
  }
}
