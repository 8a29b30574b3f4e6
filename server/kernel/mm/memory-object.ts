import { PAGE_SIZE } from '../../hardware/units.js';
import { Failure, type Result } from '../failure.js';
import type { Page } from './page.js';
import type { PageProvider } from './page-provider.js';

/** One mapping of an object, told when pages of the object go away. */
export interface ObjectMapping {
  /** Pages [first, last) of the object are not there any more. */
  unmapPages(first: number, last: number): void;
}

/** What can be mapped (`struct address_space` of an inode): hands out the page at an index. */
export interface MemoryObject {
  readonly mappings: Set<ObjectMapping>;
  /** The page at `index`, without a reference for the caller. EFAULT with reason SIGBUS where the object has none. */
  fault(index: number): Result<Page>;
  /** The page at `index` if it has been touched; an object without it is looked at through its mappings only. */
  peek?(index: number): Page | undefined;
  /** Indices in [first, last) of the pages that have been touched, in no order; an object without `peek` has none. */
  touched?(first: number, last: number): Iterable<number>;
  /** Drops pages [first, last) of the object: they read as zero afterwards. An object without it has no holes. */
  punch?(first: number, last: number): void;
  /** A mapping came or went; an object that lives as long as it is mapped counts these. */
  attach(mapping: ObjectMapping): void;
  detach(mapping: ObjectMapping): void;
}

/** The fault that a touch of a page which the object does not have gives. */
export const sigbus = (kernelRef: string): Failure => new Failure('EFAULT', 'SIGBUS', kernelRef);

/** Pages of a shmem file (memfd, or shared anonymous memory): allocated when first touched, freed with the last user. */
export class ShmemObject implements MemoryObject {
  readonly mappings = new Set<ObjectMapping>();
  private readonly pages = new Map<number, Page>();
  private users = 1;

  constructor(
    private bytes: number,
    private readonly provider: PageProvider,
  ) {}

  get size(): number {
    return this.bytes;
  }

  get pageCount(): number {
    return this.pages.size;
  }

  fault(index: number): Result<Page> {
    if (index * PAGE_SIZE >= this.bytes) return sigbus('shmem_fault');
    return this.allocate(index);
  }

  /** The page at `index` if it has been touched. */
  peek(index: number): Page | undefined {
    return this.pages.get(index);
  }

  *touched(first: number, last: number): Generator<number> {
    if (last - first > this.pages.size) {
      for (const index of this.pages.keys()) if (index >= first && index < last) yield index;
    } else for (let index = first; index < last; index++) if (this.pages.has(index)) yield index;
  }

  /** The page at `index`, allocated if need be (`shmem_get_folio`); the size is not looked at. */
  allocate(index: number): Result<Page> {
    const present = this.pages.get(index);
    if (present !== undefined) return present;
    const page = this.provider.allocate();
    if (!(page instanceof Failure)) this.pages.set(index, page);
    return page;
  }

  /** `shmem_setattr`: cuts off or extends; pages beyond the end go. */
  resize(size: number): void {
    const end = Math.ceil(size / PAGE_SIZE);
    if (size < this.bytes) {
      this.punch(end, Number.MAX_SAFE_INTEGER);
      const partial = size % PAGE_SIZE;
      if (partial !== 0)
        this.pages
          .get(end - 1)
          ?.frame.viewForWrite(null)
          .fill(0, partial);
    }
    this.bytes = size;
  }

  /** `shmem_fallocate(PUNCH_HOLE)` on whole pages [first, last). */
  punch(first: number, last: number): void {
    for (const mapping of this.mappings) mapping.unmapPages(first, last);
    for (const [index, page] of this.pages) {
      if (index < first || index >= last) continue;
      this.pages.delete(index);
      page.put();
    }
  }

  attach(mapping: ObjectMapping): void {
    this.users++;
    this.mappings.add(mapping);
  }

  detach(mapping: ObjectMapping): void {
    this.mappings.delete(mapping);
    this.release();
  }

  /** Drops one user: a mapping, or the file itself. */
  release(): void {
    if (--this.users > 0) return;
    for (const page of this.pages.values()) page.put();
    this.pages.clear();
  }
}
