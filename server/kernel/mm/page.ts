import type { Dram, Frame } from '../../hardware/dram.js';
import type { Pfn } from '../../hardware/units.js';
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
    if (--this.references === 0) this.pages.release(this);
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
    return frame === null ? this.exhausted() : new Page(frame, this);
  }

  reserve(pages: number): Failure | null {
    return this.dram.reserve(pages) ? null : this.exhausted();
  }

  unreserve(pages: number): void {
    this.dram.unreserve(pages);
  }

  storeBare(bytes: Uint8Array): Result<readonly Pfn[]> {
    return this.dram.store(bytes) ?? this.exhausted();
  }

  page(bare: Pfn): Page {
    const frame = this.dram.at(bare);
    if (frame === undefined) throw new Error(`page ${bare}: not in use`);
    return new Page(frame, this);
  }

  free(bare: Pfn): void {
    // A frame without an object is as it was stored: it means nothing to anybody.
    const frame = this.dram.known(bare);
    if (frame === undefined) this.dram.release(bare);
    else this.freeFrame(frame);
  }

  adjoins(bare: Pfn, next: Pfn): boolean {
    return this.dram.adjoins(bare, next);
  }

  contents(bare: Pfn, pages: number): Uint8Array {
    return this.dram.contents(bare, pages);
  }

  copied(from: Frame, mm: AddressSpace): void {
    this.onCopy(from, mm);
  }

  /** For `Page`: the last reference is gone. */
  release(page: Page): void {
    this.freeFrame(page.frame);
  }

  private freeFrame(frame: Frame): void {
    this.onFree(frame);
    this.dram.free(frame);
  }

  private exhausted(): Failure {
    return new Failure('ENOMEM', 'HOST_MEMORY_EXHAUSTED', 'alloc_pages', { frames: String(this.dram.total) });
  }
}
