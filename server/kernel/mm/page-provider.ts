import type { Frame } from '../../hardware/dram.js';
import type { Result } from '../failure.js';
import type { AddressSpace } from './address-space.js';
import type { Page } from './page.js';

/**
 * Where the pages of a process's memory come from. The default takes them from the host's DRAM; another may put
 * pages of somebody else's behind the same address space, and bring them up to date where a call enters and leaves.
 */
export interface PageProvider {
  /** A zeroed page with one reference. */
  allocate(): Result<Page>;
  /** An address space has replaced a page by a copy of it, at another address. */
  copied?(from: Frame, mm: AddressSpace): void;
  /** A system call of the process begins. */
  enter?(): void;
  /** A system call of the process is over. */
  leave?(): void;
}
