import { Failure, failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import { KVM_CLOCK } from '../../uapi/constants.js';
import { kvm_clock_data } from '../../uapi/x86-structs.js';
import { copyStruct, copyStructOut } from '../copy-struct.js';
import type { Vm } from '../vm.js';
import { hostTsc } from './tsc.js';

const VALID_FLAGS = KVM_CLOCK.TSC_STABLE | KVM_CLOCK.REALTIME | KVM_CLOCK.HOST_TSC;

/** `get_kvmclock_ns`. */
const kvmclock = (vm: Vm): bigint => BigInt.asUintN(64, vm.kernel.clock.now() + vm.arch.kvmclockOffset);

/** KVM_GET_CLOCK. The host knows no wall-clock time, so KVM_CLOCK_REALTIME is never set. */
export const getClock = (vm: Vm, arg: IoctlArg): Result<number> => {
  const flags = KVM_CLOCK.TSC_STABLE | KVM_CLOCK.HOST_TSC;
  return copyStructOut(arg, kvm_clock_data, { clock: kvmclock(vm), flags, host_tsc: hostTsc(vm.kernel) }) ?? 0;
};

/** KVM_SET_CLOCK. EINVAL: unknown flags. REALTIME would add the wall-clock time since; here none has passed. */
export const setClock = (vm: Vm, arg: IoctlArg): Result<number> => {
  const data = copyStruct(arg, kvm_clock_data);
  if (failed(data)) return data;
  if ((data.flags & ~VALID_FLAGS) !== 0)
    return new Failure('EINVAL', 'CLOCK_FLAGS', 'kvm_vm_ioctl_set_clock', {
      field: 'flags',
      given: `0x${data.flags.toString(16)}`,
      allowed: `bits of 0x${VALID_FLAGS.toString(16)}`,
    });
  vm.arch.kvmclockOffset = BigInt.asIntN(64, data.clock) - vm.kernel.clock.now();
  return 0;
};
