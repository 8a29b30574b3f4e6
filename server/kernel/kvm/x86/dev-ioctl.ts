import { Failure, failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import type { Kernel } from '../../kernel.js';
import { KVM_X86_GRP, KVM_X86_XCOMP_GUEST_SUPP } from '../../uapi/constants.js';
import { IOCTL } from '../../uapi/ioctls.js';
import { kvm_device_attr } from '../../uapi/kvm-structs.js';
import { copyStruct } from '../copy-struct.js';
import { copyU64Out } from './copy-word.js';
import { getEmulatedCpuid, getSupportedCpuid } from './cpuid-ioctl.js';
import { getMceCapSupported } from './mce.js';
import { getFeatureMsrs, getMsrFeatureIndexList, getMsrIndexList } from './msrs.js';
import { SUPPORTED_XCR0 } from './xsave.js';

/** `__kvm_x86_dev_get_attr`: a value of the host that a VMM may ask for before it has a VM. ENXIO. */
const systemAttribute = (kernel: Kernel, group: number, attr: bigint): Result<bigint> => {
  if (group === KVM_X86_GRP.SYSTEM && attr === BigInt(KVM_X86_XCOMP_GUEST_SUPP)) return SUPPORTED_XCR0;
  if (group === KVM_X86_GRP.SEV) {
    const value = kernel.ops.sevAttribute?.(Number(attr)) ?? null;
    if (value !== null) return value;
  }
  return new Failure('ENXIO', 'SYSTEM_ATTRIBUTE_UNKNOWN', 'kvm_x86_dev_get_attr', { group: String(group), attr: String(attr) });
};

/** KVM_HAS_DEVICE_ATTR and KVM_GET_DEVICE_ATTR on `/dev/kvm`. Flags are not looked at. */
const deviceAttribute = (kernel: Kernel, arg: IoctlArg, read: boolean): Result<number> => {
  const attribute = copyStruct(arg, kvm_device_attr);
  if (failed(attribute)) return attribute;
  const value = systemAttribute(kernel, attribute.group, attribute.attr);
  if (failed(value)) return value;
  return read ? (copyU64Out(arg.user, attribute.addr, value) ?? 0) : 0;
};

/** `kvm_arch_dev_ioctl`: the x86 part of `/dev/kvm`. EINVAL for an unknown request. */
export const kvmArchDevIoctl = (kernel: Kernel, request: number, arg: IoctlArg): Result<number> => {
  switch (request) {
    case IOCTL.KVM_GET_MSR_INDEX_LIST:
      return getMsrIndexList(arg);
    case IOCTL.KVM_GET_MSR_FEATURE_INDEX_LIST:
      return getMsrFeatureIndexList(arg);
    case IOCTL.KVM_GET_MSRS:
      return getFeatureMsrs(arg);
    case IOCTL.KVM_GET_SUPPORTED_CPUID:
      return getSupportedCpuid(kernel, arg);
    case IOCTL.KVM_GET_EMULATED_CPUID:
      return getEmulatedCpuid(arg);
    case IOCTL.KVM_X86_GET_MCE_CAP_SUPPORTED:
      return getMceCapSupported(arg);
    case IOCTL.KVM_HAS_DEVICE_ATTR:
      return deviceAttribute(kernel, arg, false);
    case IOCTL.KVM_GET_DEVICE_ATTR:
      return deviceAttribute(kernel, arg, true);
    default:
      return new Failure('EINVAL', 'IOCTL_UNKNOWN', 'kvm_arch_dev_ioctl', { request: `0x${request.toString(16)}` });
  }
};
