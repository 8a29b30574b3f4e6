import { buggedOnly } from './bugged-only.js';
import { dismantleAsync } from './dismantle-async.js';
import { dismantleIoctl } from './dismantle-ioctl.js';
import { dismantleOnMove } from './dismantle-on-move.js';
import { encDead } from './enc-dead.js';
import { notDead } from './not-dead.js';
import type { PostMovePolicy, PostMovePolicyName } from './policy.js';
import { succeedSilently } from './succeed-silently.js';
import { vcpuDead } from './vcpu-dead.js';
import { vmDead } from './vm-dead.js';
import { vmMoved } from './vm-moved.js';

const POLICIES: Readonly<Record<PostMovePolicyName, PostMovePolicy>> = {
  VM_DEAD: vmDead,
  NOT_DEAD: notDead,
  ENC_DEAD: encDead,
  VM_MOVED: vmMoved,
  DISMANTLE_IOCTL: dismantleIoctl,
  DISMANTLE_ON_MOVE: dismantleOnMove,
  DISMANTLE_ASYNC: dismantleAsync,
  SUCCEED_SILENTLY: succeedSilently,
  BUGGED_ONLY: buggedOnly,
  VCPU_DEAD: vcpuDead,
};

/** The implementation of a post-move policy. */
export const postMovePolicy = (name: PostMovePolicyName): PostMovePolicy => POLICIES[name];
