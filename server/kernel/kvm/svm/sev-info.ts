import { SEV_FEATURE } from '../../../hardware/amd/vmsa.js';
import { type Asid, asid } from '../../../hardware/units.js';
import type { MiscCgroup } from '../../cgroup/misc.js';
import type { KmemCharge } from '../../kmem.js';
import { LazySet } from '../../lazy-set.js';
import type { Page } from '../../mm/page.js';
import { VM_TYPE, type Vm } from '../vm.js';
import type { SnpContext } from './snp/context.js';
import type { GuestRequestBuffers } from './snp/guest-request-buffers.js';

/** `struct enc_region`: a range of user memory that KVM_MEMORY_ENCRYPT_REG_REGION has pinned. */
export interface EncRegion {
  readonly address: bigint;
  readonly size: bigint;
  readonly pages: readonly Page[];
  readonly charges: readonly KmemCharge[];
}

/** `have_run_cpus`: the CPUs whose caches may hold lines of the guest. */
export interface RunCpuMask {
  readonly cpus: Set<number>;
  readonly charge: KmemCharge;
}

/** Firmware handle and ASID 0: none. */
export const NO_HANDLE = 0;
export const NO_ASID = asid(0);

/**
 * `struct kvm_sev_info`: the encryption context of a VM. It is a SEV guest while `active`; a move takes that, and all
 * that it guards, to another VM.
 */
export class SevInfo {
  active = false;
  esActive = false;
  /** Types SEV, SEV_ES and SNP cannot run before KVM_SEV_INIT2; a move does not clear it. */
  needInit: boolean;
  asid: Asid = NO_ASID;
  /** Of the firmware's guest context. */
  handle: number = NO_HANDLE;
  /** Descriptor of `/dev/sev` in the VMM's table; looked up again by each command. A move leaves it. */
  fd = 0;
  policy = 0;
  /** SEV-SNP, from KVM_SEV_SNP_LAUNCH_START on. A move leaves it [D]. */
  snpContext: SnpContext | null = null;
  /** SEV-SNP: pages through which guest requests go. A move leaves them [D]. */
  guestRequest: GuestRequestBuffers | null = null;
  /** KVM_SEV_SNP_ENABLE_REQ_CERTS. */
  snpCertsEnabled = false;
  /** Pages pinned, as RLIMIT_MEMLOCK counts them. */
  pagesLocked = 0;
  regions: EncRegion[] = [];
  /** Guest physical address, for the guest's own use (SEV-ES). A move leaves it [D]. */
  apJumpTable = 0n;
  /** SEV_FEATURES of the save areas; bit 0 marks a SEV-SNP guest. */
  vmsaFeatures = 0n;
  /** Highest protocol of the GHCB that the guest may use. A move leaves it [D]. */
  ghcbVersion = 0;
  /** The VM that this one mirrors; holds a reference on it. */
  encContextOwner: Vm | null = null;
  mirrorVms = new LazySet<Vm>();
  /** The group that pays for the ASID. */
  miscCg: MiscCgroup | null = null;
  /** Set while a move or a copy works on this VM. */
  migrationInProgress = false;
  haveRunCpus: RunCpuMask | null = null;

  constructor(vm: Vm) {
    this.needInit = vm.type === VM_TYPE.SEV || vm.type === VM_TYPE.SEV_ES || vm.type === VM_TYPE.SNP;
  }
}

/** `to_kvm_sev_info`: every VM of an AMD host has one. */
export const toSevInfo = (vm: Vm): SevInfo => {
  const { sev } = vm.arch;
  if (sev === null) throw new Error(`vm ${vm.id} was not made by kvm_amd`);
  return sev;
};

/** `sev_guest`. */
export const isSevGuest = (vm: Vm): boolean => toSevInfo(vm).active;

/** `sev_es_guest`. */
export const isSevEsGuest = (vm: Vm): boolean => {
  const { active, esActive } = toSevInfo(vm);
  return active && esActive;
};

/** `sev_snp_guest`. */
export const isSevSnpGuest = (vm: Vm): boolean =>
  (toSevInfo(vm).vmsaFeatures & SEV_FEATURE.SNP_ACTIVE) !== 0n && isSevEsGuest(vm);

/** `is_mirroring_enc_context`. */
export const isMirror = (vm: Vm): boolean => toSevInfo(vm).encContextOwner !== null;
