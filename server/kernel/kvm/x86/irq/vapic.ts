import { type Gpa, gpa, gpaToGfn, PAGE_SIZE } from '../../../../hardware/units.js';
import { Failure, failed, type Result } from '../../../failure.js';
import type { IoctlArg } from '../../../fs/ioctl-arg.js';
import { PageMissing } from '../../../mm/missing-pages.js';
import { kvm_vapic_addr } from '../../../uapi/kvm-structs.js';
import { copyStruct } from '../../copy-struct.js';
import { markPageDirty } from '../../mark-page-dirty.js';
import type { Memslot } from '../../memslots.js';
import type { Vcpu } from '../../vcpu.js';
import { APIC } from './apic-registers.js';

/**
 * KVM_SET_VAPIC_ADDR: a word of guest memory in which a patched 32-bit guest keeps its TPR, so that it need not write the
 * APIC's page. TPR in bits 0-7, class of the highest vector in service in bits 8-15, highest pending vector in bits 24-31.
 */
const VAPIC_BYTES = 4;

/** The writable slot that holds the whole word, if there is one. */
const slotOf = ({ vm }: Vcpu, address: Gpa): Memslot | null => {
  const slot = vm.memslots.find(gpaToGfn(address));
  if (slot === undefined || slot.readonly || !slot.contains(gpaToGfn(gpa(address + VAPIC_BYTES - 1)))) return null;
  return slot;
};

const hostAddress = (slot: Memslot, address: Gpa): number => slot.hva(gpaToGfn(address)) + (address % PAGE_SIZE);

/** KVM_SET_VAPIC_ADDR (`kvm_lapic_set_vapic_addr`). 0 switches it off; EINVAL without an in-kernel APIC or memory there. */
export const setVapicAddr = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const { lapic } = vcpu.arch;
  const refuse = (reason: string, details: Record<string, string> = {}): Failure =>
    new Failure('EINVAL', reason, 'kvm_lapic_set_vapic_addr', { object: `vcpu ${vcpu.id}`, ...details });
  if (lapic === null) return refuse('NO_LAPIC');
  const value = copyStruct(arg, kvm_vapic_addr);
  if (failed(value)) return value;
  if (value.vapic_addr === 0n) {
    lapic.vapicAddress = null;
    return 0;
  }
  const address = gpa(Number(value.vapic_addr));
  if (slotOf(vcpu, address) === null)
    return refuse('VAPIC_NOT_IN_MEMORY', { field: 'vapic_addr', given: `0x${value.vapic_addr.toString(16)}` });
  lapic.vapicAddress = address;
  return 0;
};

/** The page of the word, if its contents are still to come: no entry without it, since its TPR is wanted after the exit. */
export const missingVapicPage = (vcpu: Vcpu): PageMissing | null => {
  const { lapic } = vcpu.arch;
  if (lapic === null || lapic.vapicAddress === null) return null;
  const slot = slotOf(vcpu, lapic.vapicAddress);
  const page = slot === null ? null : vcpu.vm.mm.fault(hostAddress(slot, lapic.vapicAddress), false);
  return page instanceof PageMissing ? page : null;
};

/** `kvm_lapic_sync_from_vapic`, after an exit: the guest may have changed its TPR. */
export const lapicSyncFromVapic = (vcpu: Vcpu): void => {
  const { lapic } = vcpu.arch;
  if (lapic === null || lapic.vapicAddress === null) return;
  const slot = slotOf(vcpu, lapic.vapicAddress);
  const bytes = slot === null ? null : vcpu.vm.mm.read(hostAddress(slot, lapic.vapicAddress), 1);
  if (bytes === null || failed(bytes)) return;
  lapic.setTpr(bytes[0] ?? 0);
};

/** `kvm_lapic_sync_to_vapic`, before an entry. */
export const lapicSyncToVapic = (vcpu: Vcpu): void => {
  const { lapic } = vcpu.arch;
  if (lapic === null || lapic.vapicAddress === null) return;
  const slot = slotOf(vcpu, lapic.vapicAddress);
  if (slot === null) return;
  const isr = Math.max(lapic.highestIsr(), 0);
  const irr = Math.max(lapic.highestIrr(), 0);
  const bytes = Uint8Array.of(lapic.reg(APIC.TASKPRI) & 0xff, isr & 0xf0, 0, irr);
  if (vcpu.vm.mm.write(hostAddress(slot, lapic.vapicAddress), bytes) !== null) return;
  markPageDirty(vcpu.vm, vcpu, slot, gpaToGfn(lapic.vapicAddress));
};
