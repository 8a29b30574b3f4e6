import type { Dram, Frame } from '../../hardware/dram.js';
import { Failure, type Result } from '../failure.js';
import type { AddressSpace } from './address-space.js';
import type { PageProvider } from './page-provider.js';

/** `struct page`: a frame that the kernel has allocated, with its references and pins. */
export class Page {
  private references = 1;
  /** `pin_user_pages`: as long as it is above 0, the page must not be moved or swapped. */
  pins = 0;

  constructor(
    readonly frame: Frame,
    private readonly pages: PageAllocator,
  ) {}

  get shared(): boolean {
    return this.references > 1;
  }

  get(): this {
    this.references++;
    return this;
  }

  put(): void {
    if (this.references === 0) throw new Error(`page ${this.frame.pfn}: reference dropped twice`);
    if (--this.references === 0) this.pages.free(this);
  }
}

/** The page allocator: hands out zeroed frames of DRAM and takes them back. */
export class PageAllocator implements PageProvider {
  /** Called before a frame goes back to the host: the place to see what it still means to somebody. */
  onFree: (frame: Frame) => void = () => {};
  /** Called when an address space replaces a page by a copy of it. */
  onCopy: (from: Frame, mm: AddressSpace) => void = () => {};

  constructor(private readonly dram: Dram) {}

  allocate(): Result<Page> {
    const frame = this.dram.allocate();
    if (frame === null) return new Failure('ENOMEM', 'HOST_MEMORY_EXHAUSTED', 'alloc_pages', { frames: String(this.dram.total) });
    return new Page(frame, this);
  }

  copied(from: Frame, mm: AddressSpace): void {
    this.onCopy(from, mm);
  }

  free(page: Page): void {
    this.onFree(page.frame);
    this.dram.free(page.frame);
  }
}
