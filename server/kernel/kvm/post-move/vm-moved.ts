import { failed } from '../../failure.js';
import { KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ATTR, KVM_IOEVENTFD_FLAG, KVM_IRQFD_FLAG } from '../../uapi/constants.js';
import { IOCTL } from '../../uapi/ioctls.js';
import {
  kvm_device_attr,
  kvm_ioeventfd,
  kvm_irqfd,
  kvm_userspace_memory_region,
  kvm_userspace_memory_region2,
} from '../../uapi/kvm-structs.js';
import type { Fields, Struct, ValueOf } from '../../uapi/struct.js';
import { type GatedCall, type PostMovePolicy, RUN } from './policy.js';
import { refuse, requestVmDead } from './refusal.js';

type Rule = (call: GatedCall) => boolean;

const always: Rule = () => true;

/** Looks into the call's structure. One that cannot be read is not shown to be on the list. */
const when =
  <F extends Fields>(layout: Struct<F>, test: (value: ValueOf<F>) => boolean): Rule =>
  ({ arg }) => {
    const bytes = arg.user.copyIn(arg.value, layout.size);
    return !failed(bytes) && test(layout.decode(bytes));
  };

/** What a moved VM still takes: whatever lets go of something, or only looks. */
const VM_ALLOWED: ReadonlyMap<number, Rule> = new Map([
  [IOCTL.KVM_CHECK_EXTENSION, always],
  [IOCTL.KVM_SET_USER_MEMORY_REGION, when(kvm_userspace_memory_region, (region) => region.memory_size === 0n)],
  [IOCTL.KVM_SET_USER_MEMORY_REGION2, when(kvm_userspace_memory_region2, (region) => region.memory_size === 0n)],
  [IOCTL.KVM_IOEVENTFD, when(kvm_ioeventfd, ({ flags }) => (flags & KVM_IOEVENTFD_FLAG.DEASSIGN) !== 0)],
  [IOCTL.KVM_IRQFD, when(kvm_irqfd, ({ flags }) => (flags & KVM_IRQFD_FLAG.DEASSIGN) !== 0)],
  [IOCTL.KVM_SET_GSI_ROUTING, always],
  [IOCTL.KVM_UNREGISTER_COALESCED_MMIO, always],
  [IOCTL.KVM_MEMORY_ENCRYPT_UNREG_REGION, always],
  [IOCTL.KVM_GET_DIRTY_LOG, always],
  [IOCTL.KVM_GET_STATS_FD, always],
]);

/** The vCPU ioctls that read; KVM_TRANSLATE walks the guest's page tables, which a zombie cannot read, and is none of them. */
const VCPU_READS: ReadonlySet<number> = new Set([
  IOCTL.KVM_GET_REGS,
  IOCTL.KVM_GET_SREGS,
  IOCTL.KVM_GET_SREGS2,
  IOCTL.KVM_GET_MSRS,
  IOCTL.KVM_GET_FPU,
  IOCTL.KVM_GET_LAPIC,
  IOCTL.KVM_GET_CPUID2,
  IOCTL.KVM_GET_MP_STATE,
  IOCTL.KVM_GET_VCPU_EVENTS,
  IOCTL.KVM_GET_DEBUGREGS,
  IOCTL.KVM_GET_TSC_KHZ,
  IOCTL.KVM_GET_XSAVE,
  IOCTL.KVM_GET_XSAVE2,
  IOCTL.KVM_GET_XCRS,
  IOCTL.KVM_GET_ONE_REG,
  IOCTL.KVM_GET_REG_LIST,
  IOCTL.KVM_GET_SUPPORTED_HV_CPUID,
  IOCTL.KVM_GET_NESTED_STATE,
  IOCTL.KVM_XEN_VCPU_GET_ATTR,
  IOCTL.KVM_GET_STATS_FD,
  IOCTL.KVM_GET_DEVICE_ATTR,
  IOCTL.KVM_HAS_DEVICE_ATTR,
]);

const detachesDevice = when(
  kvm_device_attr,
  ({ group, attr }) => group === KVM_DEV_VFIO_FILE && attr === BigInt(KVM_DEV_VFIO_FILE_ATTR.DEL),
);

const isAllowed = (call: GatedCall): boolean => {
  switch (call.scope) {
    case 'vm':
      return VM_ALLOWED.get(call.request)?.(call) ?? false;
    case 'vcpu':
      return VCPU_READS.has(call.request);
    case 'device':
      return call.request === IOCTL.KVM_SET_DEVICE_ATTR && detachesDevice(call);
  }
};

/**
 * A `VM_MOVED` flag like VM_BUGGED that lets most ioctls through, but not running vCPUs (2023). Rules:
 * - VM ioctls on the list above pass, in their releasing form where there are two; all others fail with EIO,
 *   KVM_CREATE_VCPU, KVM_MEMORY_ENCRYPT_OP and REG_REGION, and any KVM_ENABLE_CAP among them;
 * - of the vCPU ioctls, those that only read pass; KVM_RUN and those that write fail with EIO;
 * - of the device ioctls, the one that detaches a file passes;
 * - as for VM_BUGGED, vCPUs get KVM_REQ_VM_DEAD, which catches a KVM_RUN that waited for its mutex.
 */
export const vmMoved: PostMovePolicy = {
  name: 'VM_MOVED',
  offersDismantle: false,
  onMove: (_current, source) => {
    requestVmDead(source);
    return null;
  },
  afterMove: () => {},
  admit: (vm, call) => (isAllowed(call) ? RUN : refuse(vm, call)),
  admitCreateVcpuLocked: () => null,
  admitVcpuLocked: () => null,
};
