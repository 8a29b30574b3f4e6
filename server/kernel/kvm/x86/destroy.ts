import type { Task } from '../../sched/task.js';
import type { MightSleep } from '../../sched/wait.js';
import { destroyVcpu } from '../create-vcpu.js';
import type { Vm } from '../vm.js';

/** `kvm_arch_pre_destroy_vm`: what could still reach the VM from outside stops. The address space tells it nothing more. */
export const kvmArchPreDestroyVm = (vm: Vm): void => {
  vm.arch.irq.destroyPit();
  vm.arch.mmu.stopNotifications();
};

/** `kvm_arch_flush_shadow_all`. */
export const kvmArchFlushShadowAll = (vm: Vm): void => vm.arch.mmu.zapAll();

/** `kvm_arch_destroy_vm`: vCPUs, interrupt controllers, the MMU, and last the vendor's part. */
export function* kvmArchDestroyVm(current: Task, vm: Vm): MightSleep<void> {
  for (const vcpu of vm.vcpus) destroyVcpu(vcpu);
  vm.vcpus.length = 0;
  vm.arch.irq.destroy();
  vm.arch.mmu.free();
  yield* vm.kernel.ops.vmDestroy(current, vm);
}
