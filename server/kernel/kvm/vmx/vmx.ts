import type { Kernel } from '../../kernel.js';
import { VM_TYPE, type VmType } from '../vm.js';
import type { KvmX86Ops } from '../x86/ops.js';

const SUPPORTED_TYPES = (1 << VM_TYPE.DEFAULT) | (1 << VM_TYPE.SW_PROTECTED);

/**
 * kvm_intel without TDX: `vmx_x86_ops`. It has no operation on encryption contexts, so KVM_MEMORY_ENCRYPT_* is ENOTTY and
 * a move or a copy EINVAL.
 */
export const createVmxOps = (_kernel: Kernel): KvmX86Ops => ({
  supportedVmTypes: SUPPORTED_TYPES,
  isVmTypeSupported: (type): type is VmType => type >= 0 && type < 32 && ((SUPPORTED_TYPES >>> type) & 1) === 1,
  vmInit: () => null,
  *vmDestroy() {},
  vcpuCreate: () => null,
  vcpuFree: () => {},
  vcpuPreRun: () => null,
  enterGuest: () => ({ kind: 'handled' }),
  leaveGuest: () => {},
  handleVendorExit: (_current, _vcpu, { kind }) => {
    throw new Error(`${kind} exits on no host without TDX`);
  },
  vcpuAfterSetCpuid: () => {},
  deliverSipi: () => false,
  guestStateProtected: () => false,
  hasProtectedState: () => false,
  hasPrivateMemory: (vm) => vm.type === VM_TYPE.SW_PROTECTED,
  visibleState: (vcpu) => vcpu.arch.cpu.state,
  memoryEncryption: () => ({ kind: 'none' }),
  encryptedState: () => false,
  encryptionKey: () => null,
  guestMemoryReclaimed: () => {},
});
