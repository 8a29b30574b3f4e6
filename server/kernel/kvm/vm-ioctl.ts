import { Failure, type Result } from '../failure.js';
import type { IoctlArg } from '../fs/ioctl-arg.js';
import type { Task } from '../sched/task.js';
import type { MaySleep, MightSleep } from '../sched/wait.js';
import { IOCTL } from '../uapi/ioctls.js';
import { checkExtension, enableVmCap } from './capabilities.js';
import { registerCoalescedMmio, unregisterCoalescedMmio } from './coalesced-mmio.js';
import { createVcpu } from './create-vcpu.js';
import { createDevice } from './device.js';
import { clearDirtyLog, getDirtyLog } from './dirty-log.js';
import { resetDirtyRings } from './dirty-ring.js';
import { dismantleVm } from './dismantle.js';
import { kvmIoeventfd } from './eventfd/ioeventfd.js';
import { kvmIrqfd } from './eventfd/irqfd.js';
import { kvmGmemCreate } from './guest-memfd.js';
import { setMemoryAttributes } from './memory-attributes.js';
import { setUserMemoryRegion, setUserMemoryRegion2 } from './set-memory-region.js';
import { vmStatsFd } from './stats-fd.js';
import type { Vm } from './vm.js';
import { kvmArchVmIoctl } from './x86/x86-vm-ioctl.js';

/** The switch of `kvm_vm_ioctl`. What it does not know is x86's (`kvm_arch_vm_ioctl`), and ENOTTY if it is not. */
export const vmIoctl = (current: Task, vm: Vm, request: number, arg: IoctlArg): MaySleep<Result<number>> => {
  switch (request) {
    case IOCTL.KVM_CHECK_EXTENSION:
      return checkExtension(vm.kernel, vm, arg.value);
    case IOCTL.KVM_CREATE_VCPU:
      return createVcpu(current, vm, arg.value);
    case IOCTL.KVM_ENABLE_CAP:
      return enableVmCap(current, vm, arg);
    case IOCTL.KVM_SET_USER_MEMORY_REGION:
      return setUserMemoryRegion(current, vm, arg);
    case IOCTL.KVM_SET_USER_MEMORY_REGION2:
      return setUserMemoryRegion2(current, vm, arg);
    case IOCTL.KVM_GET_DIRTY_LOG:
      return getDirtyLog(current, vm, arg);
    case IOCTL.KVM_CLEAR_DIRTY_LOG:
      return clearDirtyLog(current, vm, arg);
    case IOCTL.KVM_RESET_DIRTY_RINGS:
      return resetDirtyRings(current, vm);
    case IOCTL.KVM_REGISTER_COALESCED_MMIO:
      return registerCoalescedMmio(current, vm, arg);
    case IOCTL.KVM_UNREGISTER_COALESCED_MMIO:
      return unregisterCoalescedMmio(current, vm, arg);
    case IOCTL.KVM_IRQFD:
      return kvmIrqfd(current, vm, arg);
    case IOCTL.KVM_IOEVENTFD:
      return kvmIoeventfd(current, vm, arg);
    case IOCTL.KVM_SET_MEMORY_ATTRIBUTES:
      return setMemoryAttributes(current, vm, arg);
    case IOCTL.KVM_CREATE_GUEST_MEMFD:
      return kvmGmemCreate(current, vm, arg);
    case IOCTL.KVM_CREATE_DEVICE:
      return createDevice(current, vm, arg);
    case IOCTL.KVM_GET_STATS_FD:
      return vmStatsFd(current, vm);
    case IOCTL.KVM_DISMANTLE_VM:
      if (!vm.postMovePolicy.offersDismantle)
        return new Failure('ENOTTY', 'DISMANTLE_NOT_OFFERED', 'kvm_vm_ioctl', { policy: vm.postMovePolicy.name });
      return dismantle(current, vm);
    default:
      return kvmArchVmIoctl(current, vm, request, arg);
  }
};

function* dismantle(current: Task, vm: Vm): MightSleep<Result<number>> {
  yield* dismantleVm(current, vm);
  return 0;
}
