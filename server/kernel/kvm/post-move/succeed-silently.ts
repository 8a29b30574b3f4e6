import type { Admission, PostMovePolicy } from './policy.js';
import { requestVmDead } from './refusal.js';

const NOTHING_DONE: Admission = { kind: 'answer', ret: 0 };

/**
 * The experiment that started the discussion: the VM is dead, but every ioctl returns success. Rules:
 * - every ioctl on the VM, its vCPUs and its devices returns 0, does nothing and writes nothing to the caller's memory;
 * - so KVM_CREATE_VCPU seems to give fd 0, KVM_CHECK_EXTENSION 'unsupported', and KVM_RUN replays the last exit;
 * - a KVM_RUN that waited for its mutex still meets KVM_REQ_VM_DEAD: it is past the gate;
 * - nothing is freed until the fds are closed.
 */
export const succeedSilently: PostMovePolicy = {
  name: 'SUCCEED_SILENTLY',
  offersDismantle: false,
  onMove: (_current, source) => {
    requestVmDead(source);
    return null;
  },
  afterMove: () => {},
  admit: () => NOTHING_DONE,
  admitCreateVcpuLocked: () => null,
  admitVcpuLocked: () => null,
};
