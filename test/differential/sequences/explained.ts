import { isObject, type Json, type JsonObject, stringify } from '../../conformance/json.js';
import { toU64 } from '../../conformance/op-args.js';
import type { OpResult } from '../../conformance/operation.js';

/** A call, and what the real kernel answered. */
export interface Call {
  readonly op: JsonObject;
  readonly real: OpResult;
}

/** What the two kernels answered to the same call. */
export interface Answers extends Call {
  readonly simulated: OpResult;
  /** What has been called before it. */
  readonly earlier: readonly Call[];
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

/** KVM_CAP_VM_COPY_ENC_CONTEXT_FROM and KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM. */
const COPY_ENC_CONTEXT = 197;
const MOVE_ENC_CONTEXT = 206;
const PAT = 0x277;
const SYSENTER_ADDRESSES = [0x175, 0x176] as const;
/** LSTAR, CSTAR, and the bases of FS and GS. */
const LONG_MODE_ADDRESSES = [0xc000_0082, 0xc000_0083, 0xc000_0100, 0xc000_0101, 0xc000_0102] as const;
/** The simulated host has nested paging and 48 bits of physical address. */
const PHYSICAL_ADDRESS_END = 2 ** 48;

/** Differences between the kernels of which nothing is to be changed; `real` is a machine whose KVM is kvm_pvm. */
export const EXPLANATIONS: readonly Explanation[] = [
  {
    name: 'no_memory_attributes',
    reason:
      'The real kernel was built without CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES: KVM_SET_MEMORY_ATTRIBUTES does not exist there.',
    sameState: true,
    explains: ({ op, real }) => op.op === 'set_memory_attributes' && real.errno === 'ENOTTY',
  },
  {
    name: 'no_sev_in_kernel',
    reason: 'kvm_pvm has no vendor functions for encryption contexts, kvm_amd has them also where SEV is off.',
    sameState: true,
    explains: ({ op, real }) =>
      op.op === 'enable_cap' && (op.cap === COPY_ENC_CONTEXT || op.cap === MOVE_ENC_CONTEXT) && real.errno === 'EINVAL',
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
    name: 'no_slots',
    reason:
      'KVM_RUN of a VM without a memory slot is ENOSPC on kvm_pvm, which wants a page table of its own; elsewhere there is nothing to execute.',
    sameState: false,
    explains: ({ op, real }) => op.op === 'run' && real.errno === 'ENOSPC',
  },
  {
    name: 'pat_unchecked',
    reason: 'kvm_pvm takes any value for IA32_PAT; KVM elsewhere only memory types that there are.',
    sameState: false,
    explains: ({ op, real, simulated }) =>
      op.op === 'set_msrs' && stringify(op).includes(`"index":${PAT}`) && real.ret !== simulated.ret,
  },
  {
    name: 'five_level_paging_on_host',
    reason: 'The real host has LA57: addresses in MSRs are canonical in 57 bits, those of the simulated processor in 48.',
    sameState: false,
    explains: ({ op }) =>
      (op.op === 'get_msrs' && SYSENTER_ADDRESSES.some((index) => stringify(op).includes(`[${index}]`))) ||
      (op.op === 'set_msrs' && LONG_MODE_ADDRESSES.some((index) => stringify(op).includes(`"index":${index},`))),
  },
  {
    name: 'emulation_with_pending_exception',
    reason:
      'A failed emulation leaves #UD pending. kvm_pvm, which emulates real mode, fails again then, as VMX does where it has to emulate; svm runs the handler.',
    sameState: false,
    explains: ({ op, real, earlier }) => {
      const last = earlier.findLast((call) => call.op.op === 'run' && call.op.vcpu === op.vcpu);
      return op.op === 'run' && real.exit === 'INTERNAL_ERROR' && last?.real.exit === 'INTERNAL_ERROR';
    },
  },
  {
    name: 'memory_fault',
    reason: 'kvm_pvm has no KVM_EXIT_MEMORY_FAULT: what no memory is behind it hands to the emulator.',
    sameState: false,
    explains: ({ real, simulated }) => simulated.exit === 'MEMORY_FAULT' && real.exit !== 'MEMORY_FAULT',
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

/** Calls after which an irqfd of a line raises it. */
const SIGNALS: ReadonlySet<Json | undefined> = new Set(['irqfd', 'eventfd_write']);

/** Not a difference of answers but of the time at which one is asked for. */
export const INJECTION_PENDING = {
  name: 'irqfd_injection_pending',
  reason:
    'An irqfd of a line raises it in a work item (irqfd_inject) on the real kernel, so it may be seen a moment later; where calls wait for it, the answers are the same.',
  mayConcern: (before: readonly JsonObject[]): boolean => before.some(({ op }) => op === 'irqfd'),
  mayFollow: ({ op }: JsonObject): boolean => SIGNALS.has(op),
};
