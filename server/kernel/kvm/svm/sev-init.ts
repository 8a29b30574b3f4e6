import { SEV_FEATURE } from '../../../hardware/amd/vmsa.js';
import { Failure, failed } from '../../failure.js';
import type { Process } from '../../process/process.js';
import { kvm_sev_init } from '../../uapi/sev-structs.js';
import { VM_TYPE, type VmType } from '../vm.js';
import { copyParams, type SevCall, type SevHandler } from './sev-command.js';
import { type SevModule, sevNotEnabled } from './sev-module.js';
import { allocateGuestRequestBuffers } from './snp/guest-request-buffers.js';

const GHCB_VERSION_MAX = 2;
const GHCB_VERSION_LEGACY = 1;

interface InitRequest {
  readonly type: VmType;
  readonly vmsaFeatures: bigint;
  readonly flags: number;
  readonly ghcbVersion: number;
}

const isEs = (type: VmType): boolean => type === VM_TYPE.SEV_ES || type === VM_TYPE.SNP;

const invalid = (reason: string, field: string, given: number | bigint, allowed: string): Failure =>
  new Failure('EINVAL', reason, '__sev_guest_init', { field, given: String(given), allowed });

/** The checks of `__sev_guest_init`, in their order. */
const check = ({ vm, sev, module }: SevCall, request: InitRequest): Failure | null => {
  const { type, vmsaFeatures, flags, ghcbVersion } = request;
  const allowed = isEs(type) ? module.vmsaFeatures : 0n;
  if (vm.createdVcpus > 0) return invalid('VCPUS_EXIST', 'vcpus', vm.createdVcpus, '0');
  if (flags !== 0) return invalid('INIT_FLAGS', 'flags', flags, '0');
  if ((vmsaFeatures & ~allowed) !== 0n)
    return invalid('VMSA_FEATURES', 'vmsa_features', vmsaFeatures, `bits of 0x${allowed.toString(16)}`);
  if (ghcbVersion > GHCB_VERSION_MAX || (!isEs(type) && ghcbVersion !== 0))
    return invalid('GHCB_VERSION', 'ghcb_version', ghcbVersion, isEs(type) ? '0 to 2' : '0');
  if (type === VM_TYPE.SNP && ghcbVersion === GHCB_VERSION_LEGACY)
    return invalid('GHCB_VERSION', 'ghcb_version', ghcbVersion, '2');
  return sev.active ? invalid('ALREADY_A_SEV_GUEST', 'vm', vm.id, 'a VM that is no SEV guest') : null;
};

/** Charged as the kernel's cpumask_var_t: a word for each 64 CPUs. */
const maskBytes = (cpus: number): number => Math.ceil(cpus / 64) * 8;

/** An empty `have_run_cpus`. */
export const allocateRunCpuMask = ({ module: { kernel }, vm }: Pick<SevCall, 'module' | 'vm'>) => ({
  cpus: new Set<number>(),
  charge: vm.kmem.charge('cpumask', maskBytes(kernel.config.cpus)),
});

/** `__sev_guest_init`: takes an ASID, brings the platform up if it is the first, and makes the VM a SEV guest. */
const initialise = (call: SevCall, request: InitRequest): Failure | null => {
  const refused = check(call, request);
  if (refused !== null) return refused;
  const { vm, sev, module, current } = call;
  const { kernel } = module;
  const es = isEs(request.type);
  const cgroup = kernel.miscCgroups.of(current.process);
  const asid = module.asids.allocate(cgroup, es);
  if (failed(asid)) return asid;
  const failure = module.psp.platformInit();
  if (failure !== null) {
    module.asids.free(asid, cgroup, es);
    return failure;
  }
  if (request.type === VM_TYPE.SNP) {
    const buffers = allocateGuestRequestBuffers(module, vm);
    if (failed(buffers)) {
      module.asids.free(asid, cgroup, es);
      return buffers;
    }
    sev.guestRequest = buffers;
  }
  sev.active = true;
  sev.esActive = es;
  sev.vmsaFeatures = request.vmsaFeatures | (request.type === VM_TYPE.SNP ? SEV_FEATURE.SNP_ACTIVE : 0n);
  sev.ghcbVersion = es && request.ghcbVersion === 0 ? GHCB_VERSION_MAX : request.ghcbVersion;
  sev.asid = asid;
  sev.miscCg = cgroup;
  sev.haveRunCpus = allocateRunCpuMask(call);
  sev.needInit = false;
  kernel.sanitizer.contexts.bound(vm, asid);
  return null;
};

const esNotEnabled = (): Failure =>
  new Failure('ENOTTY', 'SEV_ES_NOT_ENABLED', 'sev_mem_enc_ioctl', { allowed: 'a host with SEV-ES' });

/** What a SEV or SEV-ES guest of a process would be refused with now for want of what the host has. Nothing is taken. */
export const validateSevInit = (
  { asids, enabled, esEnabled, kernel }: SevModule,
  process: Process,
  es: boolean,
): Failure | null =>
  !enabled ? sevNotEnabled() : es && !esEnabled ? esNotEnabled() : asids.whyNone(kernel.miscCgroups.of(process), es);

/** KVM_SEV_INIT and KVM_SEV_ES_INIT (`sev_guest_init`): only for VMs of type DEFAULT. */
const legacyInit =
  (es: boolean): SevHandler =>
  (call) => {
    if (es && !call.module.esEnabled) return esNotEnabled();
    if (call.vm.type !== VM_TYPE.DEFAULT)
      return new Failure('EINVAL', 'VM_TYPE_NOT_DEFAULT', 'sev_guest_init', { field: 'type', given: String(call.vm.type) });
    return initialise(call, {
      type: es ? VM_TYPE.SEV_ES : VM_TYPE.SEV,
      vmsaFeatures: 0n,
      flags: 0,
      ghcbVersion: es ? GHCB_VERSION_LEGACY : 0,
    });
  };

export const sevInit: SevHandler = legacyInit(false);
export const sevEsInit: SevHandler = legacyInit(true);

/** KVM_SEV_INIT2 (`sev_guest_init2`): for VMs that were made as SEV, SEV-ES or SEV-SNP guests. */
export const sevInit2: SevHandler = (call) => {
  if (!call.sev.needInit)
    return new Failure('EINVAL', 'INIT2_NOT_EXPECTED', 'sev_guest_init2', { field: 'type', given: String(call.vm.type) });
  const init = copyParams(call, kvm_sev_init);
  if (failed(init)) return init;
  return initialise(call, {
    type: call.vm.type,
    vmsaFeatures: init.vmsa_features,
    flags: init.flags,
    ghcbVersion: init.ghcb_version,
  });
};
