import { Failure, type Result } from '../../../failure.js';
import type { Task } from '../../../sched/task.js';
import type { MightSleep } from '../../../sched/wait.js';
import { KVM_X2APIC_API } from '../../../uapi/constants.js';
import type { Vm } from '../../vm.js';
import { IrqRoutingTable, KVM_MAX_IRQ_ROUTES } from './irq-routing.js';

/** KVM_ENABLE_CAP of a VM, as far as interrupt controllers go (`kvm_vm_ioctl_enable_cap`). @param args `args[0]` */

const refuse = (errno: 'EINVAL' | 'EEXIST' | 'ENXIO', reason: string, vm: Vm, details: Record<string, string>): Failure =>
  new Failure(errno, reason, 'kvm_vm_ioctl_enable_cap', { object: `vm ${vm.id}`, irqchip: vm.arch.irqchipMode, ...details });

const argument = (given: bigint, allowed: string): Record<string, string> => ({
  field: 'args[0]',
  given: String(given),
  allowed,
});

/** KVM_CAP_SPLIT_IRQCHIP: local APICs here, PIC and an IOAPIC of so many pins in user space. */
export function* enableSplitIrqchip(current: Task, vm: Vm, pins: bigint): MightSleep<Result<number>> {
  if (pins > BigInt(KVM_MAX_IRQ_ROUTES))
    return refuse('EINVAL', 'SPLIT_IRQCHIP_PINS', vm, argument(pins, `up to ${KVM_MAX_IRQ_ROUTES}`));
  yield* vm.lock.lock(current);
  const taken = vm.arch.irqchipInKernel || vm.createdVcpus > 0;
  if (!taken) {
    vm.arch.irq.setRouting(new IrqRoutingTable());
    vm.arch.irq.reservedIoapicPins = Number(pins);
    vm.arch.irqchipMode = 'split';
  }
  vm.lock.unlock(current);
  if (taken) return refuse('EEXIST', 'IRQCHIP_EXISTS', vm, { created_vcpus: String(vm.createdVcpus) });
  return 0;
}

/** KVM_CAP_X2APIC_API: bits are only ever switched on. */
export const enableX2apicApi = (vm: Vm, flags: bigint): Result<number> => {
  const valid = BigInt(KVM_X2APIC_API.USE_32BIT_IDS | KVM_X2APIC_API.DISABLE_BROADCAST_QUIRK);
  if ((flags & ~valid) !== 0n) return refuse('EINVAL', 'X2APIC_API_FLAGS', vm, argument(flags, `bits of ${valid}`));
  if (flags & BigInt(KVM_X2APIC_API.USE_32BIT_IDS)) vm.arch.x2apicFormat = true;
  if (flags & BigInt(KVM_X2APIC_API.DISABLE_BROADCAST_QUIRK)) vm.arch.x2apicBroadcastQuirkDisabled = true;
  return 0;
};

/** Longest cycle with which the longest timer, 2^32-1 cycles divided by 128, still fits in 64 bits of nanoseconds. */
const MAX_BUS_CYCLE_NS = (2n ** 64n - 1n) / ((2n ** 32n - 1n) * 128n);

/** KVM_CAP_X86_APIC_BUS_CYCLES_NS. ENXIO without an irqchip, EINVAL once there is a vCPU. */
export function* enableApicBusCyclesNs(current: Task, vm: Vm, nanoseconds: bigint): MightSleep<Result<number>> {
  if (nanoseconds === 0n || nanoseconds > MAX_BUS_CYCLE_NS)
    return refuse('EINVAL', 'APIC_BUS_CYCLE', vm, argument(nanoseconds, `1 to ${MAX_BUS_CYCLE_NS}`));
  yield* vm.lock.lock(current);
  const refused = busCycleRefusal(vm);
  if (refused === null) vm.arch.apicBusCycleNs = Number(nanoseconds);
  vm.lock.unlock(current);
  return refused ?? 0;
}

const busCycleRefusal = (vm: Vm): Failure | null => {
  if (!vm.arch.irqchipInKernel) return refuse('ENXIO', 'NO_IRQCHIP', vm, {});
  return vm.createdVcpus > 0 ? refuse('EINVAL', 'VCPUS_CREATED', vm, { created_vcpus: String(vm.createdVcpus) }) : null;
};
