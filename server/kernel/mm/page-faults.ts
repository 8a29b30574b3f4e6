import { PAGE_SIZE } from '../../hardware/units.js';
import { Failure, failed, type Result } from '../failure.js';
import type { MissingMemory } from './missing-memory.js';
import type { Page } from './page.js';
import type { PageProvider } from './page-provider.js';
import { type PageTable, pageOf } from './page-table.js';
import { mayRead, type Vma, type Vmas } from './vma.js';

/** An access that the process itself would get SIGSEGV for. */
export const segv = (address: number | bigint, kernelRef: string): Failure =>
  new Failure('EFAULT', 'BAD_ADDRESS', kernelRef, { address: `0x${address.toString(16)}` });

/** `mm/memory.c`: how an address space gets its pages when they are touched. */
export class PageFaults {
  /** @param replacing called when a page is about to be replaced by a copy, with the number of its entry */
  constructor(
    private readonly areas: Vmas,
    private readonly ptes: PageTable,
    private readonly missing: MissingMemory,
    private readonly provider: PageProvider,
    private readonly replacing: (pageNumber: number, page: Page) => void,
  ) {}

  /** `handle_mm_fault`: the page, without a reference. EFAULT where nothing is mapped, or not for this access. */
  handle(address: number, write: boolean): Result<Page> {
    const area = this.areas.find(address);
    if (area === undefined) return segv(address, 'handle_mm_fault');
    if (write ? !area.protection.write : !mayRead(area)) return segv(address, 'handle_mm_fault');
    const pageNumber = pageOf(address);
    const page = this.ptes.get(pageNumber);
    if (page === undefined) return this.populate(area, pageNumber, write);
    return write && !this.ptes.isWritable(pageNumber) ? this.breakCow(pageNumber, page) : page;
  }

  /** Reads one byte of each page of a range that is not present. */
  populateAll(start: number, end: number): Failure | null {
    const unreadable = this.areas.overlapping(start, end).find((area) => !mayRead(area));
    if (unreadable !== undefined) return segv(Math.max(start, unreadable.start), 'handle_mm_fault');
    const hole = this.areas.firstHole(start, end);
    if (hole < end) return segv(hole, 'handle_mm_fault');
    for (let page = pageOf(start); page < pageOf(end); page++) {
      const present = this.ptes.has(page) ? null : this.handle(page * PAGE_SIZE, false);
      if (failed(present)) return present;
    }
    return null;
  }

  /** A page of its own with the contents of another. */
  copy(page: Page): Result<Page> {
    const copy = this.provider.allocate();
    if (!failed(copy)) copy.frame.viewForWrite(null).set(page.frame.view(null));
    return copy;
  }

  private populate(area: Vma, pageNumber: number, write: boolean): Result<Page> {
    const missing = this.missing.ownerOf(pageNumber);
    if (missing !== undefined) return missing.touch(pageNumber);
    if (area.object === null) {
      const page = this.provider.allocate();
      if (!failed(page)) this.ptes.set(pageNumber, page, true);
      return page;
    }
    const page = area.object.fault(area.firstPage + pageNumber - pageOf(area.start));
    if (failed(page)) return page;
    if (area.shared || !write) {
      this.ptes.set(pageNumber, page.get(), area.shared);
      return page;
    }
    const copy = this.copy(page);
    if (!failed(copy)) this.ptes.set(pageNumber, copy, true);
    return copy;
  }

  /** `do_wp_page`: the last user of a page just gets it writable, any other a copy. */
  private breakCow(pageNumber: number, page: Page): Result<Page> {
    if (!page.shared && !this.ptes.isHeld(pageNumber)) {
      this.ptes.setWritable(pageNumber, true);
      return page;
    }
    const copy = this.copy(page);
    if (failed(copy)) return copy;
    this.replacing(pageNumber, page);
    this.ptes.replace(pageNumber, copy, true);
    return copy;
  }
}
