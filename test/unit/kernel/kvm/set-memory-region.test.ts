import { describe, expect, it } from 'vitest';
import { gfn } from '../../../../server/hardware/units.js';
import { KVM_MEM } from '../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../server/kernel/uapi/ioctls.js';
import { kvm_userspace_memory_region, kvm_userspace_memory_region2 } from '../../../../server/kernel/uapi/kvm-structs.js';
import { createTestHost, type TestProcess } from './test-host.js';

type Region = Parameters<typeof kvm_userspace_memory_region2.encode>[0];

const REGION: Region = { slot: 0, flags: 0, guest_phys_addr: 0x10000n, memory_size: 0x4000n, userspace_addr: 0x7000_0000_0000n };

const newVm = () => {
  const host = createTestHost();
  const { fd, vm } = host.createVm();
  const set = (change: Region = {}) =>
    host.try(fd, IOCTL.KVM_SET_USER_MEMORY_REGION, kvm_userspace_memory_region.encode({ ...REGION, ...change }));
  const set2 = (change: Region = {}) =>
    host.try(fd, IOCTL.KVM_SET_USER_MEMORY_REGION2, kvm_userspace_memory_region2.encode({ ...REGION, ...change }));
  return { host, fd, vm, set, set2 };
};

const costs = (host: TestProcess, primitive: 'srcu_grace_period' | 'memslot_commit'): number =>
  host.kernel.costs.counts.get(primitive) ?? 0;

describe('KVM_SET_USER_MEMORY_REGION', () => {
  it.each<[string, Region]>([
    ['an unaligned size', { memory_size: 0x4001n }],
    ['an unaligned guest address', { guest_phys_addr: 0x10001n }],
    ['an unaligned user address', { userspace_addr: 1n }],
    ['a user address in the kernel half', { userspace_addr: 0xffff_8000_0000_0000n }],
    ['the last page below 2^47, which is not the user half', { userspace_addr: 0x7fff_ffff_f000n, memory_size: 0x1000n }],
    ['a user range that wraps', { userspace_addr: 0xffff_ffff_ffff_f000n }],
    ['a second address space', { slot: 0x10000 }],
    ['the first slot number behind the last', { slot: 32_764 }],
    ['an unknown flag', { flags: 8 }],
    ['guest_memfd in the old form', { flags: KVM_MEM.GUEST_MEMFD }],
    ['2^31 pages', { guest_phys_addr: 0n, memory_size: 0x800_0000_0000n, userspace_addr: 0n }],
    ['a size that does not fit', { memory_size: 0xffff_ffff_ffff_f000n }],
    ['guest addresses above 48 bits', { guest_phys_addr: 0x1_0000_0000_0000n }],
    ['the deletion of a slot that is not there', { memory_size: 0n }],
  ])('refuses %s', (_what, change) => {
    const { vm, set } = newVm();
    expect(set(change)).toBe('EINVAL');
    expect(vm.memslots.size).toBe(0);
    expect(set()).toBe(0);
  });

  it('applies the general checks to a deletion too, and ignores the rest of it', () => {
    const { vm, set } = newVm();
    set();
    expect(set({ memory_size: 0n, guest_phys_addr: 1n })).toBe('EINVAL');
    expect(set({ memory_size: 0n, userspace_addr: 1n })).toBe('EINVAL');
    expect(set({ memory_size: 0n, flags: 8 })).toBe('EINVAL');
    expect(vm.memslots.size).toBe(1);
    expect(set({ memory_size: 0n, flags: 3, guest_phys_addr: 0x5000n, userspace_addr: 0x7000n })).toBe(0);
    expect(vm.memslots.size).toBe(0);
  });

  it('lets only the place and the dirty log of a slot change', () => {
    const { vm, set } = newVm();
    set();
    expect(set()).toBe(0);
    expect(set({ memory_size: 0x5000n })).toBe('EINVAL');
    expect(set({ userspace_addr: 0x7000_0000_1000n })).toBe('EINVAL');
    expect(set({ flags: KVM_MEM.READONLY })).toBe('EINVAL');
    expect(set({ flags: KVM_MEM.LOG_DIRTY_PAGES, guest_phys_addr: 0x12000n })).toBe(0);
    const slot = vm.memslots.find(gfn(0x12));
    expect(slot?.dirtyBitmap?.npages).toBe(4);
    expect(vm.memslots.find(gfn(0x11))).toBeUndefined();
  });

  it('keeps the dirty bits of a slot that moves, and drops them when the log is switched off', () => {
    const { vm, set } = newVm();
    set({ flags: KVM_MEM.LOG_DIRTY_PAGES });
    vm.memslots.get(0)?.dirtyBitmap?.set(2);
    set({ flags: KVM_MEM.LOG_DIRTY_PAGES, guest_phys_addr: 0x80000n });
    expect(vm.memslots.get(0)?.dirtyBitmap?.test(2)).toBe(true);
    set({ guest_phys_addr: 0x80000n });
    set({ guest_phys_addr: 0x80000n, flags: KVM_MEM.LOG_DIRTY_PAGES });
    expect(vm.memslots.get(0)?.dirtyBitmap?.test(2)).toBe(false);
  });

  it('says EEXIST for an overlap, but EINVAL where both apply', () => {
    const { set } = newVm();
    set();
    set({ slot: 1, guest_phys_addr: 0x20000n });
    expect(set({ slot: 2, guest_phys_addr: 0x13000n, memory_size: 0x1000n })).toBe('EEXIST');
    expect(set({ slot: 1, guest_phys_addr: 0x12000n })).toBe('EEXIST');
    expect(set({ slot: 1, guest_phys_addr: 0x12000n, memory_size: 0x5000n })).toBe('EINVAL');
    expect(set({ guest_phys_addr: 0x12000n })).toBe(0);
  });

  it('waits for one grace period to create a slot, and for two to delete or move one', () => {
    const { host, set } = newVm();
    const spent = (change: Region): number => {
      const before = costs(host, 'srcu_grace_period');
      expect(set(change)).toBe(0);
      return costs(host, 'srcu_grace_period') - before;
    };
    expect(spent({})).toBe(1);
    expect(spent({})).toBe(0);
    expect(spent({ guest_phys_addr: 0x20000n })).toBe(2);
    expect(spent({ memory_size: 0n })).toBe(2);
    expect(costs(host, 'memslot_commit')).toBe(3);
  });

  it('charges a slot as long as it is there', () => {
    const { vm, set } = newVm();
    const before = vm.kmem.chargedBytes;
    set({ memory_size: 0x4000_0000n, flags: KVM_MEM.LOG_DIRTY_PAGES });
    expect(vm.kmem.chargedBytes).toBeGreaterThan(before + 262_144 * 8);
    set({ memory_size: 0n });
    expect(vm.kmem.chargedBytes).toBe(before);
  });
});

