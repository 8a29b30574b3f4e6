import { describe, expect, it } from 'vitest';
import { gfn } from '../../../../server/hardware/units.js';
import { failed } from '../../../../server/kernel/failure.js';
import { GuestMemfd } from '../../../../server/kernel/kvm/guest-memfd.js';
import { GUEST_MEMFD_FLAG as FLAG, KVM_MEM } from '../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../server/kernel/uapi/ioctls.js';
import { kvm_create_guest_memfd, kvm_userspace_memory_region2 } from '../../../../server/kernel/uapi/kvm-structs.js';
import { createTestHost } from './test-host.js';

const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;

const newVm = () => {
  const host = createTestHost();
  const { fd, vm } = host.createVm();
  const create = (size: bigint, flags = 0) =>
    host.try(fd, IOCTL.KVM_CREATE_GUEST_MEMFD, kvm_create_guest_memfd.encode({ size, flags: BigInt(flags) }));
  const open = (size = 0x10000n, flags: number = FLAG.MMAP | FLAG.INIT_SHARED) => {
    const memfd = create(size, flags);
    if (typeof memfd === 'string') throw new Error(memfd);
    const ops = host.process.files.lookup(memfd)?.ops;
    if (!(ops instanceof GuestMemfd)) throw new Error('not a guest_memfd');
    const fallocate = (mode: number, offset: number, length: number) =>
      host.call((current) => ops.fallocate(current, mode, offset, length))?.errno ?? 0;
    return { memfd, ops, fallocate };
  };
  return { host, fd, vm, create, open };
};

describe('guest_memfd', () => {
  it('refuses unknown flags before the size, and sizes that are no positive number of pages', () => {
    const { create } = newVm();
    expect(create(0n, 4)).toBe('EINVAL');
    for (const size of [0n, 1n, 4097n, 1n << 63n, 2n ** 64n - 4096n]) expect(create(size)).toBe('EINVAL');
    expect(create(0x7fff_ffff_ffff_f000n)).toEqual(expect.any(Number));
  });

  it('is the one descriptor of KVM that survives exec', () => {
    const { host, fd, open } = newVm();
    const { files } = host.process;
    expect(files.closeOnExec(open().memfd)).toBe(false);
    expect(files.closeOnExec(fd)).toBe(true);
  });

  it('allocates only inside the file, and punches anywhere', () => {
    const { open } = newVm();
    const { fallocate, ops } = open();
    expect(fallocate(0, 0, 4096)).toBe('EOPNOTSUPP');
    expect(fallocate(KEEP_SIZE | 8, 0, 4096)).toBe('EOPNOTSUPP');
    expect(fallocate(KEEP_SIZE, 0, 100)).toBe('EINVAL');
    expect(fallocate(KEEP_SIZE, 0x10000, 4096)).toBe('EINVAL');
    expect(ops.pageCount).toBe(0);
    expect(fallocate(KEEP_SIZE, 0, 0x10000)).toBe(0);
    expect(ops.pageCount).toBe(16);
    expect(fallocate(KEEP_SIZE | PUNCH_HOLE, 0x8000, 0x100000)).toBe(0);
    expect(ops.pageCount).toBe(8);
  });

  it('gives userspace a page only where it starts shared, and maps only where it may be mapped', () => {
    const { host, open } = newVm();
    const request = { length: 4096, offset: 0, shared: true, read: true, write: true, execute: false };
    const errnoOf = (flags: number, shared = true) => {
      const { ops } = open(0x10000n, flags);
      const object = host.call(function* map(current) {
        return ops.mmap(current, { ...request, shared });
      });
      if (failed(object)) return object.errno;
      const page = object.fault(0);
      return failed(page) ? page.reason : 'page';
    };
    expect(errnoOf(0)).toBe('ENODEV');
    expect(errnoOf(FLAG.INIT_SHARED)).toBe('ENODEV');
    expect(errnoOf(FLAG.MMAP, false)).toBe('EINVAL');
    expect(errnoOf(FLAG.MMAP)).toBe('SIGBUS');
    expect(errnoOf(FLAG.MMAP | FLAG.INIT_SHARED)).toBe('page');
    expect(failed(open().ops.fault(16))).toBe(true);
  });

  it('leaves its slot without pages when it is closed, and keeps the VM alive until then', () => {
    const { host, fd, vm, open } = newVm();
    const { memfd, ops } = open();
    const region = { flags: KVM_MEM.GUEST_MEMFD, memory_size: 0x10000n, guest_memfd: memfd };
    host.must(host.ioctl(fd, IOCTL.KVM_SET_USER_MEMORY_REGION2, kvm_userspace_memory_region2.encode(region)));
    const slot = vm.memslots.get(0);
    const [page, again] = [slot?.gmem?.page(gfn(3)), ops.fault(3)];
    expect(page).toBe(again);
    host.close(memfd);
    expect(vm.memslots.get(0)).toBe(slot);
    expect(slot?.gmem?.page(gfn(3))).toMatchObject({ errno: 'EFAULT', reason: 'GUEST_MEMFD_CLOSED' });
    const other = open();
    host.close(fd);
    expect(host.kernel.vms.has(vm.id)).toBe(true);
    host.close(other.memfd);
    expect(host.kernel.vms.has(vm.id)).toBe(false);
  });
});
