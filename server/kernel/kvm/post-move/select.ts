import { Failure } from '../../failure.js';
import type { Kernel } from '../../kernel.js';
import { postMovePolicy } from './index.js';
import type { PostMovePolicyName } from './policy.js';

const KERNEL_REF = 'simkvm SetPostMovePolicy';

export interface PolicyChange {
  readonly policy: PostMovePolicyName;
  /** The VM, by number; null: the host, that is every VM made from now on. */
  readonly vm: number | null;
  /** Only say whether it would be allowed. */
  readonly validateOnly: boolean;
}

/**
 * Chooses what a move leaves behind, for one VM or for those that will be made. ENOENT: there is no such VM. EBUSY: its
 * context has moved already, or is just moving: what was in force at the move stays.
 */
export const setPostMovePolicy = (kernel: Kernel, { policy, vm, validateOnly }: PolicyChange): Failure | null => {
  if (vm === null) {
    if (!validateOnly) kernel.defaultPostMovePolicy = postMovePolicy(policy);
    return null;
  }
  const target = kernel.vms.get(vm);
  if (target === undefined) return new Failure('ENOENT', 'VM_NOT_FOUND', KERNEL_REF, { field: 'vm_id', given: String(vm) });
  if (target.life.kind === 'moved' || target.arch.sev?.migrationInProgress)
    return new Failure('EBUSY', 'VM_ALREADY_MOVED', KERNEL_REF, { object: `vm ${vm}`, policy: target.postMovePolicy.name });
  if (!validateOnly) target.postMovePolicy = postMovePolicy(policy);
  return null;
};
