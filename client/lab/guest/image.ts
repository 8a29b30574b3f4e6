import type { KvmRegsInit, KvmSregs, KvmSregsInit } from '../../index.js';
import type { Segment } from './driver.js';
import { LOW_MEMORY_END } from './layout.js';

/** What a VMM launches: memory content that is measured and encrypted, and registers to start with. */
export interface GuestImage {
  readonly name: string;
  /** Measured and encrypted, in this order; whole pages, below the end of the low memory or in the firmware's slot. */
  readonly segments: readonly Segment[];
  /** Firmware below 4 GiB has a memory slot of its own. */
  readonly firmware: { readonly gpa: number; readonly size: number } | null;
  /** Registers of each vCPU, by its id; null: as they are after reset. */
  readonly start: ((vcpu: number, reset: KvmSregs) => { readonly sregs: KvmSregsInit; readonly regs: KvmRegsInit }) | null;
  /** Whether the guest is the driver, which rings doorbells and takes interrupts. */
  readonly runs: boolean;
}

export const PAGE = 4096;

/** Puts segments into whole pages of `[begin, end)`, which stay encrypted and measured; pages of `shared` are left out. */
export const pagesOf = (segments: readonly Segment[], begin: number, end: number, shared: readonly number[]): Segment[] => {
  if (end > LOW_MEMORY_END) throw new RangeError('the guest does not fit into the low memory');
  const memory = new Uint8Array(end - begin);
  for (const { gpa, bytes } of segments) memory.set(bytes, gpa - begin);
  const cuts = [...shared.filter((page) => page >= begin && page < end).sort((a, b) => a - b), end];
  const runs: Segment[] = [];
  let from = begin;
  for (const cut of cuts) {
    if (cut > from) runs.push({ gpa: from, bytes: memory.slice(from - begin, cut - begin) });
    from = cut + PAGE;
  }
  return runs;
};
