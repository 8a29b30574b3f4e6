import { type Gpa, gpa, gpaToGfn, PAGE_SIZE } from '../../../hardware/units.js';
import { failed } from '../../failure.js';
import { markPageDirty } from '../mark-page-dirty.js';
import type { Vcpu } from '../vcpu.js';

/** End of what a guest physical address can be; above it a number is no address. */
const GPA_END = 2n ** 52n;

/** A number that a guest gave as an address, or null if it cannot be one. */
export const guestAddress = (value: bigint): Gpa | null => (value < GPA_END ? gpa(Number(value)) : null);

/**
 * `kvm_vcpu_map` of the page that holds an address: its bytes as the host sees them, which are ciphertext if the guest
 * has the page private. Null where there is no memory. The caller may write, so the page counts as dirty.
 */
export const mapGuestPage = (vcpu: Vcpu, address: Gpa): Uint8Array | null => {
  const { vm } = vcpu;
  const frame = gpaToGfn(address);
  const slot = vm.memslots.find(frame);
  if (slot === undefined) return null;
  const page = vm.mm.fault(slot.hva(frame), true);
  if (failed(page)) return null;
  markPageDirty(vm, vcpu, slot, frame);
  return page.frame.viewForWrite(null);
};

/** `kvm_read_guest` and `kvm_write_guest`: visits each page's part of a range; false where some page is missing. */
const visit = (vcpu: Vcpu, address: Gpa, length: number, use: (bytes: Uint8Array, done: number) => void): boolean => {
  for (let done = 0; done < length; ) {
    const at = gpa(address + done);
    const offset = at % PAGE_SIZE;
    const count = Math.min(PAGE_SIZE - offset, length - done);
    const page = mapGuestPage(vcpu, at);
    if (page === null) return false;
    use(page.subarray(offset, offset + count), done);
    done += count;
  }
  return true;
};

export const readGuest = (vcpu: Vcpu, address: Gpa, length: number): Uint8Array | null => {
  const out = new Uint8Array(length);
  return visit(vcpu, address, length, (bytes, done) => out.set(bytes, done)) ? out : null;
};

export const writeGuest = (vcpu: Vcpu, address: Gpa, bytes: Uint8Array): boolean =>
  visit(vcpu, address, bytes.length, (page, done) => page.set(bytes.subarray(done, done + page.length)));
