import { describe, expect, it } from 'vitest';
import type { HostConfig } from '../../../../server/kernel/config.js';
import { EventFd } from '../../../../server/kernel/fs/eventfd.js';
import { File, OPEN } from '../../../../server/kernel/fs/file.js';
import { KVM_IRQFD_FLAG as FLAG } from '../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../server/kernel/uapi/ioctls.js';
import { kvm_irqfd } from '../../../../server/kernel/uapi/kvm-structs.js';
import { createTestHost } from './test-host.js';

type Arguments = Parameters<typeof kvm_irqfd.encode>[0];

const GSI = 3;

const newHost = (config: Partial<HostConfig> = {}) => {
  const host = createTestHost(config);
  const eventfd = (count = 0n) => {
    const counter = new EventFd(count, false);
    return { counter, fd: host.must(host.process.files.install(new File(counter, OPEN.RDWR), true)) };
  };
  const newVm = () => {
    const { fd, vm } = host.createVm();
    host.must(host.ioctl(fd, IOCTL.KVM_CREATE_IRQCHIP));
    const irqfd = (args: Arguments) => host.try(fd, IOCTL.KVM_IRQFD, kvm_irqfd.encode({ gsi: GSI, ...args }));
    /** Whether the PIC has latched the GSI's edge. */
    const latched = (): boolean => {
      const chip = new Uint8Array(520);
      host.must(host.ioctl(fd, IOCTL.KVM_GET_IRQCHIP, chip));
      return ((chip[9] ?? 0) & (1 << GSI)) !== 0;
    };
    return { fd, vm, irqfd, latched };
  };
  return { host, eventfd, newVm };
};

describe('KVM_IRQFD', () => {
  it('needs an in-kernel irqchip to assign, before it looks at the descriptor, but not to deassign', () => {
    const { host, eventfd } = newHost();
    const { fd } = host.createVm();
    const irqfd = (args: Arguments) => host.try(fd, IOCTL.KVM_IRQFD, kvm_irqfd.encode(args));
    expect(irqfd({ fd: 0xffff_ffff })).toBe('EINVAL');
    expect(irqfd({ fd: eventfd().fd, flags: FLAG.DEASSIGN })).toBe(0);
    expect(irqfd({ fd: eventfd().fd, flags: 4 })).toBe('EINVAL');
  });

  it('takes any GSI, and one irqfd for each eventfd', () => {
    const { eventfd, newVm } = newHost();
    const { irqfd } = newVm();
    const { fd } = eventfd();
    expect(irqfd({ fd: 0xffff_ffff })).toBe('EBADF');
    expect(irqfd({ fd, gsi: 0xffff_ffff })).toBe(0);
    expect(irqfd({ fd, gsi: 5 })).toBe('EBUSY');
    expect(irqfd({ fd, gsi: 5, flags: FLAG.DEASSIGN })).toBe(0);
    expect(irqfd({ fd, gsi: 5 })).toBe('EBUSY');
    expect(irqfd({ fd, gsi: 0xffff_ffff, flags: FLAG.DEASSIGN })).toBe(0);
    expect(irqfd({ fd, gsi: 5 })).toBe(0);
  });

  it('keeps an eventfd from every other VM until its VM is closed, although a vCPU keeps the VM alive', () => {
    const { host, eventfd, newVm } = newHost();
    const [one, two] = [newVm(), newVm()];
    const { fd } = eventfd();
    host.createVcpu(one.fd);
    expect(one.irqfd({ fd })).toBe(0);
    expect(two.irqfd({ fd })).toBe('EBUSY');
    host.close(one.fd);
    expect(host.kernel.vms.has(one.vm.id)).toBe(true);
    expect(two.irqfd({ fd })).toBe(0);
  });

  it('let two VMs share an eventfd before Linux 6.17', () => {
    const { eventfd, newVm } = newHost({ exclusiveIrqfd: false });
    const [one, two] = [newVm(), newVm()];
    const { fd } = eventfd();
    expect(one.irqfd({ fd })).toBe(0);
    expect(one.irqfd({ fd })).toBe('EBUSY');
    expect(two.irqfd({ fd })).toBe(0);
  });

  it('consumes the count and raises the line', () => {
    const { eventfd, newVm } = newHost();
    const { irqfd, latched } = newVm();
    const { fd, counter } = eventfd();
    irqfd({ fd });
    expect(latched()).toBe(false);
    counter.signal();
    expect(counter.value).toBe(0n);
    expect(latched()).toBe(true);
  });

  it('raises the line for a count that was there before, and leaves it there', () => {
    const { eventfd, newVm } = newHost();
    const { irqfd, latched } = newVm();
    const { fd, counter } = eventfd(7n);
    irqfd({ fd });
    expect(latched()).toBe(true);
    expect(counter.value).toBe(7n);
  });

  it('hears nothing after it was deassigned', () => {
    const { eventfd, newVm } = newHost();
    const { irqfd, latched, vm } = newVm();
    const { fd, counter } = eventfd();
    const charged = vm.kmem.chargedBytes;
    irqfd({ fd });
    expect(vm.kmem.chargedBytes).toBeGreaterThan(charged);
    irqfd({ fd, flags: FLAG.DEASSIGN });
    counter.signal();
    expect(latched()).toBe(false);
    expect(counter.value).toBe(1n);
    expect(vm.kmem.chargedBytes).toBe(charged);
  });

  it('empties the counter when it is deassigned, so that nobody else hears what the VM was told', () => {
    const { eventfd, newVm } = newHost();
    const { irqfd } = newVm();
    const { fd, counter } = eventfd(7n);
    irqfd({ fd });
    irqfd({ fd, flags: FLAG.DEASSIGN });
    expect(counter.value).toBe(0n);
  });

  it('goes with the eventfd whose last descriptor is closed', () => {
    const { host, eventfd, newVm } = newHost();
    const { irqfd, vm } = newVm();
    const { fd } = eventfd();
    irqfd({ fd });
    host.close(fd);
    expect(vm.irqfds.size).toBe(0);
  });

  it('shares one resampler for each GSI, and takes everything back when the eventfd is taken', () => {
    const { eventfd, newVm } = newHost();
    const { irqfd, vm } = newVm();
    const [one, two, ack] = [eventfd(), eventfd(), eventfd()];
    const charged = vm.kmem.chargedBytes;
    expect(irqfd({ fd: one.fd, flags: FLAG.RESAMPLE, resamplefd: 0xffff_ffff })).toBe('EBADF');
    expect(irqfd({ fd: one.fd, flags: FLAG.RESAMPLE, resamplefd: ack.fd })).toBe(0);
    const withOne = vm.kmem.chargedByType.get('kvm_kernel_irqfd_resampler');
    expect(irqfd({ fd: two.fd, flags: FLAG.RESAMPLE, resamplefd: ack.fd })).toBe(0);
    expect(vm.kmem.chargedByType.get('kvm_kernel_irqfd_resampler')).toBe(withOne);
    expect(irqfd({ fd: two.fd, gsi: 9, flags: FLAG.RESAMPLE, resamplefd: ack.fd })).toBe('EBUSY');
    expect(vm.kmem.chargedByType.get('kvm_kernel_irqfd_resampler')).toBe(withOne);
    irqfd({ fd: one.fd, flags: FLAG.DEASSIGN });
    irqfd({ fd: two.fd, flags: FLAG.DEASSIGN });
    expect(vm.kmem.chargedBytes).toBe(charged);
  });
});
