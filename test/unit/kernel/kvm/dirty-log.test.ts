import { describe, expect, it } from 'vitest';
import { gfn } from '../../../../server/hardware/units.js';
import { failed } from '../../../../server/kernel/failure.js';
import { dirtyRingFull, markPageDirty } from '../../../../server/kernel/kvm/mark-page-dirty.js';
import { KVM_CAP } from '../../../../server/kernel/uapi/capabilities.js';
import { KVM_DIRTY_GFN_F, KVM_MEM } from '../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../server/kernel/uapi/ioctls.js';
import {
  kvm_clear_dirty_log,
  kvm_dirty_gfn,
  kvm_dirty_log,
  kvm_enable_cap,
  kvm_userspace_memory_region,
} from '../../../../server/kernel/uapi/kvm-structs.js';
import { createTestHost } from './test-host.js';

const PAGES = 200;

const newVm = (...caps: (readonly [cap: number, argument: bigint])[]) => {
  const host = createTestHost();
  const { fd, vm } = host.createVm();
  const enable = (cap: number, argument: bigint, flags = 0) =>
    host.try(fd, IOCTL.KVM_ENABLE_CAP, kvm_enable_cap.encode({ cap, flags, args: [argument, 0n, 0n, 0n] }));
  for (const [cap, argument] of caps) expect(enable(cap, argument)).toBe(0);
  const { vcpu } = host.createVcpu(fd);
  const region = { flags: KVM_MEM.LOG_DIRTY_PAGES, memory_size: BigInt(PAGES * 4096), guest_phys_addr: 0x1_0000n };
  host.must(host.ioctl(fd, IOCTL.KVM_SET_USER_MEMORY_REGION, kvm_userspace_memory_region.encode(region)));
  const slot = vm.memslots.get(0);
  const { mm } = host.process;
  if (slot === undefined || mm === null) throw new Error('no slot');
  const protection = { read: true, write: true, execute: false };
  const buffer = mm.mmap({ length: 4096, protection, shared: false, object: null, offset: 0 });
  if (failed(buffer)) throw new Error('no memory');
  const dirty = (...pages: number[]) => {
    for (const page of pages) markPageDirty(vm, vcpu, slot, gfn(slot.baseGfn + page));
  };
  const bits = (): number[] => {
    const bytes = mm.read(buffer, 32);
    if (failed(bytes)) throw new Error('no memory');
    return Array.from({ length: 256 }, (_, page) => page).filter((page) => ((bytes[page >>> 3] ?? 0) >>> (page & 7)) & 1);
  };
  const get = (address = BigInt(buffer)) =>
    host.try(fd, IOCTL.KVM_GET_DIRTY_LOG, kvm_dirty_log.encode({ slot: 0, dirty_bitmap: address }));
  const clear = (first: number, count: number, ...pages: number[]) => {
    const bytes = new Uint8Array(32);
    for (const page of pages) bytes[(page - first) >>> 3] = (bytes[(page - first) >>> 3] ?? 0) | (1 << ((page - first) & 7));
    mm.write(buffer, bytes);
    const log = { slot: 0, first_page: BigInt(first), num_pages: count, dirty_bitmap: BigInt(buffer) };
    return host.try(fd, IOCTL.KVM_CLEAR_DIRTY_LOG, kvm_clear_dirty_log.encode(log));
  };
  return { host, fd, vm, vcpu, slot, enable, dirty, bits, get, clear };
};

