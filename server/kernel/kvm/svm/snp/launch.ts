import { SNP_LAUNCH_FINISH, SNP_LAUNCH_START, SNP_LAUNCH_UPDATE } from '../../../../hardware/amd/snp/command-buffers.js';
import { ID_AUTH, ID_BLOCK } from '../../../../hardware/amd/snp/id-block.js';
import { PAGE_TYPE } from '../../../../hardware/amd/snp/snp-launch-digest.js';
import { hasSnpPolicy, SNP_POLICY } from '../../../../hardware/amd/snp/snp-policy.js';
import { gpa } from '../../../../hardware/units.js';
import { Failure, failed } from '../../../failure.js';
import type { MightSleep } from '../../../sched/wait.js';
import { kvm_sev_snp_launch_finish, kvm_sev_snp_launch_start } from '../../../uapi/sev-structs.js';
import type { Vcpu } from '../../vcpu.js';
import { copyBlob, copyParams, issue, issueOnFd, placeBlob, type SevCall, type SevHandler } from '../sev-command.js';
import { isSevSnpGuest } from '../sev-info.js';
import { creationInProgress, lockAllVcpus, protectState, syncSaveArea, unlockAllVcpus } from '../sev-vcpu.js';
import { bindSnpAsid, contextAddress, createContext, decommissionContext } from './context.js';
import { rmpMakePrivate, snpPageReclaim } from './rmp.js';

/** Where the save area of every vCPU is measured (`INITIAL_VMSA_GPA`). */
const INITIAL_VMSA_GPA = gpa(0xffff_ffff_f000);

const invalid = (reason: string, kernelRef: string, field: string, given: number | bigint, allowed: string): Failure =>
  new Failure('EINVAL', reason, kernelRef, { field, given: `0x${given.toString(16)}`, allowed });

const notSnp = (call: SevCall, kernelRef: string): Failure =>
  new Failure('ENOTTY', 'NOT_AN_SNP_GUEST', kernelRef, { object: `vm ${call.vm.id}` });

/** KVM_SEV_SNP_LAUNCH_START (`snp_launch_start`): a context, a key, and the ASID bound to it. */
export const snpLaunchStart: SevHandler = (call) => {
  const kernelRef = 'snp_launch_start';
  const { module, vm, sev } = call;
  if (!isSevSnpGuest(vm)) return notSnp(call, kernelRef);
  const params = copyParams(call, kvm_sev_snp_launch_start);
  if (failed(params)) return params;
  const { policy, flags, gosvw } = params;
  if (sev.snpContext !== null) return new Failure('EINVAL', 'SNP_CONTEXT_EXISTS', kernelRef, { object: `vm ${vm.id}` });
  if (flags !== 0) return invalid('SNP_LAUNCH_FLAGS', kernelRef, 'flags', flags, '0');
  const allowed = module.snpPolicyBits;
  if ((policy & ~allowed) !== 0n)
    return invalid('SNP_POLICY_BITS', kernelRef, 'policy', policy, `bits of 0x${allowed.toString(16)}`);
  if (!hasSnpPolicy(policy, SNP_POLICY.RESERVED_ONE))
    return invalid('SNP_POLICY_RESERVED_ONE', kernelRef, 'policy', policy, 'bit 17 set');
  const uncreated = createContext(call);
  if (uncreated !== null) return uncreated;
  const buffer = new Uint8Array(SNP_LAUNCH_START.size);
  SNP_LAUNCH_START.gctxPaddr.set(buffer, contextAddress(sev));
  SNP_LAUNCH_START.policy.set(buffer, policy);
  SNP_LAUNCH_START.gosvw.set(buffer, gosvw);
  const refused = issueOnFd(call, call.sevFd, 'SNP_LAUNCH_START', buffer, kernelRef);
  if (refused !== null) {
    decommissionContext(module, sev);
    return refused;
  }
  sev.policy = Number(policy);
  sev.fd = call.sevFd;
  const unbound = bindSnpAsid(call);
  if (unbound !== null) decommissionContext(module, sev);
  return unbound;
};

/** One vCPU's part of `snp_launch_update_vmsa`: its save area is measured, and the guest's from then on. */
const launchSaveArea = (call: SevCall, vcpu: Vcpu): Failure | null => {
  const kernelRef = 'snp_launch_update_vmsa';
  const { module, sev } = call;
  const page = syncSaveArea(vcpu);
  if (failed(page)) return page;
  const { frame } = page;
  if (!rmpMakePrivate(module, frame, INITIAL_VMSA_GPA, sev.asid, true))
    return new Failure('EINVAL', 'RMPUPDATE_FAILED', kernelRef, { object: `vcpu ${vcpu.id}` });
  const buffer = new Uint8Array(SNP_LAUNCH_UPDATE.size);
  SNP_LAUNCH_UPDATE.gctxPaddr.set(buffer, contextAddress(sev));
  SNP_LAUNCH_UPDATE.flags.set(buffer, PAGE_TYPE.VMSA << 1);
  SNP_LAUNCH_UPDATE.pagePaddr.set(buffer, frame.hpa);
  const refused = issueOnFd(call, call.sevFd, 'SNP_LAUNCH_UPDATE', buffer, kernelRef);
  if (refused !== null) snpPageReclaim(module, frame);
  else protectState(vcpu);
  return refused;
};

