import { gpaToGfn, PAGE_SIZE } from '../../../../hardware/units.js';
import { failed } from '../../../failure.js';
import { KVM_MP_STATE } from '../../../uapi/constants.js';
import { REQUEST, type Vcpu } from '../../vcpu.js';
import { GHCB_ERR, type GhcbHandler, type GhcbRequest, reject } from '../ghcb-request.js';
import { guestAddress } from '../guest-memory.js';
import { isSevSnpGuest, toSevInfo } from '../sev-info.js';
import { type ApCreation, toSvm } from '../vcpu-svm.js';

/** The low half of exit_info_1; the high half is the APIC id of the vCPU. */
const AP_CREATION = { ON_INIT: 0, CREATE: 1, DESTROY: 2 } as const;
const SIZE_2M = 512n * BigInt(PAGE_SIZE);

/** The save area that the guest has named: any page but one at a 2 MiB boundary, which an erratum forbids. */
const namedVmsa = ({ vcpu, rax, info2 }: GhcbRequest): ApCreation | null => {
  const address = guestAddress(info2);
  if (rax !== toSevInfo(vcpu.vm).vmsaFeatures || address === null) return null;
  return info2 % BigInt(PAGE_SIZE) !== 0n || info2 % SIZE_2M === 0n ? null : { vmsa: gpaToGfn(address) };
};

/**
 * SVM_VMGEXIT_AP_CREATION (`sev_snp_ap_creation`): an SNP guest starts another of its vCPUs from a save area that it has made
 * itself, or stops it. RAX has the features of the save area, which have to be those of the guest.
 */
export const apCreation: GhcbHandler = (request) => {
  const { vcpu, info1, rax } = request;
  const operation = Number(info1 & 0xffff_ffffn);
  if (!isSevSnpGuest(vcpu.vm) || (operation !== AP_CREATION.DESTROY && rax === null))
    return reject(request, GHCB_ERR.MISSING_INPUT);
  const target = vcpu.vm.vcpus.find(({ id }) => id === Number(info1 >> 32n));
  const creation = operation === AP_CREATION.DESTROY ? { vmsa: null } : namedVmsa(request);
  if (target === undefined || creation === null || operation > AP_CREATION.DESTROY)
    return reject(request, GHCB_ERR.INVALID_INPUT);
  toSvm(target).sevEs.apCreation = creation;
  if (operation !== AP_CREATION.ON_INIT) {
    target.request(REQUEST.UPDATE_PROTECTED_GUEST_STATE);
    target.arch.kick();
  }
  return 'again';
};

/** `sev_snp_init_protected_guest_state`, at INIT: what was ordered takes effect. A save area that is not there stops the vCPU. */
export const initProtectedGuestState = (vcpu: Vcpu): void => {
  const { sevEs, vmcb } = toSvm(vcpu);
  const { apCreation: creation } = sevEs;
  if (creation === null) return;
  sevEs.apCreation = null;
  vcpu.arch.mpState = KVM_MP_STATE.HALTED;
  vmcb.vmsa = sevEs.hasGuestVmsa ? null : (sevEs.saveArea?.page ?? null);
  if (creation.vmsa === null) return;
  const page = vcpu.vm.memslots.find(creation.vmsa)?.gmem?.page(creation.vmsa);
  if (page === undefined || failed(page)) return;
  sevEs.hasGuestVmsa = true;
  vmcb.vmsa = page;
  vcpu.arch.mpState = KVM_MP_STATE.RUNNABLE;
};
