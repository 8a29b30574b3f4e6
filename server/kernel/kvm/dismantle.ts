import type { Task } from '../sched/task.js';
import type { MightSleep } from '../sched/wait.js';
import type { Vm } from './vm.js';
import { kvmMmuZapAll } from './x86/mmu.js';

/**
 * Dismantling a VM (proposed in February 2023 as KVM_DISMANTLE_VM, never written; [D] throughout): PIO and MMIO buses,
 * memslots and all page tables go, best effort, and it can be repeated. vCPUs, run pages, interrupt controllers and
 * routing stay, and so do irqfds unless the host is configured to release them too.
 *
 * Under kvm->lock and every vCPU's mutex, so no vCPU is inside KVM_RUN; slots_lock is taken inside.
 */
export function* dismantleVmLocked(current: Task, vm: Vm): MightSleep<void> {
  vm.dismantling = 'under-way';
  yield* vm.slotsLock.lock(current);
  yield* destroyBuses(current, vm);
  yield* destroyMemslots(current, vm);
  vm.slotsLock.unlock(current);
  if (vm.kernel.config.dismantleReleasesIrqfds) yield* vm.irqfds.release();
  vm.dismantling = 'done';
}

/** The same for a caller without locks: KVM_DISMANTLE_VM, and the worker of a policy. */
export function* dismantleVm(current: Task, vm: Vm): MightSleep<void> {
  vm.dismantling = 'under-way';
  yield* vm.lock.lock(current);
  const vcpus = [...vm.vcpus];
  for (const vcpu of vcpus) yield* vcpu.mutex.lock(current);
  yield* dismantleVmLocked(current, vm);
  for (const vcpu of vcpus) vcpu.mutex.unlock(current);
  vm.lock.unlock(current);
}

/** No access finds the buses from the grace period on; then their devices' destructors run. */
function* destroyBuses(current: Task, vm: Vm): MightSleep<void> {
  const { pio, mmio, fastMmio } = vm.buses;
  if (pio.gone && mmio.gone && fastMmio.gone) return;
  const devices = [...pio.take(), ...mmio.take(), ...fastMmio.take()];
  yield* vm.srcu.synchronize(current);
  for (const device of devices) device.destructor?.();
}

/** As a deletion of every slot at once: one grace period, then the page tables, then the slots. */
function* destroyMemslots(current: Task, vm: Vm): MightSleep<void> {
  const slots = [...vm.memslots];
  vm.memslots.invalidate(slots);
  if (slots.length > 0) yield* vm.srcu.synchronize(current);
  kvmMmuZapAll(vm);
  if (slots.length > 0) vm.kernel.ops.guestMemoryReclaimed(vm);
  vm.memslots.free();
}
