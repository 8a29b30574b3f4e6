import { describe, expect, it } from 'vitest';
import { EventFd } from '../../../../server/kernel/fs/eventfd.js';
import { File, OPEN } from '../../../../server/kernel/fs/file.js';
import { dismantleVm } from '../../../../server/kernel/kvm/dismantle.js';
import { IOCTL } from '../../../../server/kernel/uapi/ioctls.js';
import { kvm_ioeventfd, kvm_irqfd, kvm_userspace_memory_region } from '../../../../server/kernel/uapi/kvm-structs.js';
import { createTestHost, type TestHost } from './test-host.js';

const newVm = (host: TestHost) => {
  const { fd, vm } = host.createVm();
  host.must(host.ioctl(fd, IOCTL.KVM_CREATE_IRQCHIP));
  const efd = host.must(host.process.files.install(new File(new EventFd(0n, false), OPEN.RDWR), true));
  const { vcpu } = host.createVcpu(fd);
  for (const flags of [0, 2])
    host.must(host.ioctl(fd, IOCTL.KVM_IOEVENTFD, kvm_ioeventfd.encode({ addr: 8n, len: 4, fd: efd, flags })));
  host.must(host.ioctl(fd, IOCTL.KVM_IRQFD, kvm_irqfd.encode({ fd: efd, gsi: 3 })));
  for (const slot of [0, 1]) {
    const region = { slot, guest_phys_addr: BigInt(slot) << 32n, memory_size: 0x4000_0000n };
    host.must(host.ioctl(fd, IOCTL.KVM_SET_USER_MEMORY_REGION, kvm_userspace_memory_region.encode(region)));
  }
  return { fd, vm, vcpu };
};

const grace = (host: TestHost): number => host.kernel.costs.counts.get('srcu_grace_period') ?? 0;

describe('dismantling a VM', () => {
  it('is not offered as an ioctl unless the policy has it', () => {
    const host = createTestHost({ postMovePolicy: 'VM_DEAD' });
    expect(host.try(newVm(host).fd, IOCTL.KVM_DISMANTLE_VM)).toBe('ENOTTY');
  });

  it('frees buses and memslots, and leaves irqfds, vCPUs and run pages', () => {
    const host = createTestHost({ postMovePolicy: 'DISMANTLE_IOCTL' });
    const { fd, vm, vcpu } = newVm(host);
    const before = { bytes: vm.kmem.reachableBytes, grace: grace(host) };
    expect(host.try(fd, IOCTL.KVM_DISMANTLE_VM)).toBe(0);
    expect([vm.memslots.size, vm.ioeventfds.size, vm.buses.pio.gone, vm.buses.mmio.gone]).toEqual([0, 0, true, true]);
    expect([vm.irqfds.size, vm.vcpus, vm.dismantling]).toEqual([1, [vcpu], 'done']);
    expect(before.bytes - vm.kmem.reachableBytes).toBeGreaterThan(2 * 262_144 * 8);
    // One for all the buses, one for all the slots.
    expect(grace(host) - before.grace).toBe(2);
    host.closeAll();
    expect([vm.kmem.chargedBytes, vm.kmem.reachableBytes, host.kernel.vms.size]).toEqual([0, 0, 0]);
  });

  it('can be repeated, and then does nothing', () => {
    const host = createTestHost({ postMovePolicy: 'DISMANTLE_IOCTL' });
    const { fd, vm } = newVm(host);
    host.must(host.ioctl(fd, IOCTL.KVM_DISMANTLE_VM));
    const before = { bytes: vm.kmem.reachableBytes, grace: grace(host) };
    expect(host.try(fd, IOCTL.KVM_DISMANTLE_VM)).toBe(0);
    expect({ bytes: vm.kmem.reachableBytes, grace: grace(host) }).toEqual(before);
  });

  it('releases irqfds too where the host is configured so', () => {
    const host = createTestHost({ postMovePolicy: 'DISMANTLE_IOCTL', dismantleReleasesIrqfds: true });
    const { fd, vm } = newVm(host);
    host.must(host.ioctl(fd, IOCTL.KVM_DISMANTLE_VM));
    expect(vm.irqfds.size).toBe(0);
  });

  it('waits for every vCPU, and shows meanwhile that it is under way', () => {
    const host = createTestHost();
    const { vm, vcpu } = newVm(host);
    const runner = host.start(function* hold(current) {
      yield* vcpu.mutex.lock(current);
    });
    const dismantling = host.start((current) => dismantleVm(current, vm));
    expect([vm.dismantling, vm.memslots.size, vm.lock.locked]).toEqual(['under-way', 2, true]);
    vcpu.mutex.unlock(runner.task);
    host.kernel.scheduler.run();
    expect([dismantling.task.state.kind, vm.dismantling, vm.memslots.size, vm.lock.locked]).toEqual(['done', 'done', 0, false]);
  });
});
