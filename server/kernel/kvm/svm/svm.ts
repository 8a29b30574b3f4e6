import { C_BIT_POSITION } from '../../../hardware/amd/firmware-memory.js';
import { GuestReverseMap } from '../../../hardware/amd/reverse-map.js';
import { SEV_FEATURE } from '../../../hardware/amd/vmsa.js';
import { Failure } from '../../failure.js';
import type { Kernel } from '../../kernel.js';
import { KVM_X86_SEV } from '../../uapi/constants.js';
import { VM_TYPE, type VmType } from '../vm.js';
import type { KvmX86Ops } from '../x86/ops.js';
import { deliverSipi } from './ap-reset-hold.js';
import { copyEncContext } from './sev-copy.js';
import { sevVmDestroy } from './sev-destroy.js';
import { handleVmgexit } from './sev-es.js';
import { isSevEsGuest, isSevSnpGuest, SevInfo, toSevInfo } from './sev-info.js';
import { validateSevInit } from './sev-init.js';
import { sevMemEncIoctl } from './sev-ioctl.js';
import { createSevModule, sevVmTypes, writebackCaches } from './sev-module.js';
import { moveEncContext, validateMove } from './sev-move.js';
import { registerRegion, unregisterRegion } from './sev-regions.js';
import { sevVcpuCreate, sevVcpuFree } from './sev-vcpu.js';
import { initProtectedGuestState } from './snp/ap-creation.js';
import { gmemInvalidate, gmemPrepare, handleRmpFault } from './snp/gmem.js';
import { sevTwoVmLock } from './two-vm-lock.js';
import { toSvm, VcpuSvm } from './vcpu-svm.js';
import { enterGuest, leaveGuest } from './vmrun.js';

const PLAIN_TYPES = (1 << VM_TYPE.DEFAULT) | (1 << VM_TYPE.SW_PROTECTED);
const CPUID_MEMORY_ENCRYPTION = 0x8000_001f;
const C_BIT_FIELD = 0x3f;

/** kvm_amd: `svm_x86_ops` of one kernel. */
export const createSvmOps = (kernel: Kernel): KvmX86Ops => {
  const module = createSevModule(kernel);
  const supportedVmTypes = PLAIN_TYPES | sevVmTypes(module);
  return {
    supportedVmTypes,
    isVmTypeSupported: (type): type is VmType => type >= 0 && type < 32 && ((supportedVmTypes >>> type) & 1) === 1,

    vmInit: (vm) => {
      vm.arch.sev = new SevInfo(vm);
      vm.arch.preFaultAllowed = vm.type !== VM_TYPE.SNP;
      return null;
    },
    vmDestroy: (current, vm) => sevVmDestroy(module, current, vm),
    vcpuCreate: (vcpu) => {
      const svm = new VcpuSvm();
      vcpu.arch.svm = svm;
      if (module.snpEnabled) vcpu.arch.cpu.setReverseMap(new GuestReverseMap(module.amd.rmp, svm.vmcb));
      return sevVcpuCreate(module, vcpu);
    },
    vcpuFree: (vcpu) => sevVcpuFree(module, vcpu),

    memEncIoctl: (current, vm, arg) => sevMemEncIoctl(module, current, vm, arg),
    validateMemEncInit: (process, es) => validateSevInit(module, process, es),
    memEncRegisterRegion: (current, vm, address, size) => registerRegion(module, current, vm, address, size),
    memEncUnregisterRegion: (current, vm, address, size) => unregisterRegion(module, current, vm, address, size),
    vmCopyEncContextFrom: (current, vm, sourceFd) => copyEncContext(module, sevTwoVmLock, current, vm, sourceFd),
    vmMoveEncContextFrom: (current, vm, sourceFd, options) =>
      moveEncContext(module, sevTwoVmLock, current, vm, sourceFd, options),
    validateMoveEncContextFrom: (current, vm, sourceFd) => validateMove(module, current, vm, sourceFd),

    vcpuPreRun: ({ vm }) =>
      toSevInfo(vm).needInit
        ? new Failure('EINVAL', 'SEV_INIT_NEEDED', 'svm_vcpu_pre_run', { object: `vm ${vm.id}`, expected: 'KVM_SEV_INIT2' })
        : null,
    enterGuest: (vcpu) => enterGuest(module, vcpu),
    leaveGuest: (vcpu, exit) => leaveGuest(module, vcpu, exit),
    *handleVendorExit(current, vcpu, { kind }) {
      if (kind !== 'vmgexit') throw new Error(`${kind} exits on no AMD host`);
      const turn = handleVmgexit(module, current, vcpu);
      if (turn === 'again') return { kind: 'handled' };
      return turn === 'to-user' ? { kind: 'to-user' } : { kind: 'failed', failure: turn };
    },
    vcpuAfterSetCpuid: (vcpu) => {
      if (!toSevInfo(vcpu.vm).active) return;
      const leaf = vcpu.arch.cpuid.find(CPUID_MEMORY_ENCRYPTION, 0);
      if (leaf !== undefined) vcpu.arch.reservedGpaBits &= ~(1n << BigInt(leaf.ebx & C_BIT_FIELD));
    },
    deliverSipi: (vcpu) => {
      if (!isSevEsGuest(vcpu.vm)) return false;
      deliverSipi(vcpu);
      return true;
    },

    guestStateProtected: (vcpu) => toSvm(vcpu).guestStateProtected,
    hasProtectedState: (vm) => vm.type === VM_TYPE.SEV_ES || vm.type === VM_TYPE.SNP,
    hasPrivateMemory: (vm) => vm.type === VM_TYPE.SW_PROTECTED || vm.type === VM_TYPE.SNP,
    visibleState: (vcpu) => toSvm(vcpu).staleState ?? vcpu.arch.cpu.state,
    memoryEncryption: (vcpu) => (toSvm(vcpu).vmcb.sevEnabled ? { kind: 'sev', cBit: C_BIT_POSITION } : { kind: 'none' }),
    encryptedState: (vcpu) => toSvm(vcpu).vmcb.sevEsEnabled,
    debugSwap: (vcpu) => (toSevInfo(vcpu.vm).vmsaFeatures & SEV_FEATURE.DEBUG_SWAP) !== 0n,
    encryptionKey: (vcpu) => {
      const { vmcb } = toSvm(vcpu);
      return vmcb.sevEnabled ? module.amd.asidKeys.keyOf(vmcb.asid) : null;
    },
    checkMapping: (vcpu, _address, page, access) => {
      kernel.sanitizer.frames.accessed(vcpu, page, access);
      return page;
    },
    sevAttribute: (attr) => {
      if (attr === KVM_X86_SEV.VMSA_FEATURES) return module.vmsaFeatures;
      if (attr === KVM_X86_SEV.SNP_POLICY_BITS) return module.snpPolicyBits;
      return attr === KVM_X86_SEV.SNP_REQ_CERTS ? BigInt(module.snpEnabled) : null;
    },
    gmemPrepare: (vm, frame, page) => gmemPrepare(module, vm, frame, page),
    gmemInvalidate: (page) => gmemInvalidate(module, page),
    handleRmpFault,
    vcpuReset: (vcpu, init) => {
      if (init && isSevSnpGuest(vcpu.vm)) initProtectedGuestState(vcpu);
    },
    asidsToReclaim: () => module.asids.toReclaim,
    guestMemoryReclaimed: (vm) => {
      // Caches are coherent with the private memory of SNP guests.
      if (toSevInfo(vm).active && !isSevSnpGuest(vm)) writebackCaches(module, vm);
    },
  };
};
