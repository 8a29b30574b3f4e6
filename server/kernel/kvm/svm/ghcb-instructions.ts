import { Vector } from '../../../hardware/cpu/registers.js';
import { hypercall } from '../x86/hypercall.js';
import { queueException } from '../x86/inject.js';
import { monitorIsNop } from '../x86/monitor.js';
import { emulateRdmsr, emulateWrmsr } from '../x86/msr-exit.js';
import type { Turn } from '../x86/vcpu-arch.js';
import { answerRegisters, GHCB_ERR, type GhcbHandler, type GhcbRequest, issueException, reject } from './ghcb-request.js';

/**
 * Instructions that an SEV-ES guest's #VC handler passes to the host in its GHCB (`sev_es_validate_vmgexit` and svm's exit
 * handlers): their operands and results are registers of the block, and the guest itself steps over them.
 */

const MASK32 = 0xffff_ffffn;

const missing = (request: GhcbRequest): Turn => reject(request, GHCB_ERR.MISSING_INPUT);

/** SVM_EXIT_MSR: exit_info_1 is 1 for WRMSR. What is refused comes back as #GP (`svm_complete_emulated_msr`). */
export const msrAccess: GhcbHandler = (request) => {
  const { vcpu, info1, rax, rcx, rdx } = request;
  if (rcx === null) return missing(request);
  const index = Number(rcx & MASK32);
  const access = {
    loaded: (value: bigint) => answerRegisters(request, { rax: value & MASK32, rdx: value >> 32n }),
    stored: (): Turn => 'again',
    refused: () => issueException(request, Vector.GP),
  };
  if (info1 === 0n) return emulateRdmsr(vcpu, index, access);
  if (rax === null || rdx === null) return missing(request);
  return emulateWrmsr(vcpu, index, ((rdx & MASK32) << 32n) | (rax & MASK32), access);
};

/** SVM_EXIT_VMMCALL: a protected guest counts as one in 64-bit mode. Registers that it has not declared are 0. */
export const vmmcall: GhcbHandler = (request) => {
  const { vcpu, rax, rbx, rcx, rdx, cpl } = request;
  if (rax === null || cpl === null) return missing(request);
  return hypercall(vcpu, {
    wide: true,
    cpl: Number(cpl),
    nr: rax,
    args: [rbx ?? 0n, rcx ?? 0n, rdx ?? 0n],
    finish: (result) => answerRegisters(request, { rax: result }),
  });
};

/** There is no virtual PMU. */
export const rdpmc: GhcbHandler = (request) => {
  if (request.rcx === null) return missing(request);
  queueException(request.vcpu, Vector.GP, 0);
  return 'again';
};

/** `kvm_handle_invalid_op`: svm intercepts RDTSCP only where the guest must not have it. */
export const rdtscp: GhcbHandler = ({ vcpu }) => {
  queueException(vcpu, Vector.UD);
  return 'again';
};

const monitorMwait = ({ vcpu }: GhcbRequest): Turn => {
  if (!monitorIsNop(vcpu)) queueException(vcpu, Vector.UD);
  return 'again';
};

export const monitor: GhcbHandler = (request) =>
  request.rax === null || request.rcx === null || request.rdx === null ? missing(request) : monitorMwait(request);

export const mwait: GhcbHandler = (request) =>
  request.rax === null || request.rcx === null ? missing(request) : monitorMwait(request);
