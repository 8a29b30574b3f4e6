import type { NestedFault } from '../../../hardware/cpu/types.js';
import type { Gpa } from '../../../hardware/units.js';
import type { Failure } from '../../failure.js';
import type { PageMissing } from '../../mm/missing-pages.js';
import { KVM_EXIT } from '../../uapi/constants.js';
import { kvm_run__memory_fault } from '../../uapi/kvm-run.js';
import type { Vcpu } from '../vcpu.js';

/** What userspace is told of a fault that KVM_RUN ends with (`kvm_run.memory_fault`). */
export interface MemoryFault {
  /** Bits of KVM_MEMORY_EXIT_FLAG. */
  readonly flags: bigint;
  /** Page aligned. */
  readonly gpa: Gpa;
  readonly size: number;
}

/** `RET_PF_*`: how a fault that gave no mapping goes on. */
export type FaultOutcome =
  /** No slot, or a write to a read-only one: the instruction is emulated, and the access goes to the buses. */
  | { readonly kind: 'emulate' }
  /** The access can be neither mapped nor emulated; the guest makes it again and again. */
  | { readonly kind: 'retry' }
  /**
   * The host does not have the page's contents yet: the vCPU sleeps until they have come, and the guest makes the access again.
   */
  | { readonly kind: 'missing'; readonly page: PageMissing }
  /** KVM_RUN returns this errno, with KVM_EXIT_MEMORY_FAULT where there is something to tell. */
  | { readonly kind: 'failed'; readonly failure: Failure; readonly report: MemoryFault | null };

/** The nested fault as KVM gives it to the CPU, and gets it back with the exit. */
export class KvmPageFault implements NestedFault {
  readonly kind = 'nested-fault';

  constructor(readonly outcome: FaultOutcome) {}

  get mmio(): boolean {
    return this.outcome.kind === 'emulate';
  }
}

/** `RET_PF_EMULATE`; all such faults are alike. */
export const EMULATE = new KvmPageFault({ kind: 'emulate' });
/** `RET_PF_RETRY`. */
export const RETRY = new KvmPageFault({ kind: 'retry' });

/** Ends KVM_RUN with an errno, and with KVM_EXIT_MEMORY_FAULT where there is something to tell. */
export const exitMemoryFault = ({ arch }: Vcpu, { failure, report }: FaultOutcome & { readonly kind: 'failed' }): Failure => {
  if (report !== null) {
    const { flags, gpa, size } = report;
    arch.run.exit(KVM_EXIT.MEMORY_FAULT, kvm_run__memory_fault, { flags, gpa: BigInt(gpa), size: BigInt(size) });
  }
  return failure;
};
