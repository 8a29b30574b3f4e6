import { loadSaveArea, storeSaveArea } from '../../../hardware/amd/save-area.js';
import { SEV_FEATURE, VMSA } from '../../../hardware/amd/vmsa.js';
import { Msr } from '../../../hardware/cpu/registers.js';
import type { CpuExit } from '../../../hardware/cpu/types.js';
import type { Frame, MemoryKey } from '../../../hardware/dram.js';
import { asid } from '../../../hardware/units.js';
import { Failure } from '../../failure.js';
import { KVM_EXIT } from '../../uapi/constants.js';
import { kvm_run__fail_entry } from '../../uapi/kvm-run.js';
import type { Vcpu } from '../vcpu.js';
import type { VendorExit } from '../x86/ops.js';
import { isSevEsGuest, isSevGuest, isSevSnpGuest, toSevInfo } from './sev-info.js';
import type { SevModule } from './sev-module.js';
import { physicalCpu, toSvm, type VcpuSvm, type VmcbControl } from './vcpu-svm.js';

/** VMEXIT_INVALID, as `hardware_entry_failure_reason` shows the 64-bit exit code (-1). */
const SVM_EXIT_ERR = 0xffff_ffff_ffff_ffffn;

/** SEV_STATUS as the CPU shows it to the guest: bit 0 SEV, 1 SEV-ES, 2 SEV-SNP, and from there the SEV_FEATURES. */
const SEV_STATUS = { SEV: 1n, ES: 2n, SNP: 4n } as const;

/** `pre_svm_run` and `pre_sev_run`: the ASID under which the vCPU enters. EINVAL: an SEV-ES guest without a save area. */
const preSvmRun = (module: SevModule, vcpu: Vcpu, { vmcb }: VcpuSvm): Failure | null => {
  const { vm } = vcpu;
  const cpu = physicalCpu(vcpu);
  if (!isSevGuest(vm)) {
    // Plain guests get ASIDs above those of encrypted ones; one for each vCPU is enough for a TLB that is the vCPU's own.
    setAsid(module, vcpu, module.amd.asidKeys.range.count + 1 + vcpu.index);
    return null;
  }
  const sev = toSevInfo(vm);
  sev.haveRunCpus?.cpus.add(cpu);
  if (isSevEsGuest(vm) && vmcb.vmsa === null)
    return new Failure('EINVAL', 'SAVE_AREA_INVALID', 'pre_sev_run', { object: `vcpu ${vcpu.id} of vm ${vm.id}` });
  setAsid(module, vcpu, sev.asid);
  return null;
};

/** An ASID that this vCPU did not have at its last entry: what its TLB holds belongs to another guest. */
const setAsid = (module: SevModule, vcpu: Vcpu, id: number): void => {
  const { vmcb } = toSvm(vcpu);
  if (vmcb.asid === id) return;
  vmcb.asid = asid(id);
  vcpu.arch.flushTlb();
  module.kernel.costs.charge('tlb_flush');
};

/**
 * What VMRUN checks of memory encryption (APM volume 2, 15.34 and 15.35): the ASID must be one of an encrypted guest with
 * a key in its slot, and an encrypted save area must be there and decrypt to a legal state. A plain
 * VMCB passes. Loads the CPU from the save area.
 */
const vmrunAccepts = (module: SevModule, vcpu: Vcpu, { vmcb }: VcpuSvm): boolean => {
  if (!vmcb.sevEnabled) return !vmcb.sevEsEnabled;
  const key = module.amd.asidKeys.keyOf(vmcb.asid);
  if (key === null) return false;
  if (!vmcb.sevEsEnabled) return true;
  if (vmcb.vmsa === null) return false;
  const { frame } = vmcb.vmsa;
  const accepted = vmcb.snpEnabled ? snpSaveAreaAccepted(module, vmcb, frame, key) : module.amd.saveAreas.isIntact(frame, key);
  return accepted && loadSaveArea(vcpu.arch.cpu.state, frame.view(key));
};

/** Of an SNP guest the reverse map vouches for the save area, which says so itself (APM volume 2, 15.36.17) [M]. */
const snpSaveAreaAccepted = ({ amd }: SevModule, vmcb: VmcbControl, frame: Frame, key: MemoryKey): boolean => {
  if (amd.rmp.checkVmsa(frame.pfn, vmcb.asid) !== null) return false;
  const page = frame.view(key);
  if ((VMSA.sevFeatures.get(page) & SEV_FEATURE.SNP_ACTIVE) === 0n) return false;
  vmcb.vmpl = VMSA.vmpl.get(page);
  return true;
};

/** `svm_prepare_switch_to_guest` and VMRUN. */
export const enterGuest = (module: SevModule, vcpu: Vcpu): VendorExit => {
  const svm = toSvm(vcpu);
  const refused = preSvmRun(module, vcpu, svm);
  if (refused !== null) return { kind: 'failed', failure: refused };
  const { state } = vcpu.arch.cpu;
  if (!vmrunAccepts(module, vcpu, svm)) {
    vcpu.arch.run.exit(KVM_EXIT.FAIL_ENTRY, kvm_run__fail_entry, {
      hardware_entry_failure_reason: SVM_EXIT_ERR,
      cpu: physicalCpu(vcpu),
    });
    return { kind: 'to-user' };
  }
  if (svm.vmcb.sevEsEnabled) state.ghcb = svm.vmcb.ghcb ?? 0n;
  if (svm.vmcb.sevEnabled) state.writeMsr(Msr.SEV_STATUS, sevStatus(vcpu, svm));
  module.kernel.sanitizer.carried.entered(vcpu);
  module.kernel.sanitizer.interrupts.entered(vcpu);
  return { kind: 'handled' };
};

/** VMEXIT of an encrypted vCPU: its registers go back to the save area, and the GHCB MSR to the control area. */
export const leaveGuest = (module: SevModule, vcpu: Vcpu, exit: CpuExit): void => {
  const { vmcb } = toSvm(vcpu);
  if (!vmcb.sevEsEnabled || vmcb.vmsa === null) return;
  // HLT is an automatic exit: the CPU itself steps over it, for the hypervisor could not.
  if (exit.kind === 'hlt') vcpu.arch.cpu.skipInstruction();
  const { state } = vcpu.arch.cpu;
  vmcb.ghcb = state.ghcb;
  const key = module.amd.asidKeys.keyOf(vmcb.asid);
  storeSaveArea(state, vmcb.vmsa.frame.viewForWrite(key));
  if (key !== null && !vmcb.snpEnabled) module.amd.saveAreas.record(vmcb.vmsa.frame, key);
};

const sevStatus = ({ vm }: Vcpu, { vmcb }: VcpuSvm): bigint => {
  const es = vmcb.sevEsEnabled ? SEV_STATUS.ES : 0n;
  const snp = isSevSnpGuest(vm) ? SEV_STATUS.SNP : 0n;
  return SEV_STATUS.SEV | es | snp | ((toSevInfo(vm).vmsaFeatures & ~SEV_FEATURE.SNP_ACTIVE) << 2n);
};
