import { PAGE_SIZE } from '../hardware/units.js';
import { Failure, failed, type Result } from '../kernel/failure.js';
import { isMirror, isSevEsGuest, isSevSnpGuest } from '../kernel/kvm/svm/sev-info.js';
import type { Vcpu } from '../kernel/kvm/vcpu.js';
import type { Vm } from '../kernel/kvm/vm.js';
import type { Cpuid } from '../kernel/kvm/x86/cpuid.js';
import { KVM_MEM } from '../kernel/uapi/constants.js';
import { IOCTL } from '../kernel/uapi/ioctls.js';
import { kvm_cpuid_entry2, kvm_cpuid2 } from '../kernel/uapi/x86-structs.js';
import { describeCapabilities } from './capabilities.js';
import { FrameSet } from './frame-set.js';
import type { GuestDescription, GuestKindName, SlotDescription, VcpuDescription, WiringDescription } from './guest.js';
import { vcpuCall } from './kernel-call.js';
import { memoryRanges } from './memory-layout.js';

/** Entries that KVM takes. */
const CPUID_ENTRIES_MAX = 256;

const refuse = (reason: string, vm: Vm, details: Record<string, string> = {}): Failure =>
  new Failure('EINVAL', reason, 'server/migration', { object: `vm ${vm.id}`, ...details });

export const kindOf = ({ arch }: Vm): GuestKindName => (arch.sev?.active ? 'sev' : 'plain');

/** Why this VM cannot be sent at all; null if it can. What the destination and the firmware say is not known yet. */
export const whyNotSent = (vm: Vm): Failure | null => {
  const { life } = vm;
  if (life.kind !== 'alive')
    return new Failure('EIO', 'VM_NOT_ALIVE', 'server/migration', { object: `vm ${vm.id}`, state: life.kind });
  if (vm.migration !== null)
    return new Failure('EBUSY', 'MIGRATION_UNDER_WAY', 'server/migration', { object: `vm ${vm.id}`, session: vm.migration });
  // It is being received.
  if (vm.pause !== null) return new Failure('EBUSY', 'MIGRATION_UNDER_WAY', 'server/migration', { object: `vm ${vm.id}` });
  if ([...vm.memslots].some(({ npages, userspaceAddr: at }) => vm.mm.hasMissing(at, at + npages * PAGE_SIZE)))
    return new Failure('EBUSY', 'PAGES_STILL_OWED', 'server/migration', { object: `vm ${vm.id}` });
  if (vm.createdVcpus !== vm.vcpus.length)
    return new Failure('EBUSY', 'VCPU_CREATION_IN_PROGRESS', 'server/migration', { object: `vm ${vm.id}` });
  return whyNotCarried(vm);
};

/** What nobody can take along. */
const whyNotCarried = (vm: Vm): Failure | null => {
  const { arch } = vm;
  if (arch.sev !== null && isSevSnpGuest(vm))
    // Page keys of SEV-SNP never leave the firmware but for a migration agent, which the guest's owner has to bind at launch.
    return refuse('SNP_NEEDS_MIGRATION_AGENT', vm, { expected: 'a migration agent bound to the guest (MA_CONTEXT)' });
  if (arch.sev !== null && (isMirror(vm) || arch.sev.mirrorVms.size > 0)) return refuse('VM_IS_MIRRORED', vm);
  if ([...vm.memslots].some(({ flags }) => (flags & KVM_MEM.GUEST_MEMFD) !== 0)) return refuse('GUEST_MEMFD_NOT_CARRIED', vm);
  if (vm.devices.size > 0) return refuse('DEVICE_NOT_CARRIED', vm, { devices: String(vm.devices.size) });
  return null;
};

const describeVcpu = (vcpu: Vcpu): Result<VcpuDescription> => {
  const room = new Uint8Array(kvm_cpuid2.size + CPUID_ENTRIES_MAX * kvm_cpuid_entry2.size);
  room.set(kvm_cpuid2.encode({ nent: CPUID_ENTRIES_MAX }));
  const refused = vcpuCall(vcpu, IOCTL.KVM_GET_CPUID2, room);
  if (failed(refused)) return refused;
  const { nent } = kvm_cpuid2.decode(room);
  return { id: vcpu.id, cpuid: room.slice(0, kvm_cpuid2.size + nent * kvm_cpuid_entry2.size) };
};

/** Whether something of a slot is registered for encryption, so that its pages are pinned. */
const isPinned = (vm: Vm, start: number, bytes: number): boolean =>
  (vm.arch.sev?.regions ?? []).some(
    ({ address, size }) => address < BigInt(start) + BigInt(bytes) && address + size > BigInt(start),
  );

