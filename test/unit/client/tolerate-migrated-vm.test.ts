import { describe, expect, it } from 'vitest';
import { Descriptor } from '../../../client/handle.js';
import { TOLERATED_IOCTLS, tolerateMigratedVm } from '../../../client/tolerate-migrated-vm.js';
import { Vcpu } from '../../../client/vcpu.js';
import { Vm } from '../../../client/vm.js';
import { callerOver, type FakeAnswer, FakeTransport, refusal, zero } from './fake-transport.js';

const MOVED = refusal('EIO', 'VM_DEAD_MOVED', { death_cause: 'moved to VM 2 by pid 100' });
/** What a real host says: EIO, and not why. */
const BARE_EIO = refusal('EIO', 'VM_DEAD');

const DEASSIGN_IOEVENTFD = 4;
const DEASSIGN_IRQFD = 1;
const NO_SLOT = { slot: 0, guest_phys_addr: 0, memory_size: 0, userspace_addr: 0 };

const tolerantOver = (answer: FakeAnswer) =>
  tolerateMigratedVm(new Vm(callerOver(new FakeTransport(() => answer)), new Descriptor(4)));

/** Each entry of the list as a VMM calls it. */
const teardown = (vm: Vm): [string, () => Promise<number>][] => [
  ['KVM_IOEVENTFD deassign', () => vm.ioeventfd({ addr: 0xfe00_1000, len: 4, fd: 9, flags: DEASSIGN_IOEVENTFD })],
  ['KVM_IRQFD deassign', () => vm.irqfd({ fd: 9, gsi: 5, flags: DEASSIGN_IRQFD })],
  ['KVM_SET_GSI_ROUTING', () => vm.setGsiRouting({ entries: [] })],
  ['KVM_SET_USER_MEMORY_REGION delete', () => vm.setUserMemoryRegion(NO_SLOT)],
  ['KVM_SET_USER_MEMORY_REGION2 delete', () => vm.setUserMemoryRegion2(NO_SLOT)],
  ['KVM_UNREGISTER_COALESCED_MMIO', () => vm.unregisterCoalescedMmio({ addr: 0xfe00_0000, size: 4 })],
  ['KVM_MEMORY_ENCRYPT_UNREG_REGION', () => vm.memoryEncryptUnregRegion({ addr: 0x1000, size: 0x1000 })],
  ['KVM_SET_DEVICE_ATTR KVM_DEV_VFIO_FILE_DEL', () => vm.setDeviceAttr({ group: 1, attr: 2 })],
];

/** Neighbours of those entries, which are not on the list. */
const others = (vm: Vm): [string, () => Promise<unknown>][] => [
  ['KVM_IOEVENTFD assign', () => vm.ioeventfd({ addr: 0xfe00_1000, len: 4, fd: 9 })],
  ['KVM_IRQFD assign', () => vm.irqfd({ fd: 9, gsi: 5 })],
  ['a memory slot that is made', () => vm.setUserMemoryRegion({ ...NO_SLOT, memory_size: 0x1000 })],
  ['KVM_MEMORY_ENCRYPT_REG_REGION', () => vm.memoryEncryptRegRegion({ addr: 0x1000, size: 0x1000 })],
  ['KVM_DEV_VFIO_FILE_ADD', () => vm.setDeviceAttr({ group: 1, attr: 1 })],
  ['KVM_CREATE_VCPU', () => vm.createVcpu(0)],
  ['KVM_CHECK_EXTENSION', () => vm.checkExtension(10)],
  ['KVM_DISMANTLE_VM', () => vm.dismantleVm()],
];

describe('after a move', () => {
  it('EIO is swallowed for every ioctl of the list, and counted', async () => {
    const { vm, swallowed } = tolerantOver(MOVED);
    for (const [, call] of teardown(vm)) expect(await call()).toBe(0);
    expect([...swallowed]).toEqual(TOLERATED_IOCTLS.map((ioctl) => [ioctl, 1]));
    expect(teardown(vm).map(([ioctl]) => ioctl)).toEqual(TOLERATED_IOCTLS);
  });

  it('EIO stays for what would add something, run something or answer something', async () => {
    const { vm, swallowed } = tolerantOver(MOVED);
    for (const [name, call] of others(vm)) await expect(call(), name).rejects.toMatchObject({ errno: 'EIO' });
    expect(swallowed.size).toBe(0);
  });

  it('other errnos stay', async () => {
    const { vm } = tolerantOver(refusal('ENOENT', 'NO_SUCH_IOEVENTFD', { death_cause: 'moved to VM 2 by pid 100' }));
    for (const [, call] of teardown(vm)) await expect(call()).rejects.toMatchObject({ errno: 'ENOENT' });
  });

  it('the try form gives no errno either', async () => {
    const { vm } = tolerantOver(MOVED);
    expect(await vm.try.setUserMemoryRegion(NO_SLOT)).toEqual({ errno: null, value: 0, error: null });
  });

  it('vCPUs are wrapped, and their EIO stays', async () => {
    const caller = callerOver(new FakeTransport(() => MOVED));
    const { wrap } = tolerateMigratedVm(new Vm(caller, new Descriptor(4)));
    await expect(wrap(new Vcpu(caller, new Descriptor(5))).run()).rejects.toMatchObject({ errno: 'EIO' });
  });
});

describe('on a host that gives no reason', () => {
  it('nothing is swallowed before the caller has said that it moved the VM', async () => {
    const { vm, moved, swallowed } = tolerantOver(BARE_EIO);
    await expect(vm.setUserMemoryRegion(NO_SLOT)).rejects.toMatchObject({ errno: 'EIO' });
    moved();
    expect(await vm.setUserMemoryRegion(NO_SLOT)).toBe(0);
    expect(swallowed.get('KVM_SET_USER_MEMORY_REGION delete')).toBe(1);
  });
});

describe('before a move', () => {
  it('EIO of a VM that a bug has killed stays', async () => {
    const { vm } = tolerantOver(refusal('EIO', 'VM_BUGGED', { death_cause: 'bugged by KVM_BUG_ON' }));
    for (const [, call] of teardown(vm)) await expect(call()).rejects.toMatchObject({ errno: 'EIO' });
  });

  it('what succeeds is not counted, and other views keep tolerating', async () => {
    const { vm, swallowed } = tolerantOver(zero);
    for (const [, call] of teardown(vm)) await call();
    expect(swallowed.size).toBe(0);
    const dead = tolerantOver(MOVED);
    expect(await dead.vm.with({ thread: 2 }).setUserMemoryRegion(NO_SLOT)).toBe(0);
    expect(dead.swallowed.size).toBe(1);
  });
});
