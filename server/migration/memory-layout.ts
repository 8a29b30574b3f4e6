import type { SlotDescription } from './guest.js';

/** A range of the source's memory that is to be mapped as one. */
export interface MemoryRange {
  /** Address in the source's process. */
  readonly start: number;
  readonly bytes: number;
}

/**
 * What the slots of a guest map, each byte once: slots whose memory overlaps in the source's process are windows into the same
 * memory, such as firmware that shows twice, below 1 MiB and below 4 GiB.
 */
export const memoryRanges = (slots: readonly SlotDescription[]): readonly MemoryRange[] => {
  const ranges: { start: number; bytes: number }[] = [];
  const sorted = slots.toSorted((one, other) => one.userspaceAddress - other.userspaceAddress);
  for (const { userspaceAddress: start, bytes } of sorted) {
    const last = ranges.at(-1);
    if (last !== undefined && start < last.start + last.bytes) last.bytes = Math.max(last.bytes, start + bytes - last.start);
    else ranges.push({ start, bytes });
  }
  return ranges;
};
