import type { CpuState } from '../../../hardware/cpu/state.js';
import type { Asid, Gfn } from '../../../hardware/units.js';
import type { KmemCharge } from '../../kmem.js';
import type { Page } from '../../mm/page.js';
import type { Vcpu } from '../vcpu.js';
import { NO_ASID } from './sev-info.js';

/** The page that holds an encrypted vCPU's registers between entries (VMSA). */
export interface SaveArea {
  readonly page: Page;
  readonly charge: KmemCharge;
}

/** The fields of a VMCB's control area on which memory encryption depends (APM volume 2, appendix B). */
export interface VmcbControl {
  /** NP control bit 1: SEV. */
  sevEnabled: boolean;
  /** NP control bit 2: SEV-ES. */
  sevEsEnabled: boolean;
  /** SEV_FEATURES of the save area, bit 0: SEV-SNP. */
  snpEnabled: boolean;
  /** Of the save area: the privilege level at which the vCPU runs. */
  vmpl: number;
  asid: Asid;
  /** VMSA pointer; null is INVALID_PAGE. */
  vmsa: Page | null;
  /** GHCB MSR as the guest last wrote it; null is INVALID_PAGE, after a move. */
  ghcb: bigint | null;
}

/** How an application processor waits for its SIPI (SEV-ES). */
export type ApResetHold = 'none' | 'nae-event' | 'msr-protocol';

/** `struct vcpu_sev_es_state`: travels with a move. */
export interface SevEsState {
  saveArea: SaveArea | null;
  apResetHold: ApResetHold;
  receivedFirstSipi: boolean;
  /** SEV-SNP: the GHCB that the guest has registered, the only one that it may use; null: none yet. */
  ghcbRegisteredGpa: bigint | null;
  /** SEV-SNP: what another vCPU has ordered for the next INIT of this one. */
  apCreation: ApCreation | null;
  /** SEV-SNP: the vCPU runs from a save area in guest memory; the one that KVM allocated is not used any more. */
  hasGuestVmsa: boolean;
}

/** `snp_ap_waiting_for_reset` and `snp_vmsa_gpa`: a new save area in the guest's private memory; null: none, the vCPU stops. */
export interface ApCreation {
  readonly vmsa: Gfn | null;
}

export const freshSevEsState = (): SevEsState => ({
  saveArea: null,
  apResetHold: 'none',
  receivedFirstSipi: false,
  ghcbRegisteredGpa: null,
  apCreation: null,
  hasGuestVmsa: false,
});

/** `struct vcpu_svm`: what kvm_amd keeps for a vCPU. */
export class VcpuSvm {
  readonly vmcb: VmcbControl = {
    ...{ sevEnabled: false, sevEsEnabled: false, snpEnabled: false },
    ...{ vmpl: 0, asid: NO_ASID, vmsa: null, ghcb: 0n },
  };
  sevEs: SevEsState = freshSevEsState();
  /** `vcpu->arch.guest_state_protected`: registers are in the save area, and KVM's are a stale copy. Null: not protected. */
  staleState: CpuState | null = null;

  get guestStateProtected(): boolean {
    return this.staleState !== null;
  }
}

/** `to_svm`. */
export const toSvm = (vcpu: Vcpu): VcpuSvm => {
  const { svm } = vcpu.arch;
  if (svm === null) throw new Error(`vcpu ${vcpu.id} was not made by kvm_amd`);
  return svm;
};

/** The physical CPU on which a vCPU runs: vCPUs are spread over the host's CPUs and stay where they are. */
export const physicalCpu = (vcpu: Vcpu): number => vcpu.index % vcpu.vm.kernel.config.cpus;
