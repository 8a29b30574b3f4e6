import { Failure, type Result } from '../../failure.js';
import type { Task } from '../../sched/task.js';
import type { MightSleep } from '../../sched/wait.js';
import { KVM_CAP } from '../../uapi/capabilities.js';
import { KVM_HC, KVM_MSR_EXIT_REASON, KVM_X86_DISABLE_EXITS, KVM_X86_QUIRK } from '../../uapi/constants.js';
import type { kvm_enable_cap } from '../../uapi/kvm-structs.js';
import type { StructValue } from '../../uapi/struct.js';
import type { Vm } from '../vm.js';
import { enableApicBusCyclesNs, enableSplitIrqchip, enableX2apicApi } from './irq/irq-caps.js';
import { KVM_MAX_VCPU_IDS } from './vm-arch.js';

type EnableCap = StructValue<typeof kvm_enable_cap>;

const ref = 'kvm_vm_ioctl_enable_cap';

const refuse = (reason: string, given: bigint, allowed: string): Failure =>
  new Failure('EINVAL', reason, ref, { field: 'args[0]', given: `0x${given.toString(16)}`, allowed });

/** EINVAL if `argument` has bits outside `mask`. */
const checkMask = (reason: string, argument: bigint, mask: number): Failure | null =>
  (argument & ~BigInt(mask)) === 0n ? null : refuse(reason, argument, `bits of 0x${mask.toString(16)}`);

const ALL_QUIRKS = Object.values(KVM_X86_QUIRK).reduce((mask, bit) => mask | bit, 0);
/** What KVM_CAP_X86_DISABLE_EXITS offers: a host without MWAIT for guests, and no APERF and MPERF. */
export const DISABLE_EXITS_MASK = KVM_X86_DISABLE_EXITS.HLT | KVM_X86_DISABLE_EXITS.PAUSE | KVM_X86_DISABLE_EXITS.CSTATE;
const USER_SPACE_MSR_MASK = KVM_MSR_EXIT_REASON.INVAL | KVM_MSR_EXIT_REASON.UNKNOWN | KVM_MSR_EXIT_REASON.FILTER;
const HYPERCALL_EXIT_MASK = 1 << KVM_HC.MAP_GPA_RANGE;
/** KVM_BUS_LOCK_DETECTION_OFF and _EXIT exclude each other. */
const BUS_LOCK_OFF = 1n;
const BUS_LOCK_EXIT = 2n;

const vcpusCreated = (vm: Vm): Failure | null =>
  vm.createdVcpus === 0
    ? null
    : new Failure('EINVAL', 'VCPUS_CREATED', ref, { object: `vm ${vm.id}`, created_vcpus: String(vm.createdVcpus) });

/** Capabilities that only set something, and never wait. */
const SETTINGS: ReadonlyMap<number, (vm: Vm, argument: bigint) => Failure | null> = new Map<
  number,
  (vm: Vm, argument: bigint) => Failure | null
>([
  [
    KVM_CAP.DISABLE_QUIRKS,
    ({ arch }, argument) => {
      arch.disabledQuirks |= Number(argument & BigInt(ALL_QUIRKS));
      return null;
    },
  ],
  [
    KVM_CAP.DISABLE_QUIRKS2,
    ({ arch }, argument) => {
      const refused = checkMask('QUIRK_UNKNOWN', argument, ALL_QUIRKS);
      if (refused === null) arch.disabledQuirks |= Number(argument);
      return refused;
    },
  ],
  [
    KVM_CAP.MSR_PLATFORM_INFO,
    ({ arch }, argument) => {
      arch.guestCanReadMsrPlatformInfo = argument !== 0n;
      return null;
    },
  ],
  [
    KVM_CAP.EXCEPTION_PAYLOAD,
    ({ arch }, argument) => {
      arch.exceptionPayload = argument !== 0n;
      return null;
    },
  ],
  [
    KVM_CAP.X86_TRIPLE_FAULT_EVENT,
    ({ arch }, argument) => {
      arch.tripleFaultEvent = argument !== 0n;
      return null;
    },
  ],
  [
    KVM_CAP.X86_USER_SPACE_MSR,
    ({ arch }, argument) => {
      const refused = checkMask('USER_SPACE_MSR_REASON', argument, USER_SPACE_MSR_MASK);
      if (refused === null) arch.userSpaceMsrMask = Number(argument);
      return refused;
    },
  ],
  [
    KVM_CAP.EXIT_HYPERCALL,
    ({ arch }, argument) => {
      const refused = checkMask('HYPERCALL_NOT_EXITING', argument, HYPERCALL_EXIT_MASK);
      if (refused === null) arch.hypercallExitMask = argument;
      return refused;
    },
  ],
  [
    KVM_CAP.EXIT_ON_EMULATION_FAILURE,
    ({ arch }, argument) => {
      const refused = checkMask('EMULATION_FAILURE_ARGUMENT', argument, 1);
      if (refused === null) arch.exitOnEmulationError = argument !== 0n;
      return refused;
    },
  ],
  [
    KVM_CAP.X86_BUS_LOCK_EXIT,
    (_vm, argument) => {
      const refused = checkMask('BUS_LOCK_MODE', argument, Number(BUS_LOCK_OFF | BUS_LOCK_EXIT));
      if (refused !== null) return refused;
      if (argument === (BUS_LOCK_OFF | BUS_LOCK_EXIT)) return refuse('BUS_LOCK_MODES_CONFLICT', argument, 'one of 1 and 2');
      // The host's CPU does not detect bus locks (KVM_CAP_X86_BUS_LOCK_EXIT is 0): asking for the exit changes nothing.
      return null;
    },
  ],
]);

