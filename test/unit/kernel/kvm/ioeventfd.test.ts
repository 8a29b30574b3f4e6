import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { EventFd } from '../../../../server/kernel/fs/eventfd.js';
import { File, OPEN } from '../../../../server/kernel/fs/file.js';
import { KVM_IOEVENTFD_FLAG as FLAG } from '../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../server/kernel/uapi/ioctls.js';
import { kvm_coalesced_mmio_zone, kvm_ioeventfd } from '../../../../server/kernel/uapi/kvm-structs.js';
import { createTestHost } from './test-host.js';

type Arguments = Parameters<typeof kvm_ioeventfd.encode>[0];

const newVm = () => {
  const host = createTestHost();
  const { vmFd: fd, vm, vcpu } = host.withVcpu();
  const eventfd = () => {
    const counter = new EventFd(0n, false);
    return { counter, fd: host.must(host.process.files.install(new File(counter, OPEN.RDWR), true)) };
  };
  const { counter, fd: efd } = eventfd();
  const assign = (change: Arguments = {}) =>
    host.try(fd, IOCTL.KVM_IOEVENTFD, kvm_ioeventfd.encode({ addr: 0x1000n, len: 4, fd: efd, ...change }));
  const deassign = (change: Arguments = {}) => assign({ ...change, flags: (change.flags ?? 0) | FLAG.DEASSIGN });
  const write = (address: number, ...bytes: number[]) => vm.buses.mmio.write(vcpu, address, Uint8Array.from(bytes));
  return { host, fd, vm, vcpu, eventfd, counter, efd, assign, deassign, write };
};

describe('KVM_IOEVENTFD', () => {
  it('checks length, wrap and flags before the descriptor, and that before a collision', () => {
    const { assign, efd } = newVm();
    expect(assign({ len: 3, fd: -1 })).toBe('EINVAL');
    expect(assign({ addr: 2n ** 64n - 4n, fd: -1 })).toBe('EINVAL');
    expect(assign({ flags: 0x20, fd: -1 })).toBe('EINVAL');
    expect(assign({ len: 0, flags: FLAG.DATAMATCH, fd: -1 })).toBe('EINVAL');
    expect(assign({ fd: -1 })).toBe('EBADF');
    expect(assign({ fd: 3 })).toBe('EINVAL');
    expect(assign()).toBe(0);
    expect(assign({ fd: -1 })).toBe('EBADF');
    expect(assign({ fd: efd })).toBe('EEXIST');
  });

  it('takes any address whose bytes lie below 2^64', () => {
    const { assign, deassign } = newVm();
    const addr = 2n ** 64n - 5n;
    expect(assign({ addr })).toBe(0);
    expect(assign({ addr })).toBe('EEXIST');
    expect(assign({ addr: addr - 1n })).toBe(0);
    expect(deassign({ addr })).toBe(0);
    expect(assign({ addr: 2n ** 64n - 1n, len: 0 })).toBe(0);
  });

  it('removes only what matches in descriptor, address, length, bus and datamatch', () => {
    const { assign, deassign, eventfd } = newVm();
    assign({ flags: FLAG.DATAMATCH, datamatch: 5n });
    expect(deassign()).toBe('ENOENT');
    expect(deassign({ flags: FLAG.DATAMATCH, datamatch: 6n })).toBe('ENOENT');
    expect(deassign({ flags: FLAG.DATAMATCH | FLAG.PIO, datamatch: 5n })).toBe('ENOENT');
    expect(deassign({ flags: FLAG.DATAMATCH, datamatch: 5n, len: 2 })).toBe('ENOENT');
    expect(deassign({ flags: FLAG.DATAMATCH, datamatch: 5n, fd: eventfd().fd })).toBe('ENOENT');
    expect(deassign({ flags: FLAG.DATAMATCH, datamatch: 5n, fd: -1 })).toBe('EBADF');
    expect(deassign({ flags: FLAG.DATAMATCH | 0x40, datamatch: 5n })).toBe(0);
  });

  it('signals for a write that matches in address, length and data', () => {
    const { assign, write, counter } = newVm();
    assign({ len: 2, flags: FLAG.DATAMATCH, datamatch: 0x1234n });
    expect(write(0x1000, 0x34, 0x12)).toBe('handled');
    expect(counter.value).toBe(1n);
    expect(write(0x1000, 0x34, 0x13)).toBe('unhandled');
    expect(write(0x1000, 0x34)).toBe('unhandled');
    expect(write(0x1001, 0x12)).toBe('unhandled');
    expect(counter.value).toBe(1n);
  });

  it('never matches data with bits above its length', () => {
    const { assign, write } = newVm();
    expect(assign({ len: 1, flags: FLAG.DATAMATCH, datamatch: 0x134n })).toBe(0);
    expect(write(0x1000, 0x34)).toBe('unhandled');
  });

  it('puts length 0 on the fast bus as well, and takes it off both', () => {
    const { vm, assign, deassign } = newVm();
    assign({ len: 0 });
    expect([vm.buses.mmio.list.length, vm.buses.fastMmio.list.length, vm.ioeventfds.size]).toEqual([1, 1, 2]);
    expect(deassign({ len: 0 })).toBe(0);
    expect([vm.buses.mmio.list.length, vm.buses.fastMmio.list.length, vm.ioeventfds.size]).toEqual([0, 0, 0]);
  });

  it('leaves nothing behind when the fast bus refuses', () => {
    const { host, fd, vm, assign } = newVm();
    for (let index = 0; index < 1000; index++) vm.buses.fastMmio.register({ name: 'filler', address: 0x9000 + index, length: 1 });
    const charged = vm.kmem.chargedBytes;
    expect(assign({ len: 0 })).toBe('ENOSPC');
    expect([vm.buses.mmio.list.length, vm.kmem.chargedBytes]).toEqual([0, charged]);
    const zone = kvm_coalesced_mmio_zone.encode({ addr: 0x8000n, size: 8, pio: 2 });
    expect(host.try(fd, IOCTL.KVM_REGISTER_COALESCED_MMIO, zone)).toBe('EINVAL');
  });

  it('collides as the kernel says: same address, and any length against 0, or equal length and data', () => {
    const one = fc.record({
      addr: fc.constantFrom(0x1000n, 0x1004n),
      len: fc.constantFrom(0, 1, 4),
      datamatch: fc.constantFrom<bigint | null>(null, 1n, 2n),
      pio: fc.boolean(),
    });
    const collides = (a: Entry, b: Entry): boolean =>
      a.addr === b.addr &&
      a.pio === b.pio &&
      (a.len === 0 ||
        b.len === 0 ||
        (a.len === b.len && (a.datamatch === null || b.datamatch === null || a.datamatch === b.datamatch)));
    fc.assert(
      fc.property(fc.array(one, { maxLength: 12 }), (entries) => {
        const { assign } = newVm();
        const accepted: Entry[] = [];
        for (const { len, ...rest } of entries) {
          const entry: Entry = { len, ...rest, datamatch: len === 0 ? null : rest.datamatch };
          const flags = (entry.datamatch === null ? 0 : FLAG.DATAMATCH) | (entry.pio ? FLAG.PIO : 0);
          const expected = accepted.some((other) => collides(other, entry)) ? 'EEXIST' : 0;
          expect(assign({ addr: entry.addr, len, flags, datamatch: entry.datamatch ?? 0n })).toBe(expected);
          if (expected === 0) accepted.push(entry);
        }
      }),
      { numRuns: 30 },
    );
  });
});

interface Entry {
  readonly addr: bigint;
  readonly len: number;
  readonly datamatch: bigint | null;
  readonly pio: boolean;
}
