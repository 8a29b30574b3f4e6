import type { Failure } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import type { Task } from '../../sched/task.js';
import type { MightSleep } from '../../sched/wait.js';
import type { Vcpu } from '../vcpu.js';
import type { Vm } from '../vm.js';

/** The ten proposals; `../shared/design/post-move.md` section 2 has them call by call. */
export const POST_MOVE_POLICIES = [
  'VM_DEAD',
  'NOT_DEAD',
  'ENC_DEAD',
  'VM_MOVED',
  'DISMANTLE_IOCTL',
  'DISMANTLE_ON_MOVE',
  'DISMANTLE_ASYNC',
  'SUCCEED_SILENTLY',
  'BUGGED_ONLY',
  'VCPU_DEAD',
] as const;

export type PostMovePolicyName = (typeof POST_MOVE_POLICIES)[number];

/** An ioctl at the gate of a moved VM: on its VM fd, a vCPU's or a device's. */
export interface GatedCall {
  readonly scope: 'vm' | 'vcpu' | 'device';
  readonly request: number;
  readonly arg: IoctlArg;
  /** The vCPU, for scope 'vcpu'. */
  readonly vcpu?: Vcpu;
}

/** The gate's answer: go on, refuse, or (SUCCEED_SILENTLY) answer without doing anything. */
export type Admission =
  | { readonly kind: 'run' }
  | { readonly kind: 'refuse'; readonly failure: Failure }
  | { readonly kind: 'answer'; readonly ret: number };

export const RUN: Admission = { kind: 'run' };

/**
 * What happens to the source when its encryption context has moved away. One file for each proposal; nothing outside
 * this folder asks which one is in force.
 */
export interface PostMovePolicy {
  readonly name: PostMovePolicyName;
  /** Whether KVM_DISMANTLE_VM exists; ENOTTY otherwise. */
  readonly offersDismantle: boolean;
  /**
   * Runs in place of `kvm_vm_dead(source)`, with both VMs' locks and vCPU mutexes held and the context gone. Null: done,
   * without a wait.
   */
  onMove(current: Task, source: Vm): MightSleep<void> | null;
  /** Runs after every lock of the move has been dropped. */
  afterMove(source: Vm): void;
  /** The test at ioctl entry, which holds no lock (`kvm_vm_ioctl` and its like). */
  admit(vm: Vm, call: GatedCall): Admission;
  /** A second test in KVM_CREATE_VCPU, under kvm->lock. */
  admitCreateVcpuLocked(vm: Vm): Failure | null;
  /** A second test in every vCPU ioctl, under vcpu->mutex. */
  admitVcpuLocked(vcpu: Vcpu): Failure | null;
}
