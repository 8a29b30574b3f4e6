import { Failure, failed, type Result } from '../kernel/failure.js';
import type { Vcpu } from '../kernel/kvm/vcpu.js';
import type { Vm } from '../kernel/kvm/vm.js';
import { SAVED_MSRS } from '../kernel/kvm/x86/msr-store.js';
import { getMsr, setMsr } from '../kernel/kvm/x86/msrs.js';
import { IOCTL } from '../kernel/uapi/ioctls.js';
import { kvm_irqchip, kvm_pit_state2 } from '../kernel/uapi/irq-structs.js';
import { kvm_mp_state } from '../kernel/uapi/kvm-structs.js';
import type { Fields, Struct } from '../kernel/uapi/struct.js';
import {
  kvm_clock_data,
  kvm_debugregs,
  kvm_lapic_state,
  kvm_regs,
  kvm_sregs,
  kvm_vcpu_events,
  kvm_xcrs,
  kvm_xsave,
} from '../kernel/uapi/x86-structs.js';
import { vcpuCall, vcpuCallArg, vmCall } from './kernel-call.js';
import { fromWords, PART, type StatePart, words } from './state-parts.js';

/** An ioctl that reads, the one that puts it back, and what they exchange. */
interface Exchange {
  readonly get: number;
  readonly set: number;
  readonly layout: Struct<Fields>;
}

/** Registers that a SEV-ES guest has in its save area, in the order in which they can be set. */
const REGISTERS: readonly Exchange[] = [
  { get: IOCTL.KVM_GET_SREGS, set: IOCTL.KVM_SET_SREGS, layout: kvm_sregs },
  { get: IOCTL.KVM_GET_REGS, set: IOCTL.KVM_SET_REGS, layout: kvm_regs },
  { get: IOCTL.KVM_GET_XCRS, set: IOCTL.KVM_SET_XCRS, layout: kvm_xcrs },
  { get: IOCTL.KVM_GET_XSAVE, set: IOCTL.KVM_SET_XSAVE, layout: kvm_xsave },
  { get: IOCTL.KVM_GET_DEBUGREGS, set: IOCTL.KVM_SET_DEBUGREGS, layout: kvm_debugregs },
];

const EVENTS: Exchange = { get: IOCTL.KVM_GET_VCPU_EVENTS, set: IOCTL.KVM_SET_VCPU_EVENTS, layout: kvm_vcpu_events };
const MP_STATE: Exchange = { get: IOCTL.KVM_GET_MP_STATE, set: IOCTL.KVM_SET_MP_STATE, layout: kvm_mp_state };
const LAPIC: Exchange = { get: IOCTL.KVM_GET_LAPIC, set: IOCTL.KVM_SET_LAPIC, layout: kvm_lapic_state };
const CLOCK: Exchange = { get: IOCTL.KVM_GET_CLOCK, set: IOCTL.KVM_SET_CLOCK, layout: kvm_clock_data };
const IRQCHIP: Exchange = { get: IOCTL.KVM_GET_IRQCHIP, set: IOCTL.KVM_SET_IRQCHIP, layout: kvm_irqchip };
const PIT: Exchange = { get: IOCTL.KVM_GET_PIT2, set: IOCTL.KVM_SET_PIT2, layout: kvm_pit_state2 };
/** Both PICs, and the IOAPIC. */
const CHIPS = [0, 1, 2] as const;

/** Requests that a state may ask for: a source does not choose what is done on a destination. */
const VM_REQUESTS: ReadonlySet<number> = new Set([CLOCK.set, IRQCHIP.set, PIT.set]);
const VCPU_REQUESTS: ReadonlySet<number> = new Set([...REGISTERS, EVENTS, MP_STATE, LAPIC].map(({ set }) => set));

const readVcpu = (vcpu: Vcpu, { get, set, layout }: Exchange): Result<StatePart> => {
  const bytes = new Uint8Array(layout.size);
  const refused = vcpuCall(vcpu, get, bytes);
  return failed(refused) ? refused : { kind: PART.VCPU_IOCTL, index: vcpu.index, request: set, bytes };
};

const readVm = (vm: Vm, { get, set }: Exchange, bytes: Uint8Array): Result<StatePart> => {
  const refused = vmCall(vm, get, bytes);
  return failed(refused) ? refused : { kind: PART.VM_IOCTL, index: 0, request: set, bytes };
};

/** MSRs as a VMM saves them: those that the vCPU has. */
const readMsrs = (vcpu: Vcpu): StatePart => {
  const pairs = SAVED_MSRS.flatMap((index): bigint[] => {
    const value = getMsr(vcpu, index, true);
    return value === null ? [] : [BigInt(index), value];
  });
  return { kind: PART.VCPU_MSRS, index: vcpu.index, request: 0, bytes: words(pairs) };
};

