import { describe, expect, it } from 'vitest';
import { gfn } from '../../../../server/hardware/units.js';
import { VM_TYPE } from '../../../../server/kernel/kvm/vm.js';
import { KVM_MEMORY_ATTRIBUTE } from '../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../server/kernel/uapi/ioctls.js';
import { kvm_memory_attributes } from '../../../../server/kernel/uapi/kvm-structs.js';
import { createTestHost } from './test-host.js';

type Arguments = Parameters<typeof kvm_memory_attributes.encode>[0];

const PRIVATE = BigInt(KVM_MEMORY_ATTRIBUTE.PRIVATE);

const newVm = (type: number) => {
  const host = createTestHost();
  const { fd, vm } = host.createVm(type);
  const set = (change: Arguments = {}) =>
    host.try(
      fd,
      IOCTL.KVM_SET_MEMORY_ATTRIBUTES,
      kvm_memory_attributes.encode({ address: 0x1000n, size: 0x2000n, attributes: PRIVATE, ...change }),
    );
  return { host, fd, vm, set };
};

describe('KVM_SET_MEMORY_ATTRIBUTES', () => {
  it('knows no attribute where no memory can be private, and accepts none there', () => {
    const { set, host, fd } = newVm(VM_TYPE.DEFAULT);
    expect(set()).toBe('EINVAL');
    expect(set({ attributes: 0n })).toBe(0);
    expect(host.try(fd, IOCTL.KVM_SET_MEMORY_ATTRIBUTES, 0)).toBe('EFAULT');
  });

  it.each<[string, Arguments]>([
    ['flags', { flags: 1n }],
    ['an unknown attribute', { attributes: PRIVATE | 1n }],
    ['size 0', { size: 0n }],
    ['a range that wraps', { address: 2n ** 64n - 0x1000n }],
    ['an unaligned address', { address: 0x1001n }],
    ['an unaligned size', { size: 0x1001n }],
  ])('refuses %s', (_what, change) => {
    const { vm, set } = newVm(VM_TYPE.SW_PROTECTED);
    expect(set(change)).toBe('EINVAL');
    expect(vm.memoryAttributes.isPrivate(gfn(1))).toBe(false);
  });

  it('needs no memslot, and is forgotten with the VM', () => {
    const { host, vm, set } = newVm(VM_TYPE.SW_PROTECTED);
    expect(set()).toBe(0);
    expect(set()).toBe(0);
    expect([0, 1, 2, 3].map((frame) => vm.memoryAttributes.isPrivate(gfn(frame)))).toEqual([false, true, true, false]);
    expect(set({ address: 0x2000n, size: 0x1000n, attributes: 0n })).toBe(0);
    expect([1, 2].map((frame) => vm.memoryAttributes.isPrivate(gfn(frame)))).toEqual([true, false]);
    host.closeAll();
    expect([vm.kmem.chargedBytes, host.kernel.findings.all]).toEqual([0, []]);
  });
});
