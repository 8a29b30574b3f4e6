import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import type { Vm } from './vm.js';
import { kvmArchDestroyVm, kvmArchFlushShadowAll, kvmArchPreDestroyVm } from './x86/destroy.js';

/**
 * `kvm_destroy_vm`: the last reference is gone. In this order, because each step may still need what the later ones
 * take away: a device's destructor the memory, the vendor the vCPUs' save areas, page tables the memslots.
 */
export function* destroyVm(current: Task, vm: Vm): MightSleep<void> {
  const { kernel } = vm;
  kernel.vms.delete(vm.id);
  // PIT timer, asynchronous MMU work, and the irq routing.
  kvmArchPreDestroyVm(vm);
  for (const bus of Object.values(vm.buses)) bus.destroy();
  vm.coalesced.ring.free();
  // mmu_notifier_unregister(): no invalidation comes any more; every mapping goes, and caches are written back.
  kvmArchFlushShadowAll(vm);
  kernel.ops.guestMemoryReclaimed(vm);
  // vCPUs, interrupt controllers, MMU; last the vendor's part (sev_vm_destroy).
  yield* kvmArchDestroyVm(current, vm);
  for (const device of vm.devices) device.free();
  vm.devices.clear();
  vm.memslots.free();
  vm.memoryAttributes.free();
  vm.free();
  kernel.sanitizer.leaks.destroyed(vm);
}
