import { isObject, type Json, type JsonObject } from '../conformance/json.js';
import { toU64 } from '../conformance/op-args.js';
import type { OpResult } from '../conformance/operation.js';

/** What the two kernels answered to the same call. */
export interface Answers {
  readonly op: JsonObject;
  readonly real: OpResult;
  readonly simulated: OpResult;
}

/** A difference that is known, with its reason. */
export interface Explanation {
  readonly name: string;
  readonly reason: string;
  /** Whether the two are in the same state afterwards; if not, the sequence is over. */
  readonly sameState: boolean;
  explains(answers: Answers): boolean;
}

const number = (value: Json | undefined): number => Number(toU64(value));
const member = (value: Json | undefined, key: string): Json | undefined => (isObject(value) ? value[key] : undefined);

/** The simulated host has nested paging and 48 bits of physical address. */
const PHYSICAL_ADDRESS_END = 2 ** 48;

/** Differences between the kernels of which nothing is to be changed; `real` is a machine whose KVM is kvm_pvm. */
export const EXPLANATIONS: readonly Explanation[] = [
  {
    name: 'no_memory_attributes',
    reason:
      'The real kernel was built without CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES: KVM_SET_MEMORY_ATTRIBUTES does not exist there.',
    sameState: true,
    explains: ({ op, real, simulated }) =>
      op.op === 'set_memory_attributes' && real.errno === 'ENOTTY' && simulated.errno === 'EINVAL',
  },
  {
    name: 'shadow_paging_address_width',
    reason:
      "With shadow paging a slot may lie below 2^52 (kvm_mmu_max_gfn); with nested paging only below the host's MAXPHYADDR.",
    sameState: false,
    explains: ({ op, real, simulated }) =>
      op.op === 'set_user_memory_region' &&
      real.errno === null &&
      simulated.errno === 'EINVAL' &&
      number(op.gpa) + number(op.size) > PHYSICAL_ADDRESS_END,
  },
  {
    name: 'svm_interrupt_shadow',
    reason:
      'The VMCB has one bit for the shadow of STI and of MOV SS, and svm_get_interrupt_shadow shows both; kvm_pvm keeps them apart.',
    sameState: true,
    explains: ({ op, real, simulated }) =>
      op.op === 'get_vcpu_events' &&
      number(member(real.interrupt, 'shadow')) !== 0 &&
      number(member(simulated.interrupt, 'shadow')) === 3,
  },
];
