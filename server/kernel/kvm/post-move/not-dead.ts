import { type PostMovePolicy, RUN } from './policy.js';

/**
 * Do not mark the source at all: the first option of the discussion of February 2023. Rules:
 * - every ioctl runs, against a VM whose encryption context is gone;
 * - memory-encryption calls get what the code answers a VM that is no SEV guest;
 * - no request is raised: vCPUs old and new may try to enter, and the hardware decides.
 */
export const notDead: PostMovePolicy = {
  name: 'NOT_DEAD',
  offersDismantle: false,
  onMove: () => null,
  afterMove: () => {},
  admit: () => RUN,
  admitCreateVcpuLocked: () => null,
  admitVcpuLocked: () => null,
};