/** The parts of a stopped vCPU that KVM has; registers are not among them where the guest's are encrypted. */
const vcpuParts = (vcpu: Vcpu): Result<StatePart>[] => {
  const { arch, vm } = vcpu;
  const registers = vm.kernel.ops.guestStateProtected(vcpu) ? [] : REGISTERS;
  const khz: StatePart = { kind: PART.VCPU_TSC_KHZ, index: vcpu.index, request: arch.tscKhz, bytes: new Uint8Array(0) };
  return [
    khz,
    ...registers.map((exchange) => readVcpu(vcpu, exchange)),
    readMsrs(vcpu),
    readVcpu(vcpu, MP_STATE),
    ...(arch.lapic === null ? [] : [readVcpu(vcpu, LAPIC)]),
    readVcpu(vcpu, EVENTS),
  ];
};

const vmParts = (vm: Vm): Result<StatePart>[] => {
  const chips = vm.arch.picInKernel ? CHIPS.map((chip_id) => readVm(vm, IRQCHIP, kvm_irqchip.encode({ chip_id }))) : [];
  const pit = vm.arch.irq.pit === null ? [] : [readVm(vm, PIT, new Uint8Array(kvm_pit_state2.size))];
  const shared = vm.arch.sharedFrames.list().flatMap(({ first, end }) => [BigInt(first), BigInt(end)]);
  return [
    ...chips,
    ...pit,
    readVm(vm, CLOCK, new Uint8Array(kvm_clock_data.size)),
    { kind: PART.SHARED_FRAMES, index: 0, request: 0, bytes: words(shared) },
  ];
};

/** Everything that KVM keeps of a stopped guest beside its memory: interrupt controllers first, then vCPUs. */
export const saveState = (vm: Vm): Result<StatePart[]> => {
  const parts: StatePart[] = [];
  for (const part of [...vmParts(vm), ...vm.vcpus.flatMap(vcpuParts)]) {
    if (failed(part)) return part;
    parts.push(part);
  }
  return parts;
};

const refuse = (reason: string, part: StatePart): Failure =>
  new Failure('EINVAL', reason, 'server/migration', { kind: String(part.kind), request: `0x${part.request.toString(16)}` });

const writeMsrs = (vcpu: Vcpu, part: StatePart): Failure | null => {
  const values = fromWords(part.bytes);
  for (let at = 0; at + 1 < values.length; at += 2) {
    const index = Number(values[at]);
    const value = values[at + 1] ?? 0n;
    // A read-only one is no obstacle if it has the value already.
    if (!setMsr(vcpu, index, value, true) && getMsr(vcpu, index, true) !== value)
      return refuse('MSR_NOT_RESTORED', part).with({ msr: `0x${index.toString(16)}` });
  }
  return null;
};

const restoreVcpuPart = (vcpu: Vcpu, part: StatePart): Failure | null => {
  switch (part.kind) {
    case PART.VCPU_IOCTL: {
      if (!VCPU_REQUESTS.has(part.request)) return refuse('STATE_REQUEST_NOT_ALLOWED', part);
      const result = vcpuCall(vcpu, part.request, part.bytes);
      return failed(result) ? result : null;
    }
    case PART.VCPU_TSC_KHZ: {
      const arg = { value: BigInt(part.request), user: vcpu.vm.mm };
      const result = vcpuCallArg(vcpu, IOCTL.KVM_SET_TSC_KHZ, arg);
      return failed(result) ? result : null;
    }
    case PART.VCPU_MSRS:
      return writeMsrs(vcpu, part);
    default:
      return refuse('STATE_PART_UNEXPECTED', part);
  }
};

/** Puts one part back, whatever kind of guest it is. EINVAL: it is for nothing that is there. */
export const restorePart = (vm: Vm, part: StatePart): Failure | null => {
  if (part.kind === PART.VM_IOCTL) {
    if (!VM_REQUESTS.has(part.request)) return refuse('STATE_REQUEST_NOT_ALLOWED', part);
    const result = vmCall(vm, part.request, part.bytes);
    return failed(result) ? result : null;
  }
  if (part.kind === PART.SHARED_FRAMES) {
    const values = fromWords(part.bytes).map(Number);
    for (let at = 0; at + 1 < values.length; at += 2) {
      const first = values[at] ?? 0;
      vm.arch.sharedFrames.mapGpaRange(first, (values[at + 1] ?? 0) - first, 0n);
    }
    return null;
  }
  const vcpu = vm.vcpus[part.index];
  return vcpu === undefined ? refuse('STATE_OF_NO_VCPU', part) : restoreVcpuPart(vcpu, part);
};
