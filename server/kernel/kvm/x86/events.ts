import { Vector } from '../../../hardware/cpu/registers.js';
import type { EventInfo } from '../../../hardware/cpu/types.js';

const NMI_VECTOR = 2;
/** NMIs that can wait: one in the CPU's latch, and one more that arrives while the first is on its way. */
const NMI_PENDING_MAX = 2;

/** `exception_class`: what two exceptions at once make of each other (Intel SDM vol. 3, table 6-5). */
const exceptionClass = (vector: number): 'benign' | 'contributory' | 'page-fault' => {
  if (vector === Vector.PF) return 'page-fault';
  const contributory: readonly number[] = [Vector.DE, Vector.TS, Vector.NP, Vector.SS, Vector.GP];
  return contributory.includes(vector) ? 'contributory' : 'benign';
};

/** `exception_type(vector) == EXCPT_FAULT`: RF is set in the image that is pushed. */
export const isFault = (vector: number): boolean => {
  const others: readonly number[] = [Vector.DB, Vector.NMI, Vector.BP, Vector.OF, Vector.DF, Vector.MC];
  return vector <= 31 && !others.includes(vector);
};

export interface QueuedException {
  /** Waits to be injected. */
  pending: boolean;
  /** Was injected, and its delivery has not been seen to succeed. */
  injected: boolean;
  vector: number;
  errorCode: number | null;
  /** CR2 or DR6, not written to the register yet (KVM_CAP_EXCEPTION_PAYLOAD). */
  payload: bigint | null;
}

export interface QueuedInterrupt {
  injected: boolean;
  vector: number;
  /** INT n, not an external interrupt. */
  soft: boolean;
}

/** What waits to be injected into a vCPU (`vcpu->arch.exception`, `.interrupt`, `.nmi_*`). */
export class EventQueue {
  readonly exception: QueuedException = { pending: false, injected: false, vector: 0, errorCode: null, payload: null };
  readonly interrupt: QueuedInterrupt = { injected: false, vector: 0, soft: false };
  nmiInjected = false;
  nmiPending = 0;
  /** NMIs that others have sent since KVM_REQ_NMI was last looked at. */
  nmiQueued = 0;

  /** `kvm_multiple_exception`. @returns false for a triple fault */
  queueException(vector: number, errorCode: number | null = null): boolean {
    const { exception } = this;
    if (exception.pending || exception.injected) {
      const first = exceptionClass(exception.vector);
      const second = exceptionClass(vector);
      exception.injected = false;
      if (exception.vector === Vector.DF) {
        exception.pending = false;
        return false;
      }
      if ((first === 'contributory' && second === 'contributory') || (first === 'page-fault' && second !== 'benign')) {
        this.setException(Vector.DF, 0);
        return true;
      }
    }
    this.setException(vector, errorCode);
    return true;
  }

  private setException(vector: number, errorCode: number | null): void {
    Object.assign(this.exception, { pending: true, vector, errorCode, payload: null });
  }

  /** `kvm_queue_interrupt`. A second one takes the place of the first. */
  queueInterrupt(vector: number, soft: boolean): void {
    Object.assign(this.interrupt, { injected: true, vector, soft });
  }

  /** `process_nmi`. @param blocked an NMI's handler is running */
  processNmi(blocked: boolean): void {
    const limit = blocked || this.nmiInjected ? 1 : NMI_PENDING_MAX;
    this.nmiPending = Math.min(this.nmiPending + this.nmiQueued, limit);
    this.nmiQueued = 0;
  }

  /** `kvm_event_needs_reinjection`. */
  get needsReinjection(): boolean {
    return this.exception.injected || this.interrupt.injected || this.nmiInjected;
  }

  /** Puts back an event whose delivery an exit has interrupted (`svm_complete_interrupts`). */
  requeue(event: EventInfo): void {
    if (event.type === 'nmi') this.nmiInjected = true;
    else if (event.type === 'exception')
      Object.assign(this.exception, { injected: true, pending: false, vector: event.vector, errorCode: event.errorCode });
    else this.queueInterrupt(event.vector, event.type === 'software');
  }

  /** An exit without EXITINTINFO: whatever was injected has been delivered. */
  delivered(): void {
    this.exception.injected = false;
    this.interrupt.injected = false;
    this.nmiInjected = false;
  }

  /** An event that has been injected before and goes in again first; null if there is none. */
  reinjection(): EventInfo | null {
    const { exception, interrupt } = this;
    if (exception.injected) return { type: 'exception', vector: exception.vector, errorCode: exception.errorCode };
    if (exception.pending) return null;
    if (this.nmiInjected) return { type: 'nmi', vector: NMI_VECTOR, errorCode: null };
    if (!interrupt.injected) return null;
    return { type: interrupt.soft ? 'software' : 'interrupt', vector: interrupt.vector, errorCode: null };
  }

  /** Takes the pending exception. */
  takeException(): EventInfo | null {
    const { exception } = this;
    if (!exception.pending) return null;
    exception.pending = false;
    exception.injected = true;
    return { type: 'exception', vector: exception.vector, errorCode: exception.errorCode };
  }

  /** Takes one pending NMI. */
  takeNmi(): EventInfo {
    this.nmiPending--;
    this.nmiInjected = true;
    return { type: 'nmi', vector: NMI_VECTOR, errorCode: null };
  }
}
