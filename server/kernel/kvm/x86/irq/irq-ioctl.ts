import { Failure, failed, type Result } from '../../../failure.js';
import type { IoctlArg } from '../../../fs/ioctl-arg.js';
import type { Task } from '../../../sched/task.js';
import type { MightSleep } from '../../../sched/wait.js';
import { KVM_IRQCHIP, KVM_MSI_FLAG } from '../../../uapi/constants.js';
import { IOCTL } from '../../../uapi/ioctls.js';
import {
  kvm_ioapic_state,
  kvm_irq_level,
  kvm_irq_level__status,
  kvm_irq_routing,
  kvm_irq_routing_entry,
  kvm_irqchip,
  kvm_msi,
  kvm_pic_state,
} from '../../../uapi/irq-structs.js';
import { copyStruct, copyStructOut } from '../../copy-struct.js';
import type { Vm } from '../../vm.js';
import { KVM_MAX_VCPU_IDS } from '../vm-arch.js';
import { registerDevices, unregisterDevices } from './irq-bus.js';
import { KVM_USERSPACE_IRQ_SOURCE_ID, kvmSetIrq, kvmSetMsi } from './irq-comm.js';
import { ioapicDevice, picDevices } from './irq-devices.js';
import { createRoutingTable, defaultRouting, KVM_MAX_IRQ_ROUTES } from './irq-routing.js';
import { pitIoctl } from './pit-ioctl.js';
import { type Irqchip, MSI_INVALID } from './vm-irq.js';

/**
 * The ioctls of a VM fd that are about interrupt controllers (`kvm_arch_vm_ioctl`, and of `kvm_vm_ioctl` those about routing).
 */

const refuse = (
  errno: 'EEXIST' | 'EINVAL' | 'ENXIO' | 'EPERM' | 'EBUSY',
  reason: string,
  vm: Vm,
  details: Record<string, string> = {},
): Failure =>
  new Failure(errno, reason, 'kvm_arch_vm_ioctl', { object: `vm ${vm.id}`, irqchip: vm.arch.irqchipMode, ...details });

/** KVM_CREATE_IRQCHIP. EEXIST: there is one, also a split one; EINVAL: too late. */
function* createIrqchip(current: Task, vm: Vm): MightSleep<Result<number>> {
  yield* vm.lock.lock(current);
  const refused = yield* createIrqchipLocked(current, vm);
  vm.lock.unlock(current);
  return refused ?? 0;
}

function* createIrqchipLocked(current: Task, vm: Vm): MightSleep<Failure | null> {
  if (vm.arch.irqchipInKernel) return refuse('EEXIST', 'IRQCHIP_EXISTS', vm);
  if (vm.createdVcpus > 0) return refuse('EINVAL', 'VCPUS_CREATED', vm, { created_vcpus: String(vm.createdVcpus) });
  const { irq } = vm.arch;
  const chips = irq.createChips();
  const refused = yield* registerChips(current, vm, chips);
  if (refused !== null) {
    irq.destroyChips();
    return refused;
  }
  const table = createRoutingTable(defaultRouting(), vm.arch);
  if (failed(table)) throw new Error('the default routing was refused');
  irq.setRouting(table);
  vm.arch.irqchipMode = 'kernel';
  return null;
}

function* registerChips(current: Task, vm: Vm, { pic, ioapic }: Irqchip): MightSleep<Failure | null> {
  const ports = picDevices(pic);
  const refused = yield* registerDevices(current, vm, vm.buses.pio, ports);
  if (refused !== null) return refused;
  const noRoom = yield* registerDevices(current, vm, vm.buses.mmio, [ioapicDevice(ioapic)]);
  if (noRoom === null) return null;
  yield* unregisterDevices(current, vm, vm.buses.pio, ports);
  return noRoom;
}

