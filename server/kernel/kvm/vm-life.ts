import type { PostMovePolicy } from './post-move/policy.js';

/** Why a VM is dead; errors carry it, since the errno is EIO for all of them. */
export type DeathCause =
  | { readonly kind: 'moved'; readonly toVm: number; readonly byPid: number }
  /** The guest belongs to another host; `session` is the migration's number. */
  | { readonly kind: 'sent'; readonly session: string }
  /** A copy that a migration has made and given up before the guest was this host's. */
  | { readonly kind: 'discarded' }
  | { readonly kind: 'bugged'; readonly check: string };

/**
 * The life of a VM: what the kernel keeps as `vm_dead` and `vm_bugged`. What a moved VM still accepts is its policy's
 * matter; a dead one accepts nothing.
 */
export type VmLife =
  | { readonly kind: 'alive' }
  | { readonly kind: 'moved'; readonly cause: DeathCause; readonly policy: PostMovePolicy }
  | { readonly kind: 'dead'; readonly cause: DeathCause };

export const describeDeath = (cause: DeathCause): string => {
  switch (cause.kind) {
    case 'moved':
      return `moved to VM ${cause.toVm} by pid ${cause.byPid}`;
    case 'sent':
      return `sent to another host in migration ${cause.session}`;
    case 'discarded':
      return 'discarded by a migration that did not arrive';
    case 'bugged':
      return `bugged by ${cause.check}`;
  }
};
