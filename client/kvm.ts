import { type KvmDeviceAttrInit, type KvmMsrsInit, KvmX86VmType } from '../gen/messages.js';
import { KvmSystem } from '../gen/services.js';
import { withForms } from './forms.js';
import { Handle, handleOf } from './handle.js';
import { CPUID_ENTRIES, MSR_INDICES, msrsRead } from './msrs.js';
import { bare, ioctl, out, ret } from './syscall.js';
import { Vm } from './vm.js';

/** The ioctls of /dev/kvm, under their names in Documentation/virt/kvm/api.rst. */
export const kvmCalls = {
  /**
   * KVM_GET_API_VERSION: ret is 12.
   * Errno: EBADF.
   */
  getApiVersion: ioctl(KvmSystem.getApiVersion, bare, ret),
  /**
   * KVM_CREATE_VM: makes a VM that belongs to the calling process's address space.
   * @param type KvmX86VmType; left out: KVM_X86_DEFAULT_VM
   * Errno: EINVAL (type is not supported), EMFILE, ENOMEM.
   */
  createVm: ioctl(KvmSystem.createVm, (fd, type: number = KvmX86VmType.KVM_X86_DEFAULT_VM) => ({ fd, type }), handleOf(Vm)),
  /**
   * KVM_GET_MSR_INDEX_LIST: the MSRs that can be saved and restored.
   * Errno: E2BIG (more than there is room for; nmsrs says how many), EFAULT.
   */
  getMsrIndexList: ioctl(
    KvmSystem.getMsrIndexList,
    (fd, nmsrs: number = MSR_INDICES) => ({ fd, msr_list: { nmsrs } }),
    out('msr_list'),
  ),
  /**
   * KVM_CHECK_EXTENSION: ret is 0 if the capability is not there, else 1 or what the capability says.
   * Errno: EBADF; an unknown number is 0.
   */
  checkExtension: ioctl(KvmSystem.checkExtension, (fd, extension: number) => ({ fd, extension }), ret),
  /**
   * KVM_GET_VCPU_MMAP_SIZE: ret is the size of a vCPU's mapping in bytes (12288).
   * Errno: EBADF.
   */
  getVcpuMmapSize: ioctl(KvmSystem.getVcpuMmapSize, bare, ret),
  /**
   * KVM_GET_SUPPORTED_CPUID: the CPUID leaves that hardware and KVM support.
   * Errno: E2BIG (more than there is room for), EFAULT, ENOMEM.
   */
  getSupportedCpuid: ioctl(
    KvmSystem.getSupportedCpuid,
    (fd, nent: number = CPUID_ENTRIES) => ({ fd, cpuid: { nent } }),
    out('cpuid'),
  ),
  /**
   * KVM_GET_EMULATED_CPUID: the CPUID leaves that KVM emulates beyond the hardware.
   * Errno: E2BIG (more than there is room for), EFAULT, ENOMEM.
   */
  getEmulatedCpuid: ioctl(
    KvmSystem.getEmulatedCpuid,
    (fd, nent: number = CPUID_ENTRIES) => ({ fd, cpuid: { nent } }),
    out('cpuid'),
  ),
  /**
   * KVM_GET_MSR_FEATURE_INDEX_LIST: the MSRs that describe features of the host.
   * Errno: E2BIG (more than there is room for; nmsrs says how many), EFAULT.
   */
  getMsrFeatureIndexList: ioctl(
    KvmSystem.getMsrFeatureIndexList,
    (fd, nmsrs: number = MSR_INDICES) => ({ fd, msr_list: { nmsrs } }),
    out('msr_list'),
  ),
  /**
   * KVM_GET_MSRS on /dev/kvm: values of feature MSRs, up to the first that could not be.
   * Errno: E2BIG (256 entries or more), EFAULT, ENOMEM.
   */
  getMsrs: ioctl(KvmSystem.getMsrs, (fd, msrs: KvmMsrsInit) => ({ fd, msrs }), msrsRead),
  /**
   * KVM_GET_DEVICE_ATTR on /dev/kvm, for example the supported VMSA features of SEV-ES.
   * Errno: ENXIO (unknown group or attribute), EFAULT.
   */
  getDeviceAttr: ioctl(
    KvmSystem.getDeviceAttr,
    (fd, deviceAttr: KvmDeviceAttrInit) => ({ fd, device_attr: deviceAttr }),
    out('device_attr'),
  ),
  /**
   * KVM_HAS_DEVICE_ATTR on /dev/kvm: ret is 0 if the attribute is there.
   * Errno: ENXIO (unknown group or attribute).
   */
  hasDeviceAttr: ioctl(KvmSystem.hasDeviceAttr, (fd, deviceAttr: KvmDeviceAttrInit) => ({ fd, device_attr: deviceAttr }), ret),
} as const;

/**
 * /dev/kvm, opened by a process.
 *
 * @example
 * ```ts
 * await using kvm = await process.openKvm();
 * await using vm = await kvm.createVm();
 * await using vcpu = await vm.createVcpu(0);
 * ```
 */
export class Kvm extends withForms(class extends Handle {}, kvmCalls) {}