/** KVM_CAP_X86_DISABLE_EXITS, before the first vCPU. */
const disableExits = (vm: Vm, argument: bigint): Failure | null => {
  const refused = checkMask('DISABLE_EXITS_UNSUPPORTED', argument, DISABLE_EXITS_MASK) ?? vcpusCreated(vm);
  if (refused === null) vm.arch.disabledExits |= Number(argument);
  return refused;
};

/** KVM_CAP_MAX_VCPU_ID: can be set once. */
const setMaxVcpuId = (vm: Vm, argument: bigint): Failure | null => {
  if (argument > BigInt(KVM_MAX_VCPU_IDS)) return refuse('MAX_VCPU_ID_RANGE', argument, `up to ${KVM_MAX_VCPU_IDS}`);
  const { arch } = vm;
  if (BigInt(arch.bspVcpuId) > argument) return refuse('MAX_VCPU_ID_BELOW_BOOT_CPU', argument, `from ${arch.bspVcpuId}`);
  if (arch.maxVcpuIds === Number(argument)) return null;
  if (arch.maxVcpuIds !== 0) return refuse('MAX_VCPU_ID_SET', argument, String(arch.maxVcpuIds));
  arch.maxVcpuIds = Number(argument);
  return null;
};

function* underLock(current: Task, vm: Vm, set: (vm: Vm) => Failure | null): MightSleep<Result<number>> {
  yield* vm.lock.lock(current);
  const refused = set(vm);
  vm.lock.unlock(current);
  return refused ?? 0;
}

/** KVM_CAP_VM_DISABLE_NX_HUGE_PAGES: the argument must be 0, and there must be no vCPU. There are no huge pages to protect. */
const disableNxHugePages = (vm: Vm, argument: bigint): Failure | null =>
  argument === 0n ? vcpusCreated(vm) : refuse('NX_HUGE_PAGES_ARGUMENT', argument, '0');

/** `kvm_vm_ioctl_enable_cap`: EINVAL for flags whatever the capability, and for one that cannot be enabled. */
export function* kvmArchVmEnableCap(current: Task, vm: Vm, cap: EnableCap): MightSleep<Result<number>> {
  const argument = cap.args[0] ?? 0n;
  if (cap.flags !== 0)
    return new Failure('EINVAL', 'ENABLE_CAP_FLAGS', ref, { field: 'flags', given: String(cap.flags), allowed: '0' });
  const setting = SETTINGS.get(cap.cap);
  if (setting !== undefined) return setting(vm, argument) ?? 0;
  switch (cap.cap) {
    case KVM_CAP.SPLIT_IRQCHIP:
      return yield* enableSplitIrqchip(current, vm, argument);
    case KVM_CAP.X2APIC_API:
      return enableX2apicApi(vm, argument);
    case KVM_CAP.X86_APIC_BUS_CYCLES_NS:
      return yield* enableApicBusCyclesNs(current, vm, argument);
    case KVM_CAP.X86_DISABLE_EXITS:
      return yield* underLock(current, vm, () => disableExits(vm, argument));
    case KVM_CAP.MAX_VCPU_ID:
      return yield* underLock(current, vm, () => setMaxVcpuId(vm, argument));
    case KVM_CAP.VM_DISABLE_NX_HUGE_PAGES:
      return yield* underLock(current, vm, () => disableNxHugePages(vm, argument));
    case KVM_CAP.VM_COPY_ENC_CONTEXT_FROM:
      return yield* encryptionContextFrom(current, vm, argument, 'copy');
    case KVM_CAP.VM_MOVE_ENC_CONTEXT_FROM:
      return yield* encryptionContextFrom(current, vm, argument, 'move');
    default:
      return new Failure('EINVAL', 'CAP_NOT_ENABLEABLE', ref, { field: 'cap', given: String(cap.cap) });
  }
}

/** COPY and MOVE: the argument, cut to 32 bits, is the source VM's descriptor. EINVAL where the vendor has no such operation. */
function* encryptionContextFrom(current: Task, vm: Vm, argument: bigint, kind: 'copy' | 'move'): MightSleep<Result<number>> {
  const { ops } = vm.kernel;
  const sourceFd = Number(BigInt.asUintN(32, argument));
  if (kind === 'copy' && ops.vmCopyEncContextFrom !== undefined) return yield* ops.vmCopyEncContextFrom(current, vm, sourceFd);
  if (kind === 'move' && ops.vmMoveEncContextFrom !== undefined) return yield* ops.vmMoveEncContextFrom(current, vm, sourceFd);
  return new Failure('EINVAL', 'VENDOR_CANNOT', ref, { field: 'cap', vendor: vm.kernel.config.vendor });
}
