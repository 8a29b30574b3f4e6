import { Failure, failed, type Result } from '../kernel/failure.js';
import { InlineCopy } from '../kernel/fs/inline-copy.js';
import type { Vm } from '../kernel/kvm/vm.js';
import { guestTscs, setGuestTscs } from '../kernel/kvm/x86/tsc.js';
import { KVM_MSR_FILTER_DEFAULT } from '../kernel/uapi/constants.js';
import { IOCTL } from '../kernel/uapi/ioctls.js';
import {
  kvm_irq_routing,
  kvm_irq_routing_entry,
  kvm_irqchip,
  kvm_pit_state2,
  kvm_reinject_control,
} from '../kernel/uapi/irq-structs.js';
import { kvm_coalesced_mmio_zone } from '../kernel/uapi/kvm-structs.js';
import { kvm_clock_data, kvm_msr_filter, kvm_msr_filter_range } from '../kernel/uapi/x86-structs.js';
import { vmCall, vmCallArg } from './kernel-call.js';
import { fromWords, PART, type StatePart, words } from './state-parts.js';
import { restoreVcpuPart, tscKhzPart, vcpuParts } from './vcpu-state.js';

/** Both PICs, and the IOAPIC. */
const CHIPS = [0, 1, 2] as const;

/** Requests that a state may ask for: a source does not choose what is done on a destination. */
const REQUESTS: ReadonlySet<number> = new Set([
  ...[IOCTL.KVM_SET_CLOCK, IOCTL.KVM_SET_IRQCHIP, IOCTL.KVM_REINJECT_CONTROL],
  ...[IOCTL.KVM_SET_GSI_ROUTING, IOCTL.KVM_REGISTER_COALESCED_MMIO],
]);

const call = (request: number, bytes: Uint8Array): StatePart => ({ kind: PART.VM_IOCTL, index: 0, request, bytes });
const own = (kind: StatePart['kind'], bytes: Uint8Array): StatePart => ({ kind, index: 0, request: 0, bytes });

/** What `get` gives, to be put back by `set`. */
const read = (vm: Vm, get: number, set: number, bytes: Uint8Array): Result<StatePart> => {
  const refused = vmCall(vm, get, bytes);
  return failed(refused) ? refused : call(set, bytes);
};

/** KVM gives its routing back to nobody; without it an irqfd that is made again would lead elsewhere. */
const routingPart = ({ arch }: Vm): StatePart => {
  const entries = arch.irq.routes.list();
  const bytes = new Uint8Array(kvm_irq_routing.size + entries.length * kvm_irq_routing_entry.size);
  kvm_irq_routing.write(bytes, { nr: entries.length });
  for (const [index, entry] of entries.entries())
    kvm_irq_routing_entry.write(bytes, entry, kvm_irq_routing.size + index * kvm_irq_routing_entry.size);
  return call(IOCTL.KVM_SET_GSI_ROUTING, bytes);
};

const irqchipParts = (vm: Vm): Result<StatePart>[] => {
  const { arch } = vm;
  if (!arch.irqchipInKernel) return [];
  const chips = arch.picInKernel
    ? CHIPS.map((chip_id) => read(vm, IOCTL.KVM_GET_IRQCHIP, IOCTL.KVM_SET_IRQCHIP, kvm_irqchip.encode({ chip_id })))
    : [];
  const { pit } = arch.irq;
  if (pit === null) return [routingPart(vm), ...chips];
  const control = kvm_reinject_control.encode({ pit_reinject: pit.reinjects ? 1 : 0 });
  return [routingPart(vm), ...chips, call(IOCTL.KVM_REINJECT_CONTROL, control), own(PART.PIT, pit.getState2())];
};

/** The zones, and what of their writes the VMM has not taken out of the ring. */
const coalescedParts = ({ coalesced }: Vm): StatePart[] => {
  const zones = [...coalesced.zones].map(({ addr, size, pio }) =>
    call(IOCTL.KVM_REGISTER_COALESCED_MMIO, kvm_coalesced_mmio_zone.encode({ addr, size, pio: pio ? 1 : 0 })),
  );
  return zones.length === 0 ? [] : [...zones, own(PART.COALESCED_RING, coalesced.ring.bytes.slice())];
};

