import { C_BIT_POSITION } from '../../../hardware/amd/firmware-memory.js';
import {
  decodeGhcbMsrCpuid,
  GHCB_MSR,
  ghcbMsr,
  ghcbMsrCode,
  ghcbMsrCpuidResponse,
  ghcbMsrSevInfo,
} from '../../../hardware/amd/ghcb.js';
import { Failure } from '../../failure.js';
import { KVM_EXIT, KVM_SYSTEM_EVENT } from '../../uapi/constants.js';
import { kvm_run__system_event } from '../../uapi/kvm-run.js';
import type { Vcpu } from '../vcpu.js';
import type { VendorExit } from '../x86/ops.js';
import { holdForSipi } from './ap-reset-hold.js';
import { toSevInfo } from './sev-info.js';
import { toSvm } from './vcpu-svm.js';

const HANDLED: VendorExit = { kind: 'handled' };

/** KVM_EXIT_SYSTEM_EVENT of a guest that gives up; `data` is what it says about the reason. */
export const terminate = (vcpu: Vcpu, data: bigint): VendorExit => {
  vcpu.arch.run.exit(KVM_EXIT.SYSTEM_EVENT, kvm_run__system_event, { type: KVM_SYSTEM_EVENT.SEV_TERM, ndata: 1, data: [data] });
  return { kind: 'to-user' };
};

const VERSION_SHIFT = 48n;

/** The highest protocol is the guest's own `ghcb_version`, which a move leaves behind: a guest that asks again gets 0 [D]. */
const sevInfo = (ghcbVersion: number): bigint =>
  (ghcbMsrSevInfo(C_BIT_POSITION) & ((1n << VERSION_SHIFT) - 1n)) | (BigInt(ghcbVersion) << VERSION_SHIFT);

/** The registers of CPUID in the order of the protocol's register numbers. */
const CPUID_REGISTERS = ['eax', 'ebx', 'ecx', 'edx'] as const;

/**
 * `sev_handle_vmgexit_msr_protocol`: what a guest asks for before it has a GHCB, in the GHCB MSR itself; the answer is
 * there when it goes on. A request that nobody knows ends KVM_RUN with EINVAL.
 */
export const handleMsrProtocol = (vcpu: Vcpu, request: bigint): VendorExit => {
  const { vmcb } = toSvm(vcpu);
  const answer = (value: bigint): VendorExit => {
    vmcb.ghcb = value;
    return HANDLED;
  };
  switch (ghcbMsrCode(request)) {
    case GHCB_MSR.SEV_INFO_REQ:
      return answer(sevInfo(toSevInfo(vcpu.vm).ghcbVersion));
    case GHCB_MSR.CPUID_REQ: {
      const { function: leaf, register } = decodeGhcbMsrCpuid(request);
      const name = CPUID_REGISTERS[register] ?? 'eax';
      return answer(ghcbMsrCpuidResponse(register, vcpu.arch.cpuid.query(leaf, 0)[name]));
    }
    case GHCB_MSR.AP_RESET_HOLD_REQ:
      vmcb.ghcb = ghcbMsr(GHCB_MSR.AP_RESET_HOLD_RESP, 0n);
      return holdForSipi(vcpu, 'msr-protocol');
    case GHCB_MSR.HV_FEATURES_REQ:
      return answer(ghcbMsr(GHCB_MSR.HV_FEATURES_RESP, 0n));
    case GHCB_MSR.TERMINATE:
      return terminate(vcpu, request);
    default:
      return {
        kind: 'failed',
        failure: new Failure('EINVAL', 'GHCB_MSR_REQUEST_UNKNOWN', 'sev_handle_vmgexit_msr_protocol', {
          request: `0x${request.toString(16)}`,
        }),
      };
  }
};
