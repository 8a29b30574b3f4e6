import { Failure, failed, type Result } from '../../../failure.js';
import type { IoctlArg } from '../../../fs/ioctl-arg.js';
import type { Task } from '../../../sched/task.js';
import type { MightSleep } from '../../../sched/wait.js';
import { KVM_PIT } from '../../../uapi/constants.js';
import { IOCTL } from '../../../uapi/ioctls.js';
import { kvm_pit_config, kvm_pit_state, kvm_pit_state2, kvm_reinject_control } from '../../../uapi/irq-structs.js';
import { copyStruct } from '../../copy-struct.js';
import type { Vm } from '../../vm.js';
import type { I8254 } from './i8254.js';
import { registerDevices } from './irq-bus.js';
import { pitDevices } from './irq-devices.js';

/** The ioctls of the interval timer (`kvm_arch_vm_ioctl`, i8254.c). */

const noPit = (vm: Vm): Failure => new Failure('ENXIO', 'NO_PIT', 'kvm_arch_vm_ioctl', { object: `vm ${vm.id}` });

/** KVM_CREATE_PIT and KVM_CREATE_PIT2; unknown flags are ignored. EEXIST, ENOENT without the full irqchip. vCPUs may exist. */
function* createPit(current: Task, vm: Vm, flags: number): MightSleep<Result<number>> {
  yield* vm.lock.lock(current);
  const refused = yield* createPitLocked(current, vm, flags);
  vm.lock.unlock(current);
  return refused ?? 0;
}

function* createPitLocked(current: Task, vm: Vm, flags: number): MightSleep<Failure | null> {
  const { irq } = vm.arch;
  const details = { object: `vm ${vm.id}`, irqchip: vm.arch.irqchipMode };
  if (irq.pit !== null) return new Failure('EEXIST', 'PIT_EXISTS', 'kvm_arch_vm_ioctl', details);
  if (!vm.arch.picInKernel) return new Failure('ENOENT', 'PIT_NEEDS_IRQCHIP', 'kvm_arch_vm_ioctl', details);
  const pit = irq.createPit();
  pit.speaker = (flags & KVM_PIT.SPEAKER_DUMMY) !== 0;
  const devices = pitDevices(pit);
  const refused = yield* registerDevices(current, vm, vm.buses.pio, devices);
  if (refused === null) return null;
  irq.destroyPit();
  return new Failure('ENOMEM', 'PIT_NOT_REGISTERED', 'kvm_create_pit', details);
}

/** KVM_GET_PIT and KVM_GET_PIT2: only the first looks at the argument before it looks for the PIT. */
const getPit = (vm: Vm, arg: IoctlArg, first: number, state: (pit: I8254) => Uint8Array): Result<number> => {
  const readable = first === 0 ? null : arg.user.copyIn(arg.value, first);
  if (failed(readable)) return readable;
  const { pit } = vm.arch.irq;
  return pit === null ? noPit(vm) : (arg.user.copyOut(arg.value, state(pit)) ?? 0);
};

/** KVM_SET_PIT and KVM_SET_PIT2, under kvm->lock. */
function* setPit(
  current: Task,
  vm: Vm,
  arg: IoctlArg,
  size: number,
  restore: (pit: I8254, bytes: Uint8Array) => void,
): MightSleep<Result<number>> {
  const bytes = arg.user.copyIn(arg.value, size);
  if (failed(bytes)) return bytes;
  yield* vm.lock.lock(current);
  const { pit } = vm.arch.irq;
  if (pit !== null) restore(pit, bytes);
  vm.lock.unlock(current);
  return pit === null ? noPit(vm) : 0;
}

/** KVM_REINJECT_CONTROL. */
const reinjectControl = (vm: Vm, arg: IoctlArg): Result<number> => {
  const control = copyStruct(arg, kvm_reinject_control);
  if (failed(control)) return control;
  const { pit } = vm.arch.irq;
  if (pit === null) return noPit(vm);
  pit.setReinject(control.pit_reinject !== 0);
  return 0;
};

/** The VM ioctls of the PIT; null if the request is not one of them. */
export function* pitIoctl(current: Task, vm: Vm, request: number, arg: IoctlArg): MightSleep<Result<number> | null> {
  switch (request) {
    case IOCTL.KVM_CREATE_PIT:
      return yield* createPit(current, vm, KVM_PIT.SPEAKER_DUMMY);
    case IOCTL.KVM_CREATE_PIT2: {
      const config = copyStruct(arg, kvm_pit_config);
      return failed(config) ? config : yield* createPit(current, vm, config.flags);
    }
    case IOCTL.KVM_GET_PIT:
      return getPit(vm, arg, kvm_pit_state.size, (pit) => pit.getState());
    case IOCTL.KVM_GET_PIT2:
      return getPit(vm, arg, 0, (pit) => pit.getState2());
    case IOCTL.KVM_SET_PIT:
      return yield* setPit(current, vm, arg, kvm_pit_state.size, (pit, bytes) => pit.setState(bytes));
    case IOCTL.KVM_SET_PIT2:
      return yield* setPit(current, vm, arg, kvm_pit_state2.size, (pit, bytes) => pit.setState2(bytes));
    case IOCTL.KVM_REINJECT_CONTROL:
      return reinjectControl(vm, arg);
    default:
      return null;
  }
}
