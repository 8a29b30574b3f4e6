import type { KvmDeviceAttrInit } from '../gen/messages.js';
import { KvmVm } from '../gen/services.js';
import { withForms } from './forms.js';
import { Handle } from './handle.js';
import { ioctl, out, ret } from './syscall.js';

/** The ioctls of a device; a VM answers them too. */
export const deviceCalls = {
  /**
   * KVM_SET_DEVICE_ATTR on a device of the VM, or on the VM.
   * Errno: EIO (gate), EPERM (the device has none), ENXIO (unknown group or attribute), ENOTTY (not on a VM of
   * this architecture), EFAULT.
   */
  setDeviceAttr: ioctl(KvmVm.setDeviceAttr, (fd, deviceAttr: KvmDeviceAttrInit) => ({ fd, device_attr: deviceAttr }), ret),
  /**
   * KVM_GET_DEVICE_ATTR on a device of the VM, or on the VM.
   * Errno: EIO (gate), EPERM (the device has none), ENXIO (unknown group or attribute), ENOTTY (not on a VM of
   * this architecture), EFAULT.
   */
  getDeviceAttr: ioctl(
    KvmVm.getDeviceAttr,
    (fd, deviceAttr: KvmDeviceAttrInit) => ({ fd, device_attr: deviceAttr }),
    out('device_attr'),
  ),
  /**
   * KVM_HAS_DEVICE_ATTR on a device of the VM, or on the VM: ret is 0 if the attribute is there.
   * Errno: EIO (gate), EPERM (the device has none), ENXIO (unknown group or attribute), ENOTTY (not on a VM of
   * this architecture).
   */
  hasDeviceAttr: ioctl(KvmVm.hasDeviceAttr, (fd, deviceAttr: KvmDeviceAttrInit) => ({ fd, device_attr: deviceAttr }), ret),
} as const;

/** A device that KVM_CREATE_DEVICE has made, for example kvm-vfio. */
export class Device extends withForms(class extends Handle {}, deviceCalls) {}
