import type { Failure, Result } from '../failure.js';
import type { MissingPages } from './missing-pages.js';
import type { Page } from './page.js';
import type { PageProvider } from './page-provider.js';

/** All that is missing from an address space, by page number, whoever has its contents; and the memory that is kept for it. */
export class MissingMemory {
  private owners: readonly MissingPages[] = [];

  constructor(private readonly provider: PageProvider) {}

  /** Pages. */
  get size(): number {
    return this.owners.reduce((sum, { size }) => sum + size, 0);
  }

  get isEmpty(): boolean {
    return this.owners.length === 0;
  }

  /** Who has the contents of a page; undefined: it is not missing. */
  ownerOf(page: number): MissingPages | undefined {
    return this.owners.find((each) => each.has(page));
  }

  /** Whether any of pages [first, last) is missing. */
  overlaps(first: number, last: number): boolean {
    return this.owners.some((each) => each.overlaps(first, last));
  }

  /** Pages [first, last), none of which is present or missing, are missing from now on. ENOMEM: there is no memory for them. */
  add(owner: MissingPages, first: number, last: number): Failure | null {
    const exhausted = this.provider.reserve(last - first);
    if (exhausted !== null) return exhausted;
    owner.add(first, last);
    if (!this.owners.includes(owner)) this.owners = [...this.owners, owner];
    return null;
  }

  /** The memory that is kept for a page that is missing. */
  allocate(owner: MissingPages, page: number): Result<Page> {
    if (owner.isAwaited(page)) this.provider.unreserve(1);
    return this.provider.allocate();
  }

  /** The contents of a page have come, in what has been allocated for it. */
  arrived(owner: MissingPages, page: number, contents: Uint8Array): void {
    owner.arrived(page, contents);
    this.forgetIfWhole(owner);
  }

  /** Nobody has the contents of what an owner has not brought. */
  lose(owner: MissingPages): void {
    this.provider.unreserve(owner.awaited);
    owner.lose();
  }

  /** Pages [first, last) have been unmapped. */
  forget(first: number, last: number): void {
    for (const owner of this.owners) {
      const before = owner.awaited;
      owner.forget(first, last);
      this.provider.unreserve(before - owner.awaited);
      this.forgetIfWhole(owner);
    }
  }

  private forgetIfWhole(owner: MissingPages): void {
    if (owner.size === 0) this.owners = this.owners.filter((each) => each !== owner);
  }
}
