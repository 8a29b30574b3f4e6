import type { AmdPlatform } from '../../../hardware/amd/platform.js';
import { SNP_POLICY } from '../../../hardware/amd/snp/snp-policy.js';
import { SEV_FEATURE } from '../../../hardware/amd/vmsa.js';
import type { Psp } from '../../drivers/ccp/psp.js';
import { Failure } from '../../failure.js';
import type { Kernel } from '../../kernel.js';
import { VM_TYPE, type Vm } from '../vm.js';
import { AsidAllocator, asidSpan } from './asid.js';
import { toSevInfo } from './sev-info.js';

/** `KVM_SNP_POLICY_MASK_VALID`: what KVM takes of what the firmware does. A migration agent needs help that it does not give. */
const SNP_POLICY_MASK_VALID =
  0xffffn |
  SNP_POLICY.SMT |
  SNP_POLICY.RESERVED_ONE |
  SNP_POLICY.DEBUG |
  SNP_POLICY.SINGLE_SOCKET |
  SNP_POLICY.CXL_ALLOW |
  SNP_POLICY.MEM_AES_256_XTS |
  SNP_POLICY.RAPL_DIS |
  SNP_POLICY.CIPHERTEXT_HIDING_DRAM |
  SNP_POLICY.PAGE_SWAP_DISABLE;

/** What kvm_amd knows of memory encryption on this host (`sev_hardware_setup`). */
export interface SevModule {
  readonly kernel: Kernel;
  readonly amd: AmdPlatform;
  readonly psp: Psp;
  readonly asids: AsidAllocator;
  /** SEV is there and not switched off: else every memory-encryption ioctl is ENOTTY. */
  readonly enabled: boolean;
  readonly esEnabled: boolean;
  readonly snpEnabled: boolean;
  /** `sev_supported_vmsa_features`: what KVM_SEV_INIT2 may ask for on SEV-ES guests. */
  readonly vmsaFeatures: bigint;
  /** `snp_supported_policy_bits`: what KVM_SEV_SNP_LAUNCH_START may have in its policy. */
  readonly snpPolicyBits: bigint;
}

/** What every memory-encryption ioctl says where SEV is switched off. */
export const sevNotEnabled = (): Failure =>
  new Failure('ENOTTY', 'SEV_NOT_ENABLED', 'sev_mem_enc_ioctl', { allowed: 'a host with SEV enabled' });

/** Bit n: VM type n has an encryption context of its own that this host offers. */
export const sevVmTypes = ({ enabled, esEnabled, snpEnabled }: SevModule): number =>
  (enabled ? 1 << VM_TYPE.SEV : 0) | (esEnabled ? 1 << VM_TYPE.SEV_ES : 0) | (snpEnabled ? 1 << VM_TYPE.SNP : 0);

/** `sev_hardware_setup`: SNP is initialised when the module is loaded, since it cannot be while legacy guests run. */
export const createSevModule = (kernel: Kernel): SevModule => {
  const { amd, psp, config } = kernel;
  if (amd === null || psp === null) throw new Error('kvm_amd needs an AMD host');
  const { range } = amd.asidKeys;
  const es = asidSpan(range, true);
  const esEnabled = config.sev.enabled && config.sev.es && es.first <= es.last;
  const snp = esEnabled && psp.snp?.init() === null ? psp.snp : null;
  return {
    kernel,
    amd,
    psp,
    asids: new AsidAllocator({
      range,
      flush: () => psp.dfFlush(),
      onAllocate: (id) => kernel.sanitizer.contexts.asidAllocated(id),
      onFree: (id) => kernel.sanitizer.contexts.asidFreed(id),
    }),
    enabled: config.sev.enabled,
    esEnabled,
    snpEnabled: snp !== null,
    vmsaFeatures: esEnabled ? SEV_FEATURE.DEBUG_SWAP : 0n,
    snpPolicyBits: snp === null ? 0n : snp.policyBits() & SNP_POLICY_MASK_VALID,
  };
};

/**
 * `sev_writeback_caches`: WBINVD on every CPU that ran the guest, before encrypted memory goes back to the host. A guest
 * that never ran has no line in any cache.
 */
export const writebackCaches = ({ amd, kernel }: SevModule, vm: Vm): void => {
  const cpus = toSevInfo(vm).haveRunCpus?.cpus;
  if (cpus === undefined || cpus.size === 0) return;
  for (const cpu of cpus) amd.wbinvd(cpu);
  const key = amd.asidKeys.keyOf(toSevInfo(vm).asid);
  if (key !== null) kernel.dram.writebackLinesOf(key);
};
