import { PAGE_SIZE } from '../../../hardware/units.js';
import { Failure, failed, type Result } from '../../failure.js';
import { AddressSpace } from '../../mm/address-space.js';
import { PageMissing } from '../../mm/missing-pages.js';
import type { Page } from '../../mm/page.js';
import type { Vm } from '../vm.js';
import { toSevInfo } from './sev-info.js';
import type { SevModule } from './sev-module.js';

const INT_MAX = 2 ** 31 - 1;

/** User memory that is pinned, as one range: what the firmware shall work on, or a registered region. */
export interface PinnedMemory {
  readonly pages: readonly Page[];
  /** Offset of the first byte in the first page. */
  readonly offset: number;
  readonly length: number;
}

/** A part of pinned memory whose bytes follow each other in physical memory. */
export interface PhysicalChunk {
  readonly address: number;
  readonly length: number;
}

/**
 * `sev_pin_memory`: pins the pages of [address, address + length) of the VM's own address space and counts them as
 * locked. A simulated process has CAP_IPC_LOCK, so RLIMIT_MEMLOCK does not refuse it.
 */
export const pinMemory = (module: SevModule, vm: Vm, address: bigint, length: bigint, write: boolean): Result<PinnedMemory> => {
  const kernelRef = 'sev_pin_memory';
  const details = { address: `0x${address.toString(16)}`, length: String(length) };
  if (length === 0n || BigInt.asUintN(64, address + length) < address)
    return new Failure('EINVAL', 'PIN_RANGE', kernelRef, details);
  const first = address / BigInt(PAGE_SIZE);
  const count = (address + length - 1n) / BigInt(PAGE_SIZE) - first + 1n;
  if (count > BigInt(INT_MAX)) return new Failure('EINVAL', 'PIN_TOO_MANY_PAGES', kernelRef, details);
  if (count > BigInt(module.kernel.dram.total)) return new Failure('EINVAL', 'PIN_MORE_THAN_RAM', kernelRef, details);
  const pages: Page[] = [];
  for (let index = 0n; index < count; index++) {
    const page = vm.mm.pin(Number((first + index) * BigInt(PAGE_SIZE)), write);
    if (failed(page)) {
      for (const pinned of pages) AddressSpace.unpin(pinned);
      return index === 0n || page instanceof PageMissing
        ? page
        : new Failure('ENOMEM', 'PIN_INCOMPLETE', kernelRef, { ...details, pinned: String(index) });
    }
    pages.push(page);
  }
  module.kernel.costs.charge('page_pinned', pages.length);
  toSevInfo(vm).pagesLocked += pages.length;
  return { pages, offset: Number(address % BigInt(PAGE_SIZE)), length: Number(length) };
};

/** `sev_unpin_memory`. */
export const unpinMemory = (module: SevModule, vm: Vm, pages: readonly Page[]): void => {
  for (const page of pages) AddressSpace.unpin(page);
  module.kernel.costs.charge('page_unpinned', pages.length);
  toSevInfo(vm).pagesLocked -= pages.length;
};

/** `sev_clflush_pages`: what the host has in its caches reaches memory before the firmware, or the guest, looks. */
export const clflushPages = (module: SevModule, pages: readonly Page[]): void => {
  for (const { frame } of pages) frame.flush();
  module.kernel.costs.charge('clflush_page', pages.length);
};

/** `get_num_contig_pages`, as a loop over the whole range. */
export function* contiguousChunks({ pages, offset, length }: PinnedMemory): Generator<PhysicalChunk> {
  let start = 0;
  let size = 0;
  let rest = length;
  for (const [index, { frame }] of pages.entries()) {
    const within = index === 0 ? offset : 0;
    const part = Math.min(PAGE_SIZE - within, rest);
    rest -= part;
    if (size > 0 && frame.hpa + within === start + size) {
      size += part;
      continue;
    }
    if (size > 0) yield { address: start, length: size };
    start = frame.hpa + within;
    size = part;
  }
  if (size > 0) yield { address: start, length: size };
}
