import { describe, expect, it } from 'vitest';
import type { HostConfig } from '../../../../../server/kernel/config.js';
import { KVM_EXIT } from '../../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../../server/kernel/uapi/ioctls.js';
import { kvm_cpuid_entry2, kvm_cpuid2, kvm_msr_entry, kvm_msrs } from '../../../../../server/kernel/uapi/x86-structs.js';
import { Guest } from './guest.js';

const PML5 = 0x4000;
const PML4 = 0x5000;
const PDPT = 0x6000;
const DATA = 0x2000;
const LSTAR = 0xc000_0082;
const ENTRIES = 64;
/** mov rax, 1 << 48 | DATA; mov ebx, [rax]; hlt */
const LOAD = '48b8 0020000000000100 8b18 f4';
/** Canonical in 57 bits and not in 48. */
const BEYOND_48_BITS = 1n << 48n;

const entry = (value: number): string =>
  value
    .toString(16)
    .padStart(4, '0')
    .replace(/(..)(..)/, '$2$1000000000000');

/** A guest with the CPUID that its host offers, and tables that map the first GiB at 0 and at 2^48. */
const guestOn = (vendor: HostConfig['vendor']): Guest => {
  const guest = new Guest({ vendor }).program(LOAD);
  const cpuid = new Uint8Array(kvm_cpuid2.size + ENTRIES * kvm_cpuid_entry2.size);
  kvm_cpuid2.write(cpuid, { nent: ENTRIES });
  guest.must(guest.process.openKvm(), IOCTL.KVM_GET_SUPPORTED_CPUID, cpuid);
  guest.must(guest.vcpuFd, IOCTL.KVM_SET_CPUID2, cpuid);
  guest.write(PML5, entry(PML4 + 3) + entry(PML4 + 3));
  guest.write(PML4, entry(PDPT + 3));
  guest.write(PDPT, entry(0x83));
  guest.write(DATA, '44332211');
  return guest;
};

const enterLongMode = (guest: Guest, cr4: bigint): string | number =>
  guest.trySregs(({ cs }) => ({
    ...{ cr0: 0x8000_0011n, cr3: BigInt(PML5), cr4, efer: 0x500n },
    cs: { ...cs, base: 0n, selector: 8, limit: 0xffff_ffff, type: 11, s: 1, l: 1, db: 0, g: 1, present: 1 },
  }));

const setLstar = (guest: Guest, data: bigint): number => {
  const bytes = new Uint8Array(kvm_msrs.size + kvm_msr_entry.size);
  kvm_msrs.write(bytes, { nmsrs: 1 });
  kvm_msr_entry.write(bytes, { index: LSTAR, data }, kvm_msrs.size);
  return guest.must(guest.vcpuFd, IOCTL.KVM_SET_MSRS, bytes);
};

describe('five-level paging', () => {
  it('is there for guests of a host that has it', () => {
    const guest = guestOn('intel');
    expect(enterLongMode(guest, 0x1020n)).toBe(0);
    expect(guest.run()).toEqual({ errno: null, reason: KVM_EXIT.HLT });
    expect(guest.regs.rbx).toBe(0x11223344n);
  });

  it('is refused on one that has not', () => {
    expect(enterLongMode(guestOn('amd'), 0x1020n)).toBe('EINVAL');
    expect(enterLongMode(guestOn('amd'), 0x20n)).toBe(0);
  });

  it('makes wider addresses canonical in MSRs, whatever the guest has switched on', () => {
    expect(setLstar(guestOn('intel'), BEYOND_48_BITS)).toBe(1);
    expect(setLstar(guestOn('amd'), BEYOND_48_BITS)).toBe(0);
    expect(setLstar(guestOn('intel'), 1n << 57n)).toBe(0);
  });
});
