import type { PostMovePolicy } from './post-move/policy.js';

/** Why a VM is dead; errors carry it, since the errno is EIO for all of them. */
export type DeathCause =
  | { readonly kind: 'moved'; readonly toVm: number; readonly byPid: number }
  | { readonly kind: 'bugged'; readonly check: string };

/**
 * The life of a VM: what the kernel keeps as `vm_dead` and `vm_bugged`. What a moved VM still accepts is its policy's
 * matter; a dead one accepts nothing.
 */
export type VmLife =
  | { readonly kind: 'alive' }
  | { readonly kind: 'moved'; readonly cause: DeathCause; readonly policy: PostMovePolicy }
  | { readonly kind: 'dead'; readonly cause: DeathCause };

export const describeDeath = (cause: DeathCause): string =>
  cause.kind === 'moved' ? `moved to VM ${cause.toVm} by pid ${cause.byPid}` : `bugged by ${cause.check}`;
