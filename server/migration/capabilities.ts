import { Failure } from '../kernel/failure.js';
import type { Vm } from '../kernel/kvm/vm.js';
import { KVM_CAP } from '../kernel/uapi/capabilities.js';
import type { CapabilityDescription, GuestDescription } from './guest.js';

interface Carried {
  readonly cap: number;
  /** KVM_ENABLE_CAP's argument that gives a new VM what this one has; null: it has what every new one has. */
  argument(vm: Vm): bigint | null;
}

const flag = (on: boolean): bigint | null => (on ? 1n : null);
const bits = (mask: number | bigint): bigint | null => (BigInt(mask) === 0n ? null : BigInt(mask));

/** Capabilities that a VM can have, in the order in which they can be enabled: the split irqchip before what needs an irqchip. */
const CARRIED: readonly Carried[] = [
  {
    cap: KVM_CAP.SPLIT_IRQCHIP,
    argument: ({ arch }) => (arch.irqchipMode === 'split' ? BigInt(arch.irq.reservedIoapicPins) : null),
  },
  {
    cap: KVM_CAP.X86_APIC_BUS_CYCLES_NS,
    argument: ({ arch }) => (arch.apicBusCycleNs === 1 ? null : BigInt(arch.apicBusCycleNs)),
  },
  { cap: KVM_CAP.MAX_VCPU_ID, argument: ({ arch }) => bits(arch.maxVcpuIds) },
  { cap: KVM_CAP.DIRTY_LOG_RING, argument: ({ dirtyRingBytes }) => bits(dirtyRingBytes) },
  { cap: KVM_CAP.MANUAL_DIRTY_LOG_PROTECT2, argument: ({ manualDirtyLogProtect }) => bits(manualDirtyLogProtect) },
  { cap: KVM_CAP.HALT_POLL, argument: ({ maxHaltPollNs }) => (maxHaltPollNs === null ? null : BigInt(maxHaltPollNs)) },
  { cap: KVM_CAP.EXIT_HYPERCALL, argument: ({ arch }) => bits(arch.hypercallExitMask) },
  { cap: KVM_CAP.X86_USER_SPACE_MSR, argument: ({ arch }) => bits(arch.userSpaceMsrMask) },
  { cap: KVM_CAP.EXCEPTION_PAYLOAD, argument: ({ arch }) => flag(arch.exceptionPayload) },
  {
    cap: KVM_CAP.X2APIC_API,
    argument: ({ arch }) => bits((arch.x2apicFormat ? 1 : 0) | (arch.x2apicBroadcastQuirkDisabled ? 2 : 0)),
  },
  { cap: KVM_CAP.EXIT_ON_EMULATION_FAILURE, argument: ({ arch }) => flag(arch.exitOnEmulationError) },
  { cap: KVM_CAP.X86_TRIPLE_FAULT_EVENT, argument: ({ arch }) => flag(arch.tripleFaultEvent) },
  { cap: KVM_CAP.X86_DISABLE_EXITS, argument: ({ arch }) => bits(arch.disabledExits) },
  { cap: KVM_CAP.DISABLE_QUIRKS2, argument: ({ arch }) => bits(arch.disabledQuirks) },
  { cap: KVM_CAP.MSR_PLATFORM_INFO, argument: ({ arch }) => (arch.guestCanReadMsrPlatformInfo ? null : 0n) },
];

const KNOWN: ReadonlySet<number> = new Set(CARRIED.map(({ cap }) => cap));

/** KVM_ENABLE_CAP calls that give a new VM what this one has. */
export const describeCapabilities = (vm: Vm): CapabilityDescription[] =>
  CARRIED.flatMap(({ cap, argument }) => {
    const value = argument(vm);
    return value === null ? [] : [{ cap, argument: value }];
  });

/**
 * EINVAL for a capability that is not among these: a source does not choose what is done on a destination, where another one
 * might take a guest's key from its VM (KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM).
 */
export const checkCapabilities = ({ capabilities }: GuestDescription): Failure | null => {
  const other = capabilities.find(({ cap }) => !KNOWN.has(cap));
  return other === undefined
    ? null
    : new Failure('EINVAL', 'CAPABILITY_NOT_CARRIED', 'server/migration', { cap: String(other.cap) });
};
