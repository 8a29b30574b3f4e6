import { type IoctlMethod, structIoctl, valueIoctl } from '../ioctl/method.js';

/** The ioctls of /dev/kvm. */
export const kvmSystem: Readonly<Record<string, IoctlMethod>> = {
  GetApiVersion: valueIoctl('KVM_GET_API_VERSION', undefined, false),
  CreateVm: valueIoctl('KVM_CREATE_VM', 'type'),
  GetMsrIndexList: structIoctl('KVM_GET_MSR_INDEX_LIST', 'msr_list'),
  CheckExtension: valueIoctl('KVM_CHECK_EXTENSION', 'extension', false),
  GetVcpuMmapSize: valueIoctl('KVM_GET_VCPU_MMAP_SIZE', undefined, false),
  GetSupportedCpuid: structIoctl('KVM_GET_SUPPORTED_CPUID', 'cpuid'),
  GetEmulatedCpuid: structIoctl('KVM_GET_EMULATED_CPUID', 'cpuid'),
  GetMsrFeatureIndexList: structIoctl('KVM_GET_MSR_FEATURE_INDEX_LIST', 'msr_list'),
  GetMsrs: structIoctl('KVM_GET_MSRS', 'msrs'),
  GetDeviceAttr: structIoctl('KVM_GET_DEVICE_ATTR', 'device_attr'),
  HasDeviceAttr: structIoctl('KVM_HAS_DEVICE_ATTR', 'device_attr'),
};
