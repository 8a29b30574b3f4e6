import { Failure, failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import type { Task } from '../../sched/task.js';
import type { MightSleep } from '../../sched/wait.js';
import { IOCTL } from '../../uapi/ioctls.js';
import { kvm_enc_region } from '../../uapi/kvm-structs.js';
import { kvm_pmu_event_filter } from '../../uapi/x86-structs.js';
import { copyStruct } from '../copy-struct.js';
import type { Vm } from '../vm.js';
import { getClock, setClock } from './clock.js';
import { copyU64In } from './copy-word.js';
import { irqVmIoctl } from './irq/irq-ioctl.js';
import { setMsrFilter } from './msr-filter.js';
import { setVmTscKhz } from './tsc.js';

/** The three pages below 4 GiB that a TSS of vm86 mode takes. */
const TSS_ADDRESS_MAX = 2n ** 32n - 3n * 4096n;
/** KVM_MIN_ALLOC_MMU_PAGES. */
const MMU_PAGES_MIN = 64n;

const refuse = (reason: string, kernelRef: string, field: string, given: bigint, allowed: string): Failure =>
  new Failure('EINVAL', reason, kernelRef, { field, given: `0x${given.toString(16)}`, allowed });

/** KVM_SET_TSS_ADDR: vmx alone needs it, and not with unrestricted guests; svm takes any. */
const setTssAddr = (arg: IoctlArg): Result<number> =>
  arg.value > TSS_ADDRESS_MAX
    ? refuse('TSS_ADDRESS_RANGE', 'kvm_vm_ioctl_set_tss_addr', 'addr', arg.value, 'three pages below 4 GiB')
    : 0;

/** KVM_SET_IDENTITY_MAP_ADDR: EINVAL once there is a vCPU, before the address is even read. */
function* setIdentityMapAddr(current: Task, vm: Vm, arg: IoctlArg): MightSleep<Result<number>> {
  yield* vm.lock.lock(current);
  const result = vm.createdVcpus > 0 ? vcpusCreated(vm) : copyU64In(arg.user, arg.value);
  vm.lock.unlock(current);
  return failed(result) ? result : 0;
}

const vcpusCreated = (vm: Vm): Failure =>
  new Failure('EINVAL', 'VCPUS_CREATED', 'kvm_arch_vm_ioctl', { created_vcpus: String(vm.createdVcpus) });

/** KVM_SET_NR_MMU_PAGES: shadow paging alone would obey it. */
const setNrMmuPages = (arg: IoctlArg): Result<number> => {
  const pages = BigInt.asUintN(32, arg.value);
  if (pages < MMU_PAGES_MIN)
    return refuse('NR_MMU_PAGES_RANGE', 'kvm_vm_ioctl_set_nr_mmu_pages', 'nr', pages, `from ${MMU_PAGES_MIN}`);
  return 0;
};

/** KVM_SET_PMU_EVENT_FILTER: the structure is read, and there is no PMU whose events could be filtered. */
const setPmuEventFilter = (arg: IoctlArg): Result<number> => {
  const filter = copyStruct(arg, kvm_pmu_event_filter);
  return failed(filter) ? filter : new Failure('EINVAL', 'NO_VIRTUAL_PMU', 'kvm_vm_ioctl_set_pmu_event_filter');
};

const noOperation = (kernelRef: string): Failure => new Failure('ENOTTY', 'VENDOR_CANNOT', kernelRef);

/** KVM_MEMORY_ENCRYPT_REG_REGION and UNREG_REGION: the structure is read before anybody asks whether there is encryption. */
function* encryptRegion(current: Task, vm: Vm, arg: IoctlArg, register: boolean): MightSleep<Result<number>> {
  const region = copyStruct(arg, kvm_enc_region);
  if (failed(region)) return region;
  const { ops } = vm.kernel;
  const { addr, size } = region;
  if (register)
    return ops.memEncRegisterRegion === undefined
      ? noOperation('kvm_arch_vm_ioctl')
      : yield* ops.memEncRegisterRegion(current, vm, addr, size);
  return ops.memEncUnregisterRegion === undefined
    ? noOperation('kvm_arch_vm_ioctl')
    : yield* ops.memEncUnregisterRegion(current, vm, addr, size);
}

function* memoryEncryptOp(current: Task, vm: Vm, arg: IoctlArg): MightSleep<Result<number>> {
  const { ops } = vm.kernel;
  return ops.memEncIoctl === undefined ? noOperation('kvm_arch_vm_ioctl') : yield* ops.memEncIoctl(current, vm, arg);
}

/** `kvm_arch_vm_ioctl`: the x86 part of the VM fd. ENOTTY for a request that a VM does not know. */
export function* kvmArchVmIoctl(current: Task, vm: Vm, request: number, arg: IoctlArg): MightSleep<Result<number>> {
  switch (request) {
    case IOCTL.KVM_SET_TSS_ADDR:
      return setTssAddr(arg);
    case IOCTL.KVM_SET_IDENTITY_MAP_ADDR:
      return yield* setIdentityMapAddr(current, vm, arg);
    case IOCTL.KVM_SET_NR_MMU_PAGES:
      return setNrMmuPages(arg);
    case IOCTL.KVM_SET_CLOCK:
      return setClock(vm, arg);
    case IOCTL.KVM_GET_CLOCK:
      return getClock(vm, arg);
    case IOCTL.KVM_SET_TSC_KHZ:
      return setVmTscKhz(vm, arg);
    case IOCTL.KVM_GET_TSC_KHZ:
      return vm.arch.defaultTscKhz;
    case IOCTL.KVM_MEMORY_ENCRYPT_OP:
      return yield* memoryEncryptOp(current, vm, arg);
    case IOCTL.KVM_MEMORY_ENCRYPT_REG_REGION:
      return yield* encryptRegion(current, vm, arg, true);
    case IOCTL.KVM_MEMORY_ENCRYPT_UNREG_REGION:
      return yield* encryptRegion(current, vm, arg, false);
    case IOCTL.KVM_X86_SET_MSR_FILTER:
      return setMsrFilter(vm, arg);
    case IOCTL.KVM_SET_PMU_EVENT_FILTER:
      return setPmuEventFilter(arg);
    default:
      return (
        (yield* irqVmIoctl(current, vm, request, arg)) ??
        new Failure('ENOTTY', 'IOCTL_UNKNOWN', 'kvm_arch_vm_ioctl', { request: `0x${request.toString(16)}` })
      );
  }
}
