import type { File, Process } from '../../index.js';
import type { Vm } from '../../vm.js';
import type { GuestImage } from '../guest/image.js';
import { HIGH_MEMORY, LOW_MEMORY_END } from '../guest/layout.js';

/** Whether both VMMs see the same guest memory. */
export type Backing = 'shared-memfd' | 'private-anonymous';

/** A memory slot, and where its pages are in the guest's RAM. */
export interface MemorySlot {
  readonly slot: number;
  readonly gpa: bigint;
  readonly size: bigint;
  readonly offset: bigint;
}

/** As on a PC: conventional memory, memory above 1 MiB, and firmware below 4 GiB if there is one. */
const slotsOf = (bytes: number, firmware: GuestImage['firmware']): readonly MemorySlot[] => [
  { slot: 0, gpa: 0n, size: BigInt(LOW_MEMORY_END), offset: 0n },
  { slot: 1, gpa: BigInt(HIGH_MEMORY), size: BigInt(bytes - HIGH_MEMORY), offset: BigInt(HIGH_MEMORY) },
  ...(firmware === null ? [] : [{ slot: 2, gpa: BigInt(firmware.gpa), size: BigInt(firmware.size), offset: BigInt(bytes) }]),
];

/** Guest RAM in the address space of one VMM. */
export class GuestMemory {
  private constructor(
    readonly slots: readonly MemorySlot[],
    /** Where it is mapped. */
    readonly address: bigint,
    /** The memfd; null for private memory. */
    readonly file: File | null,
  ) {}

  /** Maps `bytes` of RAM, and firmware above them, at or near the address `hint`. `file`: that memory, sent by another VMM. */
  static async map(
    process: Process,
    backing: Backing,
    { bytes, firmware, hint, file }: { bytes: number; firmware: GuestImage['firmware']; hint: bigint; file: File | null },
  ): Promise<GuestMemory> {
    const length = bytes + (firmware?.size ?? 0);
    const slots = slotsOf(bytes, firmware);
    if (backing === 'private-anonymous') return new GuestMemory(slots, await process.memory.mmap({ length, addr: hint }), null);
    const memfd = file ?? (await process.memory.memfdCreate('guest-ram'));
    if (file === null) await memfd.ftruncate(length);
    return new GuestMemory(slots, await process.memory.mmap({ fd: memfd, length, addr: hint }), memfd);
  }

  /** KVM_SET_USER_MEMORY_REGION for every slot. */
  async addSlots(vm: Vm): Promise<void> {
    for (const { slot, gpa, size } of this.slots)
      await vm.setUserMemoryRegion({
        slot,
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: this.userspaceAddress(gpa),
      });
  }

  /** Where a guest physical address is in this VMM. */
  userspaceAddress(gpa: bigint): bigint {
    const found = this.slots.find((candidate) => gpa >= candidate.gpa && gpa < candidate.gpa + candidate.size);
    if (found === undefined) throw new RangeError(`no memory slot at 0x${gpa.toString(16)}`);
    return this.address + found.offset + (gpa - found.gpa);
  }
}
