import type { Failure } from '../kernel/failure.js';
import type { Vm } from '../kernel/kvm/vm.js';
import type { GuestKind } from './guest-kind.js';
import { checkBatch, readClear, writeClear } from './guest-pages.js';
import { restorePart, saveState } from './guest-state.js';

/** A guest without encryption: pages and registers travel as they are, and what seals them is the daemons' channel alone. */
export const plainKind: GuestKind = {
  name: 'plain',
  runsWithoutKey: true,
  whyNoPostCopy: null,

  source: (vm: Vm) => ({
    begin: () => new Uint8Array(0),
    seal: (owed, count, room) => {
      const taken = owed.take(count, () => true);
      return taken === null ? null : readClear(vm, taken.gfns, room);
    },
    state: () => saveState(vm),
    // No key that could be taken out of a slot: the vCPUs' mutexes are held, and that is the fence.
    fence: () => null,
    unfence: () => {},
    cancel: () => {},
    finish: () => {},
  }),

  target: () => new Uint8Array(0),
  otherFds: 0,
  whyNotInitialised: () => null,
  *initialise() {
    return [];
  },
  destination: (vm: Vm) => ({
    begin: () => null,
    receive: (batch): Failure | null => checkBatch(batch, 0) ?? writeClear(vm, batch),
    restore: (part) => restorePart(vm, part),
    prepare: () => null,
  }),
};
