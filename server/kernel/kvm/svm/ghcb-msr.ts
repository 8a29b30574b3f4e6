import { C_BIT_POSITION } from '../../../hardware/amd/firmware-memory.js';
import {
  decodeGhcbMsrCpuid,
  GHCB_MSR,
  ghcbMsr,
  ghcbMsrCode,
  ghcbMsrCpuidResponse,
  ghcbMsrData,
  ghcbMsrSevInfo,
} from '../../../hardware/amd/ghcb.js';
import { KVM_EXIT, KVM_SYSTEM_EVENT } from '../../uapi/constants.js';
import { kvm_run__system_event } from '../../uapi/kvm-run.js';
import type { Vcpu } from '../vcpu.js';
import type { VendorExit } from '../x86/ops.js';
import { holdForSipi } from './ap-reset-hold.js';
import { isSevSnpGuest, toSevInfo } from './sev-info.js';
import { pageStateChangeByMsr } from './snp/page-state-change.js';
import { toSvm } from './vcpu-svm.js';

const HANDLED: VendorExit = { kind: 'handled' };

/** KVM_EXIT_SYSTEM_EVENT of a guest that gives up; `data` is what it says about the reason. */
export const terminate = (vcpu: Vcpu, data: bigint): VendorExit => {
  vcpu.arch.run.exit(KVM_EXIT.SYSTEM_EVENT, kvm_run__system_event, { type: KVM_SYSTEM_EVENT.SEV_TERM, ndata: 1, data: [data] });
  return { kind: 'to-user' };
};

/** `GHCB_HV_FT_SUPPORTED`: SEV-SNP and AP creation; told to every guest that asks. */
export const GHCB_HV_FT_SUPPORTED = 3n;

/** `GHCB_MSR_PREF_GPA_NONE`: the guest may put its GHCB where it likes. */
const NO_PREFERRED_GPA = 0xf_ffff_ffff_ffffn;

const VERSION_SHIFT = 48n;

/** The highest protocol is the guest's own `ghcb_version`, which a move leaves behind: a guest that asks again gets 0 [D]. */
const sevInfo = (ghcbVersion: number): bigint =>
  (ghcbMsrSevInfo(C_BIT_POSITION) & ((1n << VERSION_SHIFT) - 1n)) | (BigInt(ghcbVersion) << VERSION_SHIFT);

/** The registers of CPUID in the order of the protocol's register numbers. */
const CPUID_REGISTERS = ['eax', 'ebx', 'ecx', 'edx'] as const;

/**
 * `sev_handle_vmgexit_msr_protocol`: what a guest asks for before it has a GHCB, in the GHCB MSR itself; the answer is
 * there when it goes on. A request that nobody knows stays where it is, which is the guest's to see; one for SNP guests
 * terminates any other.
 */
export const handleMsrProtocol = (vcpu: Vcpu, request: bigint): VendorExit => {
  const { vmcb, sevEs } = toSvm(vcpu);
  const snp = isSevSnpGuest(vcpu.vm);
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
      return answer(ghcbMsr(GHCB_MSR.HV_FEATURES_RESP, GHCB_HV_FT_SUPPORTED));
    case GHCB_MSR.PREFERRED_GPA_REQ:
      return snp ? answer(ghcbMsr(GHCB_MSR.PREFERRED_GPA_RESP, NO_PREFERRED_GPA)) : terminate(vcpu, request);
    case GHCB_MSR.REGISTER_GPA_REQ: {
      if (!snp) return terminate(vcpu, request);
      const frame = ghcbMsrData(request);
      sevEs.ghcbRegisteredGpa = frame << 12n;
      return answer(ghcbMsr(GHCB_MSR.REGISTER_GPA_RESP, frame));
    }
    case GHCB_MSR.PSC_REQ:
      return snp ? pageStateChangeByMsr(vcpu, request) : terminate(vcpu, request);
    case GHCB_MSR.TERMINATE:
      return terminate(vcpu, request);
    default:
      return HANDLED;
  }
};
