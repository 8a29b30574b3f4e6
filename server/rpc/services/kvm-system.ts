import type { KvmSystem } from '../../../gen/services.js';
import { type IoctlMethod, structIoctl, valueIoctl } from '../ioctl/method.js';

/** The ioctls of /dev/kvm. */
export const kvmSystem = {
  getApiVersion: valueIoctl('KVM_GET_API_VERSION', undefined, false),
  createVm: valueIoctl('KVM_CREATE_VM', 'type'),
  getMsrIndexList: structIoctl('KVM_GET_MSR_INDEX_LIST', 'msr_list'),
  checkExtension: valueIoctl('KVM_CHECK_EXTENSION', 'extension', false),
  getVcpuMmapSize: valueIoctl('KVM_GET_VCPU_MMAP_SIZE', undefined, false),
  getSupportedCpuid: structIoctl('KVM_GET_SUPPORTED_CPUID', 'cpuid'),
  getEmulatedCpuid: structIoctl('KVM_GET_EMULATED_CPUID', 'cpuid'),
  getMsrFeatureIndexList: structIoctl('KVM_GET_MSR_FEATURE_INDEX_LIST', 'msr_list'),
  getMsrs: structIoctl('KVM_GET_MSRS', 'msrs'),
  getDeviceAttr: structIoctl('KVM_GET_DEVICE_ATTR', 'device_attr'),
  hasDeviceAttr: structIoctl('KVM_HAS_DEVICE_ATTR', 'device_attr'),
} satisfies Record<keyof typeof KvmSystem, IoctlMethod>;