function* launchSaveAreas(call: SevCall): MightSleep<Failure | null> {
  const { module, current, vm } = call;
  const busy = creationInProgress(vm, 'snp_launch_update_vmsa');
  if (busy !== null) return busy;
  const killed = yield* lockAllVcpus(module, current, vm);
  if (killed !== null) return killed;
  let failure: Failure | null = null;
  for (const vcpu of vm.vcpus) {
    failure = launchSaveArea(call, vcpu);
    if (failure !== null) break;
  }
  unlockAllVcpus(current, vm);
  return failure;
}

/** Bits of `flags` of SNP_LAUNCH_FINISH. */
const FINISH_FLAG = { ID_BLOCK_EN: 1, AUTH_KEY_EN: 2, VCEK_DIS: 4 } as const;

/** Puts one of the blocks with the owner's signatures where the firmware reads it; its address. */
const placeIdBlob = (call: SevCall, slot: number, field: string, address: bigint, length: number): number | Failure => {
  const blob = copyBlob(call, field, address, length);
  return failed(blob) ? blob : placeBlob(call, slot, blob);
};

/** KVM_SEV_SNP_LAUNCH_FINISH (`snp_launch_finish`): measures the vCPUs, and ends the launch. */
export const snpLaunchFinish: SevHandler = function* snpLaunchFinish(call) {
  const kernelRef = 'snp_launch_finish';
  const { vm, sev } = call;
  if (!isSevSnpGuest(vm)) return notSnp(call, kernelRef);
  if (sev.snpContext === null) return new Failure('EINVAL', 'NO_SNP_CONTEXT', kernelRef, { object: `vm ${vm.id}` });
  const params = copyParams(call, kvm_sev_snp_launch_finish);
  if (failed(params)) return params;
  if (params.flags !== 0) return invalid('SNP_LAUNCH_FLAGS', kernelRef, 'flags', params.flags, '0');
  const unmeasured = yield* launchSaveAreas(call);
  if (unmeasured !== null) return unmeasured;
  const buffer = new Uint8Array(SNP_LAUNCH_FINISH.size);
  // The kernel puts the byte into a field of one bit.
  let flags = (params.vcek_disabled & 1) === 0 ? 0 : FINISH_FLAG.VCEK_DIS;
  if (params.id_block_en !== 0) {
    const block = placeIdBlob(call, 0, 'id_block_uaddr', params.id_block_uaddr, ID_BLOCK.size);
    if (failed(block)) return block;
    const auth = placeIdBlob(call, 1, 'id_auth_uaddr', params.id_auth_uaddr, ID_AUTH.size);
    if (failed(auth)) return auth;
    SNP_LAUNCH_FINISH.idBlockPaddr.set(buffer, block);
    SNP_LAUNCH_FINISH.idAuthPaddr.set(buffer, auth);
    flags |= FINISH_FLAG.ID_BLOCK_EN | (params.auth_key_en === 0 ? 0 : FINISH_FLAG.AUTH_KEY_EN);
  }
  SNP_LAUNCH_FINISH.gctxPaddr.set(buffer, contextAddress(sev));
  SNP_LAUNCH_FINISH.flags.set(buffer, flags);
  SNP_LAUNCH_FINISH.hostData.set(buffer, params.host_data);
  const refused = issue(call, 'SNP_LAUNCH_FINISH', buffer, kernelRef);
  // Nothing is measured any more: pages may be given to the guest before it asks for them.
  if (refused === null) vm.arch.preFaultAllowed = true;
  return refused;
};

/** KVM_SEV_SNP_ENABLE_REQ_CERTS (`snp_enable_certs`): extended guest requests exit to userspace. */
export const snpEnableReqCerts: SevHandler = ({ vm, sev }) => {
  const kernelRef = 'snp_enable_certs';
  if (vm.createdVcpus > 0) return invalid('VCPUS_EXIST', kernelRef, 'vcpus', vm.createdVcpus, '0');
  if (!isSevSnpGuest(vm)) return new Failure('EINVAL', 'NOT_AN_SNP_GUEST', kernelRef, { object: `vm ${vm.id}` });
  sev.snpCertsEnabled = true;
  return null;
};