describe('dirty log', () => {
  it('loses the bits when the bitmap cannot be written', () => {
    const { get, dirty, bits } = newVm();
    dirty(3, 199);
    expect(get(4096n)).toBe('EFAULT');
    expect(get()).toBe(0);
    expect(bits()).toEqual([]);
  });

  it('takes the bits with them', () => {
    const { get, dirty, bits } = newVm();
    dirty(3, 199);
    get();
    expect(bits()).toEqual([3, 199]);
    get();
    expect(bits()).toEqual([]);
  });

  it('leaves them for KVM_CLEAR_DIRTY_LOG with manual protection', () => {
    const { get, dirty, bits, clear } = newVm([KVM_CAP.MANUAL_DIRTY_LOG_PROTECT2, 1n]);
    dirty(3, 70, 199);
    get();
    get();
    expect(bits()).toEqual([3, 70, 199]);
    expect(clear(64, 136, 70, 71)).toBe(0);
    get();
    expect(bits()).toEqual([3, 199]);
  });

  it.each([
    [1, 64],
    [0, 7],
    [192, 7],
    [192, 64],
    [256, 64],
    [0, 256],
  ])('refuses to clear from page %i on %i pages of 200', (first, count) => {
    expect(newVm().clear(first, count)).toBe('EINVAL');
  });

  it('clears up to the end of the slot, or by whole words', () => {
    const { clear } = newVm();
    expect([clear(0, 200), clear(0, 64), clear(192, 8), clear(0, 0)]).toEqual([0, 0, 0, 0]);
  });

  it('needs bit 0 for bit 1, and no flags', () => {
    const { enable } = newVm();
    expect(enable(KVM_CAP.MANUAL_DIRTY_LOG_PROTECT2, 2n)).toBe('EINVAL');
    expect(enable(KVM_CAP.MANUAL_DIRTY_LOG_PROTECT2, 1n, 1)).toBe('EINVAL');
    expect(enable(KVM_CAP.MANUAL_DIRTY_LOG_PROTECT2, 3n)).toBe(0);
  });
});

describe('dirty ring', () => {
  const RING = [KVM_CAP.DIRTY_LOG_RING, 4096n] as const;
  const LIMIT = 256 - 64;

  it('takes a power of two from a page to 1 MiB, once, before the first vCPU', () => {
    const { enable } = newVm();
    expect(enable(KVM_CAP.DIRTY_LOG_RING, 4096n)).toBe('EINVAL');
    const host = createTestHost();
    const { fd } = host.createVm();
    const set = (size: bigint) =>
      host.try(fd, IOCTL.KVM_ENABLE_CAP, kvm_enable_cap.encode({ cap: KVM_CAP.DIRTY_LOG_RING, args: [size, 0n, 0n, 0n] }));
    for (const size of [0n, 2048n, 6144n, 1n << 32n]) expect(set(size)).toBe('EINVAL');
    expect(set(0x20_0000n)).toBe('E2BIG');
    expect(set(0x10_0000n)).toBe(0);
    expect(set(0x10_0000n)).toBe('EINVAL');
  });

  it('takes the place of the bitmap', () => {
    const { get, slot } = newVm(RING);
    expect(slot.dirtyBitmap).toBeNull();
    expect(get()).toBe('ENXIO');
  });

  it('is full until entries were harvested and reset, and comes round', () => {
    const { host, fd, vcpu, dirty } = newVm(RING);
    const page = vcpu.dirtyRing?.pages[0]?.bytes ?? new Uint8Array(0);
    for (let round = 0; round < 3; round++) {
      const first = (round * LIMIT) % 256;
      for (let each = 0; each < LIMIT - 1; each++) dirty(each);
      expect(dirtyRingFull(vcpu)).toBe(false);
      dirty(199);
      expect([dirtyRingFull(vcpu), dirtyRingFull(vcpu)]).toEqual([true, true]);
      expect(host.try(fd, IOCTL.KVM_RESET_DIRTY_RINGS)).toBe(0);
      for (let each = 0; each < LIMIT; each++) {
        const at = ((first + each) % 256) * kvm_dirty_gfn.size;
        const entry = kvm_dirty_gfn.decode(page, at);
        expect(entry).toEqual({ flags: KVM_DIRTY_GFN_F.DIRTY, slot: 0, offset: BigInt(each === LIMIT - 1 ? 199 : each) });
        kvm_dirty_gfn.write(page, { flags: KVM_DIRTY_GFN_F.RESET }, at);
      }
      expect(dirtyRingFull(vcpu)).toBe(true);
      expect(host.try(fd, IOCTL.KVM_RESET_DIRTY_RINGS)).toBe(LIMIT);
      expect(dirtyRingFull(vcpu)).toBe(false);
    }
  });

  it('does not trust what userspace left in an entry', () => {
    const { host, fd, vcpu, dirty } = newVm(RING);
    dirty(1);
    const page = vcpu.dirtyRing?.pages[0]?.bytes ?? new Uint8Array(0);
    kvm_dirty_gfn.write(page, { flags: KVM_DIRTY_GFN_F.RESET, slot: 0xffff_ffff, offset: 2n ** 64n - 1n });
    expect(host.try(fd, IOCTL.KVM_RESET_DIRTY_RINGS)).toBe(1);
  });
});