/** KVM_IRQ_LINE, KVM_IRQ_LINE_STATUS (`kvm_vm_ioctl_irq_line`). A GSI that leads nowhere is no error: status -1. */
const irqLine = (vm: Vm, arg: IoctlArg, wantsStatus: boolean): Result<number> => {
  const event = copyStruct(arg, kvm_irq_level);
  if (failed(event)) return event;
  if (!vm.arch.irqchipInKernel) return refuse('ENXIO', 'NO_IRQCHIP', vm);
  const status = kvmSetIrq(vm, KVM_USERSPACE_IRQ_SOURCE_ID, event.irq, event.level, wantsStatus);
  if (!wantsStatus) return 0;
  const answer = kvm_irq_level.encode(event);
  kvm_irq_level__status.write(answer, { status });
  return arg.user.copyOut(arg.value, answer) ?? 0;
};

const unknownChip = (vm: Vm, chipId: number): Failure =>
  refuse('EINVAL', 'IRQCHIP_UNKNOWN', vm, { field: 'chip_id', given: String(chipId), allowed: '0 to 2' });

/** The chip that a kvm_irqchip names, after the checks that GET and SET share. */
const irqchipArg = (
  vm: Vm,
  arg: IoctlArg,
): Result<{ readonly chips: Irqchip; readonly chipId: number; readonly chip: Uint8Array }> => {
  const value = copyStruct(arg, kvm_irqchip);
  if (failed(value)) return value;
  const { chips } = vm.arch.irq;
  if (chips === null) return refuse('ENXIO', 'NO_IRQCHIP', vm);
  return { chips, chipId: value.chip_id, chip: value.chip };
};

/** KVM_GET_IRQCHIP (`kvm_vm_ioctl_get_irqchip`). */
const getIrqchip = (vm: Vm, arg: IoctlArg): Result<number> => {
  const wanted = irqchipArg(vm, arg);
  if (failed(wanted)) return wanted;
  const state = irqchipState(wanted.chips, wanted.chipId);
  if (state === null) return unknownChip(vm, wanted.chipId);
  const chip = wanted.chip.slice();
  chip.set(state);
  return copyStructOut(arg, kvm_irqchip, { chip_id: wanted.chipId, chip }) ?? 0;
};

const irqchipState = ({ pic, ioapic }: Irqchip, chipId: number): Uint8Array | null => {
  switch (chipId) {
    case KVM_IRQCHIP.PIC_MASTER:
      return pic.getState('master');
    case KVM_IRQCHIP.PIC_SLAVE:
      return pic.getState('slave');
    case KVM_IRQCHIP.IOAPIC:
      return ioapic.getState();
    default:
      return null;
  }
};

/** KVM_SET_IRQCHIP (`kvm_vm_ioctl_set_irqchip`). */
const setIrqchip = (vm: Vm, arg: IoctlArg): Result<number> => {
  const given = irqchipArg(vm, arg);
  if (failed(given)) return given;
  const { pic, ioapic } = given.chips;
  switch (given.chipId) {
    case KVM_IRQCHIP.PIC_MASTER:
      pic.setState('master', given.chip.subarray(0, kvm_pic_state.size));
      return 0;
    case KVM_IRQCHIP.PIC_SLAVE:
      pic.setState('slave', given.chip.subarray(0, kvm_pic_state.size));
      return 0;
    case KVM_IRQCHIP.IOAPIC:
      ioapic.setState(given.chip.subarray(0, kvm_ioapic_state.size));
      return 0;
    default:
      return unknownChip(vm, given.chipId);
  }
};

const refuseRouting = (vm: Vm, field: string, given: number, allowed: string): Failure =>
  refuse('EINVAL', 'ROUTING_ARGUMENT', vm, { field, given: String(given), allowed });

/** KVM_SET_GSI_ROUTING (`kvm_set_irq_routing`): replaces the table as a whole, or leaves it as it is. */
function* setGsiRouting(current: Task, vm: Vm, arg: IoctlArg): MightSleep<Result<number>> {
  const head = copyStruct(arg, kvm_irq_routing);
  if (failed(head)) return head;
  if (!vm.arch.irqchipInKernel) return refuse('EINVAL', 'NO_IRQCHIP', vm);
  if (head.nr > KVM_MAX_IRQ_ROUTES) return refuseRouting(vm, 'nr', head.nr, `up to ${KVM_MAX_IRQ_ROUTES}`);
  if (head.flags !== 0) return refuseRouting(vm, 'flags', head.flags, '0');
  const size = kvm_irq_routing_entry.size;
  const bytes = head.nr === 0 ? new Uint8Array() : arg.user.copyIn(arg.value + BigInt(kvm_irq_routing.size), head.nr * size);
  if (failed(bytes)) return bytes;
  const entries = Array.from({ length: head.nr }, (_, index) => kvm_irq_routing_entry.decode(bytes, index * size));
  const table = createRoutingTable(entries, vm.arch);
  if (failed(table)) return table.with({ object: `vm ${vm.id}` });
  yield* vm.irqLock.lock(current);
  vm.arch.irq.setRouting(table);
  vm.irqLock.unlock(current);
  // synchronize_srcu_expedited(&kvm->irq_srcu): nobody uses the old table any more.
  vm.kernel.costs.charge('srcu_grace_period');
  return 0;
}

