import { describe, expect, it } from 'vitest';
import { failed } from '../../../../server/kernel/failure.js';
import { Scheduler } from '../../../../server/kernel/sched/scheduler.js';
import { KVM_MEM } from '../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../server/kernel/uapi/ioctls.js';
import { kvm_create_device, kvm_userspace_memory_region } from '../../../../server/kernel/uapi/kvm-structs.js';
import { createTestHost, type TestHost } from './test-host.js';

const addSlot = (host: TestHost, fd: number, change = {}) =>
  host.try(
    fd,
    IOCTL.KVM_SET_USER_MEMORY_REGION,
    kvm_userspace_memory_region.encode({ memory_size: 0x4000_0000n, userspace_addr: 0x7000_0000_0000n, ...change }),
  );

/** What a host holds that belongs to VMs. */
const held = ({ kernel }: TestHost) => ({ vms: kernel.vms.size, frames: kernel.dram.used, findings: kernel.findings.all });

describe('the life of a VM', () => {
  it('ends with its last reference and leaves nothing behind', () => {
    const host = createTestHost();
    const before = held(host);
    const { fd, vm } = host.createVm();
    addSlot(host, fd, { flags: KVM_MEM.LOG_DIRTY_PAGES });
    host.must(host.ioctl(fd, IOCTL.KVM_CREATE_DEVICE, kvm_create_device.encode({ type: 4 })));
    const stats = host.must(host.ioctl(fd, IOCTL.KVM_GET_STATS_FD));
    const memfd = new Uint8Array(64);
    new DataView(memfd.buffer).setBigUint64(0, 0x10000n, true);
    host.must(host.ioctl(fd, IOCTL.KVM_CREATE_GUEST_MEMFD, memfd));
    const vcpu = host.createVcpu(fd).fd;
    host.close(fd);
    host.close(vcpu);
    expect(host.kernel.vms.has(vm.id)).toBe(true);
    expect(vm.kmem.reachableBytes).toBeGreaterThan(262_144 * 8);
    host.close(stats);
    host.closeAll();
    expect([vm.kmem.chargedBytes, vm.kmem.reachableBytes, vm.references]).toEqual([0, 0, 0]);
    expect(held(host)).toEqual(before);
  });

  it('is kept by a mapping of a vCPU after every descriptor is closed', () => {
    const host = createTestHost();
    const { vm, vcpu } = host.withVcpu();
    const { mm } = host.process;
    const file = [...host.process.files.entries()].map(([, { file: each }]) => each).find(({ ops }) => ops.mmap);
    const request = { length: 12_288, offset: 0, shared: true, read: true, write: true, execute: false };
    const object = host.call(function* map(current) {
      return file?.ops.mmap?.(current, request);
    });
    if (mm === null || object === undefined || failed(object)) throw new Error('not mapped');
    const protection = { read: true, write: true, execute: false };
    const address = mm.mmap({ length: 12_288, protection, shared: true, object, offset: 0 });
    if (failed(address)) throw new Error('not mapped');
    host.closeAll();
    expect(vm.references).toBe(1);
    vcpu.runPages.run.bytes[8] = 17;
    const seen = mm.read(address + 8, 1);
    expect(seen).toEqual(Uint8Array.of(17));
    mm.munmap(address, 12_288);
    expect(vm.references).toBe(0);
    expect(host.kernel.vms.size).toBe(0);
  });

  it('belongs to one address space: everybody else gets EIO, whatever the call', () => {
    const host = createTestHost();
    const { vmFd, vcpuFd } = host.withVcpu();
    const child = host.kernel.fork(host.process);
    if (failed(child)) throw new Error('fork failed');
    const other = host.spawn();
    for (const [, { file }] of child.files.entries()) other.process.files.install(file.get(), true);
    expect(other.try(vmFd, IOCTL.KVM_CHECK_EXTENSION, 3)).toBe('EIO');
    expect(other.try(vmFd, 0x5401)).toBe('EIO');
    expect(other.try(vcpuFd, IOCTL.KVM_GET_REGS, new Uint8Array(144))).toBe('EIO');
    expect(host.try(vmFd, IOCTL.KVM_CHECK_EXTENSION, 3)).toBe(1);
  });

  it('keeps its buses until then, although its own file is closed', () => {
    const host = createTestHost();
    const { vmFd, vm, vcpuFd } = host.withVcpu();
    host.close(vmFd);
    expect(vm.buses.mmio.gone).toBe(false);
    host.close(vcpuFd);
    expect(vm.buses.mmio.gone).toBe(true);
  });
});

describe('KVM_CREATE_VCPU', () => {
  it('refuses ids out of range, and takes a duplicate only for one', () => {
    const host = createTestHost();
    const { fd, vm } = host.createVm();
    for (const id of [4096, 4097, 2 ** 32, -1]) expect(host.try(fd, IOCTL.KVM_CREATE_VCPU, id)).toBe('EINVAL');
    const first = host.createVcpu(fd, 4095);
    expect(host.try(fd, IOCTL.KVM_CREATE_VCPU, 4095)).toBe('EEXIST');
    host.close(first.fd);
    expect(host.try(fd, IOCTL.KVM_CREATE_VCPU, 4095)).toBe('EEXIST');
    expect([vm.createdVcpus, vm.vcpus.length, first.vcpu.index]).toEqual([1, 1, 0]);
  });

  it('gives back what it took when it fails', () => {
    const host = createTestHost();
    const { fd, vm } = host.createVm();
    host.createVcpu(fd, 0);
    const before = { bytes: vm.kmem.chargedBytes, frames: host.kernel.dram.used, references: vm.references };
    host.try(fd, IOCTL.KVM_CREATE_VCPU, 0);
    expect({ bytes: vm.kmem.chargedBytes, frames: host.kernel.dram.used, references: vm.references }).toEqual(before);
  });

  it('counts as under way between its two sections under the lock', () => {
    const pending: number[] = [];
    const host = createTestHost({}, new Scheduler({ preemptAtLocks: true }));
    const { fd, vm } = host.createVm();
    const creation = host.startIoctl(fd, IOCTL.KVM_CREATE_VCPU, 0, () => pending.push(vm.createdVcpus - vm.vcpus.length));
    expect(typeof creation.result()).toBe('number');
    expect(pending).toContain(1);
    expect(vm.createdVcpus - vm.vcpus.length).toBe(0);
  });
});
