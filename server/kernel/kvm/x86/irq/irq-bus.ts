import type { Failure } from '../../../failure.js';
import type { Task } from '../../../sched/task.js';
import type { MightSleep } from '../../../sched/wait.js';
import type { IoBus, IoDevice } from '../../io-bus.js';
import type { Vm } from '../../vm.js';

/** Puts devices on a bus under slots_lock, all or none. ENOSPC when the bus is full. */
export function* registerDevices(current: Task, vm: Vm, bus: IoBus, devices: readonly IoDevice[]): MightSleep<Failure | null> {
  yield* vm.slotsLock.lock(current);
  let refused: Failure | null = null;
  const registered: IoDevice[] = [];
  for (const device of devices) {
    refused = bus.register(device);
    if (refused !== null) break;
    registered.push(device);
  }
  if (refused !== null) for (const device of registered) yield* bus.unregister(current, device);
  vm.slotsLock.unlock(current);
  return refused;
}

/** Takes them off again. */
export function* unregisterDevices(current: Task, vm: Vm, bus: IoBus, devices: readonly IoDevice[]): MightSleep<void> {
  yield* vm.slotsLock.lock(current);
  for (const device of devices) yield* bus.unregister(current, device);
  vm.slotsLock.unlock(current);
}
