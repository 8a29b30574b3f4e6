import { describe, expect, it } from 'vitest';
import { IOCTL } from '../../../../../server/kernel/uapi/ioctls.js';
import { kvm_cpuid_entry2, kvm_cpuid2, kvm_msr_entry, kvm_msrs } from '../../../../../server/kernel/uapi/x86-structs.js';
import { Guest } from './guest.js';

const TSC_ADJUST = 0x3b;
const UCODE_WRITE = 0x79;
const MCG_CAP = 0x179;
const MTRR_PHYSBASE0 = 0x200;
const TSC_AUX = 0xc000_0103;
const AMD64_PATCH_LOADER = 0xc001_0020;
const WIDE = 1n << 48n;

const one = (index: number, data: bigint): Uint8Array => {
  const bytes = new Uint8Array(kvm_msrs.size + kvm_msr_entry.size);
  kvm_msrs.write(bytes, { nmsrs: 1 });
  kvm_msr_entry.write(bytes, { index, data }, kvm_msrs.size);
  return bytes;
};

/** Whether the host may write the value. */
const takes = (guest: Guest, index: number, data: bigint): boolean => guest.try(IOCTL.KVM_SET_MSRS, one(index, data)) === 1;

/** Null: it cannot be read. */
const read = (guest: Guest, index: number): bigint | null => {
  const bytes = one(index, 0n);
  return guest.try(IOCTL.KVM_GET_MSRS, bytes) === 1 ? kvm_msr_entry.decode(bytes, kvm_msrs.size).data : null;
};

type Leaf = Parameters<typeof kvm_cpuid_entry2.encode>[0];

const setCpuid = (guest: Guest, leaves: readonly Leaf[]): void => {
  const bytes = new Uint8Array(kvm_cpuid2.size + leaves.length * kvm_cpuid_entry2.size);
  kvm_cpuid2.write(bytes, { nent: leaves.length });
  for (const [at, leaf] of leaves.entries()) kvm_cpuid_entry2.write(bytes, leaf, kvm_cpuid2.size + at * kvm_cpuid_entry2.size);
  expect(guest.try(IOCTL.KVM_SET_CPUID2, bytes)).toBe(0);
};

const AUTHENTIC_AMD = { function: 0, eax: 7, ebx: 0x6874_7541, edx: 0x6974_6e65, ecx: 0x444d_4163 };

describe('MSRs of a vCPU', () => {
  it('that load microcode are written without effect and cannot be read', () => {
    const guest = new Guest();
    expect([takes(guest, UCODE_WRITE, 0x1000n), read(guest, UCODE_WRITE)]).toEqual([true, null]);
    expect([takes(guest, AMD64_PATCH_LOADER, 0x1000n), read(guest, AMD64_PATCH_LOADER)]).toEqual([true, null]);
  });

  it('say that there are 32 banks of machine checks', () => {
    expect(read(new Guest(), MCG_CAP)).toBe(32n);
  });

  it('keep TSC_ADJUST only for a guest whose CPUID has it', () => {
    const guest = new Guest();
    expect([takes(guest, TSC_ADJUST, 0x1000n), read(guest, TSC_ADJUST)]).toEqual([true, 0n]);
    setCpuid(guest, [AUTHENTIC_AMD, { function: 7, flags: 1, ebx: 2 }]);
    expect([takes(guest, TSC_ADJUST, 0x1000n), read(guest, TSC_ADJUST)]).toEqual([true, 0x1000n]);
  });

  it('refuse the upper half of TSC_AUX, but ignore it for a guest on a processor of AMD', () => {
    const guest = new Guest();
    expect(takes(guest, TSC_AUX, WIDE)).toBe(false);
    setCpuid(guest, [AUTHENTIC_AMD]);
    expect([takes(guest, TSC_AUX, WIDE | 5n), read(guest, TSC_AUX)]).toEqual([true, 5n]);
  });

  it('refuse an address in an MTRR that is beyond what CPUID gives', () => {
    const guest = new Guest();
    expect([takes(guest, MTRR_PHYSBASE0, WIDE), takes(guest, MTRR_PHYSBASE0, 1n << 35n)]).toEqual([false, true]);
  });
});

describe('IN that nobody answers', () => {
  it('reads zeros, whatever an OUT has left in the page', () => {
    const guest = new Guest().program('b0ff e680 e480 f4');
    guest.run();
    guest.run();
    guest.run();
    expect(guest.regs.rax & 0xffn).toBe(0n);
  });
});
