import type { PostMovePolicyName } from './post-move/policy.js';

/** A phase of an intra-host move as it is reached, with its counts; `MigrationService.MoveContext` streams them. */
export type MovePhase =
  /** Both VMs are marked as migrating, and both `kvm->lock`s are held. */
  | { readonly kind: 'vms-locked'; readonly source: number; readonly destination: number }
  /** Every vCPU mutex of both VMs is held: no vCPU of either is inside KVM_RUN. */
  | { readonly kind: 'vcpus-locked'; readonly source: number; readonly destination: number }
  /** Nothing can refuse the move any more. */
  | { readonly kind: 'checked' }
  /** The VM's own part has moved. `pinnedBytes`: guest memory in the regions that moved with it. */
  | {
      readonly kind: 'vm-state';
      readonly asid: number;
      readonly handle: number;
      readonly regions: number;
      readonly pinnedBytes: number;
      readonly mirrors: number;
    }
  /** One vCPU of the destination has got its VMCB. `saveAreaBytes`: of its encrypted save area; 0 for plain SEV. */
  | { readonly kind: 'vcpu'; readonly index: number; readonly saveAreaBytes: number }
  /** What the source's post-move policy does under the locks is done. */
  | { readonly kind: 'policy'; readonly policy: PostMovePolicyName }
  /** Every lock has been dropped. */
  | { readonly kind: 'done' };
