import type {
  MoveContextResponse,
  MoveDone,
  MoveVcpu,
  MoveVcpusLocked,
  MoveVmState,
  MoveVmsLocked,
  Verdict,
} from '../gen/messages.js';
import { MigrationService } from '../gen/services.js';
import { type PostMovePolicyName, policyName } from './post-move-policy.js';
import { type FdObject, present } from './syscall.js';
import type { Vm } from './vm.js';

type PhaseData =
  /** Both VMs are marked as migrating, and both kvm->locks are held. */
  | { readonly phase: 'vms_locked'; readonly vms_locked: MoveVmsLocked }
  /** Every vCPU mutex of both VMs is held. */
  | { readonly phase: 'vcpus_locked'; readonly vcpus_locked: MoveVcpusLocked }
  /** Nothing can refuse the move any more. */
  | { readonly phase: 'checked' }
  /** The VM's own part has moved. */
  | { readonly phase: 'vm_state'; readonly vm_state: MoveVmState }
  /** One vCPU of the destination has got its VMCB. */
  | { readonly phase: 'vcpu'; readonly vcpu: MoveVcpu }
  /** What the source's post-move policy does under the locks is done. */
  | { readonly phase: 'policy'; readonly policy: PostMovePolicyName }
  /** Every lock has been dropped. */
  | { readonly phase: 'done'; readonly done: MoveDone };

/** A phase that a move has reached, and the simulated nanoseconds since it began. */
export type MovePhase = PhaseData & { readonly simulatedNs: bigint };

const dataOf = (message: MoveContextResponse): PhaseData | null => {
  const { vms_locked, vcpus_locked, checked, vm_state, vcpu, policy, done } = message;
  if (vms_locked !== null) return { phase: 'vms_locked', vms_locked };
  if (vcpus_locked !== null) return { phase: 'vcpus_locked', vcpus_locked };
  if (checked !== null) return { phase: 'checked' };
  if (vm_state !== null) return { phase: 'vm_state', vm_state };
  if (vcpu !== null) return { phase: 'vcpu', vcpu };
  if (policy !== null) return { phase: 'policy', policy: policyName(policy.policy) };
  return done === null ? null : { phase: 'done', done };
};

const requestOf = (destination: Vm, source: FdObject | number) => ({
  fd: destination.fd,
  source_fd: typeof source === 'number' ? source : source.fd,
});

/**
 * Moves the encryption context of `source`, a VM or its descriptor in the destination's process, into `destination`, and
 * tells which phases the move has passed. It is the move of `destination.moveEncContextFrom(source)`, with somebody watching.
 * The move is made when the loop begins, and is not undone by leaving it.
 * @throws KvmError with the errno of that ioctl
 *
 * @example
 * ```ts
 * for await (const { phase, simulatedNs } of moveContext(destination, source)) console.log(phase, simulatedNs);
 * ```
 */
export async function* moveContext(destination: Vm, source: FdObject | number): AsyncIterable<MovePhase> {
  for await (const message of destination.caller.serverStream(MigrationService.moveContext, requestOf(destination, source))) {
    const data = dataOf(message);
    if (data !== null) yield { ...data, simulatedNs: message.simulated_ns };
  }
}

/** Whether that move would be allowed, and why not. It changes nothing. */
export const validateMove = async (destination: Vm, source: FdObject | number): Promise<Verdict> => {
  const request = { ...requestOf(destination, source), validate_only: true };
  let verdict: Verdict | null = null;
  for await (const message of destination.caller.serverStream(MigrationService.moveContext, request)) verdict ??= message.verdict;
  return present(verdict, 'verdict');
};