const describeSlots = (vm: Vm): SlotDescription[] =>
  [...vm.memslots].map(({ id, baseGfn, npages, flags, userspaceAddr }) => ({
    id,
    gpa: baseGfn * PAGE_SIZE,
    bytes: npages * PAGE_SIZE,
    flags,
    pinned: isPinned(vm, userspaceAddr, npages * PAGE_SIZE),
    userspaceAddress: userspaceAddr,
  }));

/**
 * One ioeventfd for each that the VMM has assigned: KVM's own second one on the fast bus goes with the one of length 0.
 * @param stopped the counts mean something
 */
export const describeWiring = (vm: Vm, stopped: boolean): WiringDescription => ({
  ioeventfds: [...vm.ioeventfds]
    .filter(({ bus }) => bus !== 'fastMmio')
    .map(({ addr, length, datamatch, bus, eventfd }) => {
      const count = stopped ? eventfd.value : 0n;
      return { address: addr, length, datamatch, pio: bus === 'pio', count };
    }),
  irqfds: [...vm.irqfds].map(({ gsi, resamplefd, untaken }) => ({
    gsi,
    resample: resamplefd !== null,
    count: stopped ? untaken : 0n,
  })),
});

/** What is made before any vCPU. */
const describeMachine = (vm: Vm) => ({
  kind: kindOf(vm),
  vmType: vm.type,
  encryptedState: vm.arch.sev !== null && isSevEsGuest(vm),
  vmsaFeatures: vm.arch.sev?.vmsaFeatures ?? 0n,
  irqchip: vm.arch.picInKernel,
  pit: vm.arch.irq.pit !== null,
  pitSpeaker: vm.arch.irq.pit?.speaker ?? false,
  bootCpuId: vm.arch.bspVcpuId,
  tscKhz: vm.arch.defaultTscKhz,
  capabilities: describeCapabilities(vm),
  slots: describeSlots(vm),
});

/** Pages of the slots that were ever touched, each once, and without those of slots that are pinned as a whole. */
const touchedPages = ({ mm }: Vm, slots: readonly SlotDescription[]): number => {
  let count = 0;
  for (const { start, bytes } of memoryRanges(slots.filter(({ pinned }) => !pinned))) {
    const touched = new FrameSet(start / PAGE_SIZE, bytes / PAGE_SIZE);
    for (const { first, count: pages } of mm.touchedPages(start, start + bytes))
      for (let page = first; page < first + pages; page++) touched.add(page);
    count += touched.size;
  }
  return count;
};

/**
 * What a destination has to make before anything is put into it. What can be set at any time, such as GSI routing, is part of
 * the state.
 */
export const describeGuest = (vm: Vm): Result<GuestDescription> => {
  const vcpus: VcpuDescription[] = [];
  for (const vcpu of vm.vcpus) {
    const described = describeVcpu(vcpu);
    if (failed(described)) return described;
    vcpus.push(described);
  }
  const machine = describeMachine(vm);
  return { ...machine, vcpus, ...describeWiring(vm, false), touchedPages: touchedPages(vm, machine.slots) };
};

const textOf = (value: unknown): string =>
  JSON.stringify(value, (_name, field: unknown) => (typeof field === 'bigint' ? String(field) : field));

/** Name of what is not as it was; null: all is. */
const changedSince = (vm: Vm, before: GuestDescription, cpuids: readonly Cpuid[]): string | null => {
  const then: Readonly<Record<string, unknown>> = { ...before };
  const now = Object.entries(describeMachine(vm)).find(([name, value]) => textOf(value) !== textOf(then[name]));
  if (now !== undefined) return now[0];
  const ids = (vcpus: readonly { readonly id: number }[]): string => textOf(vcpus.map(({ id }) => id));
  if (ids(vm.vcpus) !== ids(before.vcpus)) return 'vcpus';
  const other = vm.vcpus.find(({ arch }, index) => textOf(arch.cpuid.entries) !== textOf(cpuids[index]?.entries));
  return other === undefined ? null : `CPUID of vcpu ${other.id}`;
};

/**
 * Why a guest is not any more what the destination has made room for: its VMM has changed something that is made once, and
 * could only be lost. Null: it is.
 * @param cpuids of the vCPUs when it was described, without what follows their registers
 */
export const whyNotAsDescribed = (vm: Vm, before: GuestDescription, cpuids: readonly Cpuid[]): Failure | null => {
  const what = changedSince(vm, before, cpuids);
  if (what === null) return whyNotCarried(vm);
  return new Failure('EBUSY', 'GUEST_CHANGED_MEANWHILE', 'server/migration', { object: `vm ${vm.id}`, what });
};
