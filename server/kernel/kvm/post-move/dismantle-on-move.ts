import { dismantleVmLocked } from '../dismantle.js';
import type { PostMovePolicy } from './policy.js';
import { refuse, requestVmDead } from './refusal.js';

/**
 * VM_DEAD, and the kernel dismantles at the moment of the move ('teardown at MOVE time', 2023). Rules:
 * - the zombie keeps no buses, memslots or page tables: they go under the move's own locks, after `active` is cleared;
 * - so the teardown's time is part of the guest's blackout;
 * - every ioctl on the VM, its vCPUs and its devices fails with EIO.
 */
export const dismantleOnMove: PostMovePolicy = {
  name: 'DISMANTLE_ON_MOVE',
  offersDismantle: false,
  onMove: (current, source) => {
    requestVmDead(source);
    return dismantleVmLocked(current, source);
  },
  afterMove: () => {},
  admit: refuse,
  admitCreateVcpuLocked: () => null,
  admitVcpuLocked: () => null,
};