/**
 * KVM_SIGNAL_MSI (`kvm_send_userspace_msi`). @returns how many APICs accepted the message; EPERM (a bare -1 of the kernel)
 * if the VM has no vCPU to ask
 */
const signalMsi = (vm: Vm, arg: IoctlArg): Result<number> => {
  const msi = copyStruct(arg, kvm_msi);
  if (failed(msi)) return msi;
  if (!vm.arch.irqchipInKernel) return refuse('EINVAL', 'NO_IRQCHIP', vm);
  if ((msi.flags & ~KVM_MSI_FLAG.VALID_DEVID) !== 0) return refuseRouting(vm, 'flags', msi.flags, '0 or 1');
  const accepted = kvmSetMsi(vm, { addressLo: msi.address_lo, addressHi: msi.address_hi, data: msi.data });
  if (accepted === MSI_INVALID) return refuseRouting(vm, 'address_hi', msi.address_hi, 'bits 0-7 zero with 32-bit APIC ids');
  return accepted < 0 ? refuse('EPERM', 'MSI_NO_VCPU', vm) : accepted;
};

const checkBootCpuId = (vm: Vm, id: bigint): Failure | null => {
  if (vm.createdVcpus > 0) return refuse('EBUSY', 'VCPUS_CREATED', vm, { created_vcpus: String(vm.createdVcpus) });
  const highest = vm.arch.maxVcpuIds === 0 ? KVM_MAX_VCPU_IDS : vm.arch.maxVcpuIds;
  if (id <= BigInt(highest)) return null;
  return refuse('EINVAL', 'VCPU_ID_RANGE', vm, { field: 'id', given: String(id), allowed: `0 to ${highest}` });
};

/**
 * KVM_SET_BOOT_CPU_ID: EBUSY once there is a vCPU; EINVAL beyond the highest id, which itself is taken though no vCPU can have
 * it.
 */
function* setBootCpuId(current: Task, vm: Vm, arg: IoctlArg): MightSleep<Result<number>> {
  yield* vm.lock.lock(current);
  const refused = checkBootCpuId(vm, arg.value);
  if (refused === null) vm.arch.bspVcpuId = Number(arg.value);
  vm.lock.unlock(current);
  return refused ?? 0;
}

/** The VM ioctls of interrupt controllers and timers; null if the request is not one of them. */
export function* irqVmIoctl(current: Task, vm: Vm, request: number, arg: IoctlArg): MightSleep<Result<number> | null> {
  switch (request) {
    case IOCTL.KVM_CREATE_IRQCHIP:
      return yield* createIrqchip(current, vm);
    case IOCTL.KVM_IRQ_LINE:
      return irqLine(vm, arg, false);
    case IOCTL.KVM_IRQ_LINE_STATUS:
      return irqLine(vm, arg, true);
    case IOCTL.KVM_GET_IRQCHIP:
      return getIrqchip(vm, arg);
    case IOCTL.KVM_SET_IRQCHIP:
      return setIrqchip(vm, arg);
    case IOCTL.KVM_SET_GSI_ROUTING:
      return yield* setGsiRouting(current, vm, arg);
    case IOCTL.KVM_SIGNAL_MSI:
      return signalMsi(vm, arg);
    case IOCTL.KVM_SET_BOOT_CPU_ID:
      return yield* setBootCpuId(current, vm, arg);
    default:
      return yield* pitIoctl(current, vm, request, arg);
  }
}