describe('KVM_SET_USER_MEMORY_REGION2', () => {
  const withGuestMemfd = () => {
    const vm = newVm();
    const create = (size: bigint) => {
      const bytes = new Uint8Array(64);
      new DataView(bytes.buffer).setBigUint64(0, size, true);
      return vm.host.must(vm.host.ioctl(vm.fd, IOCTL.KVM_CREATE_GUEST_MEMFD, bytes));
    };
    const memfd = create(0x10000n);
    const bind = (change: Region = {}) => vm.set2({ flags: KVM_MEM.GUEST_MEMFD, guest_memfd: memfd, ...change });
    return { ...vm, memfd, bind };
  };

  it('refuses what is no guest_memfd of this VM', () => {
    const { host, fd, bind } = withGuestMemfd();
    const other = host.createVm();
    expect(bind({ guest_memfd: 0xffff_ffff })).toBe('EBADF');
    expect(bind({ guest_memfd: 12_345 })).toBe('EBADF');
    expect(bind({ guest_memfd: fd })).toBe('EINVAL');
    const bytes = new Uint8Array(64);
    new DataView(bytes.buffer).setBigUint64(0, 0x10000n, true);
    expect(bind({ guest_memfd: host.must(host.ioctl(other.fd, IOCTL.KVM_CREATE_GUEST_MEMFD, bytes)) })).toBe('EINVAL');
  });

  it('binds each page of the file once, and frees it with the slot', () => {
    const { vm, bind } = withGuestMemfd();
    expect(bind({ guest_memfd_offset: 0x1n })).toBe('EINVAL');
    expect(bind({ guest_memfd_offset: 0x10000n })).toBe('EINVAL');
    expect(bind({ memory_size: 0x8000n })).toBe(0);
    const charged = vm.kmem.chargedBytes;
    expect(bind({ slot: 1, guest_phys_addr: 0x40000n, guest_memfd_offset: 0x4000n })).toBe('EINVAL');
    expect(bind({ slot: 1, guest_phys_addr: 0x12000n, guest_memfd_offset: 0x4000n })).toBe('EEXIST');
    expect(vm.kmem.chargedBytes).toBe(charged);
    expect(bind({ slot: 1, guest_phys_addr: 0x40000n, guest_memfd_offset: 0x8000n })).toBe(0);
    bind({ slot: 0, memory_size: 0n });
    expect(bind({ slot: 2, guest_phys_addr: 0x80000n, guest_memfd_offset: 0x4000n })).toBe(0);
  });

  it('compares the end of the range as a signed number, as the kernel does', () => {
    const { bind } = withGuestMemfd();
    expect(bind({ guest_memfd_offset: 0x7fff_ffff_ffff_f000n })).toBe(0);
  });

  it('lets a bound slot only be deleted', () => {
    const { set2, bind } = withGuestMemfd();
    expect(bind({ flags: KVM_MEM.GUEST_MEMFD | KVM_MEM.LOG_DIRTY_PAGES })).toBe('EINVAL');
    expect(bind({ flags: KVM_MEM.GUEST_MEMFD | KVM_MEM.READONLY })).toBe('EINVAL');
    expect(bind()).toBe(0);
    expect(bind()).toBe('EINVAL');
    expect(set2()).toBe('EINVAL');
    expect(bind({ memory_size: 0n })).toBe(0);
  });
});
