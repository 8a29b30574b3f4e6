import { Vector } from '../../../hardware/cpu/registers.js';
import { KVM_EXIT, KVM_MSR_EXIT_REASON, KVM_MSR_FILTER } from '../../uapi/constants.js';
import { kvm_run__msr } from '../../uapi/kvm-run.js';
import type { Vcpu } from '../vcpu.js';
import { completion } from './completion.js';
import { skipEmulatedInstruction } from './debug.js';
import { queueException } from './inject.js';
import { getMsr, setMsr } from './msrs.js';
import type { Turn } from './vcpu-arch.js';

type Reason = (typeof KVM_MSR_EXIT_REASON)[keyof typeof KVM_MSR_EXIT_REASON];

const generalProtection = (vcpu: Vcpu): Turn => {
  queueException(vcpu, Vector.GP, 0);
  return 'again';
};

const allowed = ({ vm }: Vcpu, index: number, access: (typeof KVM_MSR_FILTER)[keyof typeof KVM_MSR_FILTER]): boolean =>
  vm.arch.msrFilter?.allows(index, access) ?? true;

/** Whether an access of the guest to an MSR that the CPU holds itself has to come here: because it is filtered. */
export const msrIntercepted = (vcpu: Vcpu, index: number, write: boolean): boolean =>
  !allowed(vcpu, index, write ? KVM_MSR_FILTER.WRITE : KVM_MSR_FILTER.READ);

/** Why an MSR is refused: nobody knows it, or the value is not one of its. */
const refusal = (vcpu: Vcpu, index: number): Reason =>
  getMsr(vcpu, index, true) === null ? KVM_MSR_EXIT_REASON.UNKNOWN : KVM_MSR_EXIT_REASON.INVAL;

/** `complete_emulated_msr` and its kin: where an access came from, and where its outcome goes. */
export interface MsrAccess {
  /** RDMSR: its value. */
  loaded(value: bigint): Turn;
  /** WRMSR is done. */
  stored(): Turn;
  /** Nobody knows the MSR, or it does not take the value. */
  refused(): Turn;
}

/** An access by the instruction at RIP. */
const byInstruction = (vcpu: Vcpu): MsrAccess => ({
  loaded: (value) => {
    loadEdxEax(vcpu, value);
    return skipEmulatedInstruction(vcpu);
  },
  stored: () => skipEmulatedInstruction(vcpu),
  refused: () => generalProtection(vcpu),
});

/** `kvm_msr_user_space`: userspace decides if it has asked for this reason; else the access is refused. */
const toUserspace = (
  vcpu: Vcpu,
  access: MsrAccess,
  exit: typeof KVM_EXIT.X86_RDMSR | typeof KVM_EXIT.X86_WRMSR,
  reason: Reason,
  index: number,
  data: bigint,
): Turn => {
  const { arch, vm } = vcpu;
  if ((vm.arch.userSpaceMsrMask & reason) === 0) return access.refused();
  arch.run.exit(exit, kvm_run__msr, { error: 0, reason, index, data });
  const reads = exit === KVM_EXIT.X86_RDMSR;
  arch.completion = completion('msr', reads, () => {
    const answer = arch.run.msrAnswer();
    if (answer.error) return access.refused();
    return reads ? access.loaded(answer.data) : access.stored();
  });
  return 'to-user';
};

const loadEdxEax = ({ arch }: Vcpu, value: bigint): void => {
  arch.state.setRegister(0, value & 0xffff_ffffn);
  arch.state.setRegister(2, value >> 32n);
};

/** `kvm_emulate_rdmsr`. */
export const emulateRdmsr = (vcpu: Vcpu, index: number, access = byInstruction(vcpu)): Turn => {
  if (!allowed(vcpu, index, KVM_MSR_FILTER.READ))
    return toUserspace(vcpu, access, KVM_EXIT.X86_RDMSR, KVM_MSR_EXIT_REASON.FILTER, index, 0n);
  const value = getMsr(vcpu, index, false);
  if (value === null) return toUserspace(vcpu, access, KVM_EXIT.X86_RDMSR, refusal(vcpu, index), index, 0n);
  return access.loaded(value);
};

/** `kvm_emulate_wrmsr`. */
export const emulateWrmsr = (vcpu: Vcpu, index: number, value: bigint, access = byInstruction(vcpu)): Turn => {
  if (!allowed(vcpu, index, KVM_MSR_FILTER.WRITE))
    return toUserspace(vcpu, access, KVM_EXIT.X86_WRMSR, KVM_MSR_EXIT_REASON.FILTER, index, value);
  if (!setMsr(vcpu, index, value, false))
    return toUserspace(vcpu, access, KVM_EXIT.X86_WRMSR, refusal(vcpu, index), index, value);
  return access.stored();
};
