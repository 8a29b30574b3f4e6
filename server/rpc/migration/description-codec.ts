import type { GuestDescription as DescriptionMessage, GuestDescriptionInit } from '../../../gen/messages.js';
import { PAGE_SIZE } from '../../hardware/units.js';
import { Failure, failed, type Result } from '../../kernel/failure.js';
import { kvm_cpuid_entry2, kvm_cpuid2 } from '../../kernel/uapi/x86-structs.js';
import { GUEST_KINDS, type GuestDescription, type GuestKindName } from '../../migration/guest.js';

/** Guest physical addresses end here. */
const PHYSICAL_END = 2n ** 52n;
/** KVM_MAX_VCPUS. */
const VCPUS_MAX = 4096;
/** KVM_USER_MEM_SLOTS. */
const SLOTS_MAX = 32_764;
const CAPABILITIES_MAX = 256;
/** NR_IOBUS_DEVS, and as many interrupts. */
const DEVICES_MAX = 1000;
/** KVM_MAX_CPUID_ENTRIES. */
const CPUID_ENTRIES_MAX = 256;

const wrong = (field: string, given: string, allowed: string): Failure =>
  new Failure('EINVAL', 'GUEST_DESCRIPTION_MALFORMED', 'simkvmd', { field, given, allowed });

const isKind = (kind: string): kind is GuestKindName => GUEST_KINDS.some((name) => name === kind);

const checkCount = (field: string, given: number, most: number): Failure | null =>
  given <= most ? null : wrong(field, `${given} entries`, `at most ${most}`);

const checkCounts = ({ capabilities, vcpus, slots, ioeventfds, irqfds }: DescriptionMessage): Failure | null =>
  checkCount('capabilities', capabilities.length, CAPABILITIES_MAX) ??
  checkCount('vcpus', vcpus.length, VCPUS_MAX) ??
  checkCount('slots', slots.length, SLOTS_MAX) ??
  checkCount('ioeventfds', ioeventfds.length, DEVICES_MAX) ??
  checkCount('irqfds', irqfds.length, DEVICES_MAX);

const checkSlots = ({ slots }: DescriptionMessage): Failure | null => {
  for (const { gpa, bytes, userspace_addr } of slots) {
    if (gpa >= PHYSICAL_END || gpa % BigInt(PAGE_SIZE) !== 0n)
      return wrong('slots.gpa', `0x${gpa.toString(16)}`, 'a multiple of 4096 below 2^52');
    if (bytes === 0n || bytes > PHYSICAL_END - gpa || bytes % BigInt(PAGE_SIZE) !== 0n)
      return wrong('slots.bytes', String(bytes), 'a multiple of 4096, 4096 or more, that ends below 2^52');
    if (userspace_addr > PHYSICAL_END - bytes || userspace_addr % BigInt(PAGE_SIZE) !== 0n)
      return wrong(
        'slots.userspace_addr',
        `0x${userspace_addr.toString(16)}`,
        'a multiple of 4096, so that the slot ends below 2^52',
      );
  }
  return null;
};

/** A `kvm_cpuid2` is as long as its own count of entries says. */
const checkCpuid = ({ vcpus }: DescriptionMessage): Failure | null => {
  for (const { cpuid } of vcpus) {
    const nent = cpuid.length < kvm_cpuid2.size ? CPUID_ENTRIES_MAX + 1 : kvm_cpuid2.decode(cpuid).nent;
    if (nent > CPUID_ENTRIES_MAX || cpuid.length !== kvm_cpuid2.size + nent * kvm_cpuid_entry2.size)
      return wrong('vcpus.cpuid', `${cpuid.length} bytes`, `kvm_cpuid2 with at most ${CPUID_ENTRIES_MAX} entries`);
  }
  return null;
};

/** What a message says of a guest. EINVAL, with the field, for what no source would say. */
export const guestDescriptionOf = (message: DescriptionMessage): Result<GuestDescription> => {
  const { kind } = message;
  if (!isKind(kind)) return wrong('kind', kind, GUEST_KINDS.join(' or '));
  const refusal = checkCounts(message) ?? checkSlots(message) ?? checkCpuid(message);
  if (failed(refusal)) return refusal;
  return {
    kind,
    vmType: message.vm_type,
    encryptedState: message.encrypted_state,
    vmsaFeatures: message.vmsa_features,
    irqchip: message.irqchip,
    pit: message.pit,
    pitSpeaker: message.pit_speaker,
    bootCpuId: message.boot_cpu_id,
    tscKhz: message.tsc_khz,
    capabilities: message.capabilities.map(({ cap, argument }) => ({ cap, argument })),
    vcpus: message.vcpus.map(({ id, cpuid }) => ({ id, cpuid: new Uint8Array(cpuid) })),
    slots: message.slots.map(({ id, gpa, bytes, flags, pinned, userspace_addr }) => ({
      ...{ id, flags, pinned },
      gpa: Number(gpa),
      bytes: Number(bytes),
      userspaceAddress: Number(userspace_addr),
    })),
    // Fields that are absent are the prototype's.
    ioeventfds: message.ioeventfds.map(({ address, length, datamatch, pio, count }) => ({
      ...{ address, length, datamatch, pio, count },
    })),
    irqfds: message.irqfds.map(({ gsi, resample, count }) => ({ gsi, resample, count })),
    touchedPages: Number(message.touched_pages),
  };
};

export const guestDescriptionMessage = (guest: GuestDescription): GuestDescriptionInit => ({
  kind: guest.kind,
  vm_type: guest.vmType,
  encrypted_state: guest.encryptedState,
  vmsa_features: guest.vmsaFeatures,
  irqchip: guest.irqchip,
  pit: guest.pit,
  pit_speaker: guest.pitSpeaker,
  boot_cpu_id: guest.bootCpuId,
  tsc_khz: guest.tscKhz,
  capabilities: guest.capabilities,
  vcpus: guest.vcpus,
  slots: guest.slots.map(({ userspaceAddress, ...slot }) => ({ ...slot, userspace_addr: userspaceAddress })),
  ioeventfds: guest.ioeventfds,
  irqfds: guest.irqfds,
  touched_pages: guest.touchedPages,
});