/** `kvm_msr_filter`, whose addresses mean nothing, and the bitmaps of its ranges in their order. */
const msrFilterParts = ({ arch }: Vm): StatePart[] => {
  if (arch.msrFilter === null) return [];
  const { defaultAllow, ranges } = arch.msrFilter;
  const filter = kvm_msr_filter.encode({
    flags: defaultAllow ? KVM_MSR_FILTER_DEFAULT.ALLOW : KVM_MSR_FILTER_DEFAULT.DENY,
    ranges: ranges.map(({ flags, base, count }) =>
      kvm_msr_filter_range.decode(kvm_msr_filter_range.encode({ flags, base, nmsrs: count })),
    ),
  });
  return [own(PART.MSR_FILTER, Uint8Array.from([filter, ...ranges.map(({ bitmap }) => bitmap)].flatMap((bytes) => [...bytes])))];
};

const restoreMsrFilter = (vm: Vm, { bytes }: StatePart): Failure | null => {
  if (bytes.length < kvm_msr_filter.size) return malformed('MSR filter');
  const filter = kvm_msr_filter.decode(bytes);
  const user = new InlineCopy(vm.mm);
  let at = kvm_msr_filter.size;
  const ranges = filter.ranges.map((range) => {
    const length = Math.ceil(range.nmsrs / 64) * 8;
    const bitmap = user.place(bytes.slice(at, at + length));
    at += length;
    return { ...range, bitmap };
  });
  const result = vmCallArg(vm, IOCTL.KVM_X86_SET_MSR_FILTER, {
    value: user.place(kvm_msr_filter.encode({ ...filter, ranges })),
    user,
  });
  return failed(result) ? result : null;
};

const vmParts = (vm: Vm): Result<StatePart>[] => {
  const shared = vm.arch.sharedFrames.list().flatMap(({ first, end }) => [BigInt(first), BigInt(end)]);
  return [
    ...irqchipParts(vm),
    read(vm, IOCTL.KVM_GET_CLOCK, IOCTL.KVM_SET_CLOCK, new Uint8Array(kvm_clock_data.size)),
    own(PART.SHARED_FRAMES, words(shared)),
    ...msrFilterParts(vm),
    ...coalescedParts(vm),
    ...vm.vcpus.map(tscKhzPart),
    own(PART.TSC, words(guestTscs(vm))),
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

const malformed = (what: string): Failure => new Failure('EINVAL', 'GUEST_STATE_MALFORMED', 'server/migration', { what });

const restoreSharedFrames = (vm: Vm, { bytes }: StatePart): null => {
  const values = fromWords(bytes).map(Number);
  for (let at = 0; at + 1 < values.length; at += 2) {
    const first = values[at] ?? 0;
    vm.arch.sharedFrames.mapGpaRange(first, (values[at + 1] ?? 0) - first, 0n);
  }
  return null;
};

/** KVM_SET_PIT2 without kvm->lock, which the pause of the VM holds. */
const restorePit = ({ arch }: Vm, part: StatePart): Failure | null => {
  const { pit } = arch.irq;
  if (pit === null || part.bytes.length !== kvm_pit_state2.size) return refuse('STATE_PART_UNEXPECTED', part);
  pit.setState2(part.bytes);
  return null;
};

const restoreRing = ({ coalesced }: Vm, { bytes }: StatePart): Failure | null => {
  const ring = coalesced.ring.bytes;
  if (bytes.length !== ring.length) return malformed('coalesced MMIO ring');
  ring.set(bytes);
  return null;
};

/** Puts one part back, whatever kind of guest it is. EINVAL: it is for nothing that is there. */
export const restorePart = (vm: Vm, part: StatePart): Failure | null => {
  switch (part.kind) {
    case PART.VM_IOCTL: {
      if (!REQUESTS.has(part.request)) return refuse('STATE_REQUEST_NOT_ALLOWED', part);
      const result = vmCall(vm, part.request, part.bytes);
      return failed(result) ? result : null;
    }
    case PART.PIT:
      return restorePit(vm, part);
    case PART.SHARED_FRAMES:
      return restoreSharedFrames(vm, part);
    case PART.MSR_FILTER:
      return restoreMsrFilter(vm, part);
    case PART.COALESCED_RING:
      return restoreRing(vm, part);
    case PART.TSC:
      setGuestTscs(vm, fromWords(part.bytes));
      return null;
    default: {
      const vcpu = vm.vcpus[part.index];
      return vcpu === undefined ? refuse('STATE_OF_NO_VCPU', part) : restoreVcpuPart(vcpu, part);
    }
  }
};
