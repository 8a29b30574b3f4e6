import type { Uva } from '../../hardware/units.js';

/** Why a range of an address space is invalidated (`enum mmu_notifier_event`). */
export type MmuNotifierEvent = 'unmap' | 'protection' | 'clear' | 'release';

/** `struct mmu_notifier_ops`: told before a process's mapping changes, so that nothing keeps a translation of it. */
export interface MmuNotifier {
  /** Translations of [start, end) must be gone when this returns. */
  invalidateRange(start: Uva, end: Uva, event: MmuNotifierEvent): void;
}
