import type { Frame } from '../../hardware/dram.js';
import type { Pfn } from '../../hardware/units.js';
import type { Failure, Result } from '../failure.js';
import type { AddressSpace } from './address-space.js';
import type { Page } from './page.js';

/**
 * Where the pages of a process's memory come from. The default takes them from the host's DRAM; another may put
 * pages of somebody else's behind the same address space, and bring them up to date where a call enters and leaves.
 *
 * A page that was stored together with others, and that nobody has asked for since, is bare: a frame number, without a Page.
 * What comes by the mebibyte and is copied by the mebibyte, as the memory of a guest that moves, costs no objects.
 */
export interface PageProvider {
  /** A zeroed page with one reference. */
  allocate(): Result<Page>;
  /**
   * Keeps so many pages for an `allocate` of each that comes later (`hugetlb_acct_memory` does so). ENOMEM: there are not so
   * many.
   */
  reserve(pages: number): Failure | null;
  /** So many are kept no longer: nobody needs them, or they are allocated next. */
  unreserve(pages: number): void;
  /** A bare page for each 4096 bytes, which are its contents. */
  storeBare(bytes: Uint8Array): Result<readonly Pfn[]>;
  /** The page with one reference that a bare one becomes; its number means nothing any more. */
  page(bare: Pfn): Page;
  /** Gives a bare page back. */
  free(bare: Pfn): void;
  /** Whether the contents of a bare page lie right behind those of another. */
  adjoins(bare: Pfn, next: Pfn): boolean;
  /** Contents of a bare page, and of those that adjoin it. Valid until the next wait. */
  contents(bare: Pfn, pages: number): Uint8Array;
  /** An address space has replaced a page by a copy of it, at another address. */
  copied?(from: Frame, mm: AddressSpace): void;
  /** A system call of the process begins. */
  enter?(): void;
  /** A system call of the process is over. */
  leave?(): void;
}
