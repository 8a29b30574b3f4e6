import { describe, expect, it } from 'vitest';
import { PAGE_SIZE } from '../../../server/hardware/units.js';
import { EventFd } from '../../../server/kernel/fs/eventfd.js';
import { File, OPEN } from '../../../server/kernel/fs/file.js';
import { Scheduler } from '../../../server/kernel/sched/scheduler.js';
import { KVM_IOEVENTFD_FLAG, KVM_IRQFD_FLAG } from '../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../server/kernel/uapi/ioctls.js';
import { kvm_irq_level, kvm_irqchip } from '../../../server/kernel/uapi/irq-structs.js';
import { kvm_ioeventfd, kvm_irqfd } from '../../../server/kernel/uapi/kvm-structs.js';
import type { ReceivedVm } from '../../../server/migration/local-destination.js';
import { because } from '../../../server/migration/reason.js';
import { createSevRig, type Vmm } from '../kernel/kvm/svm/sev-rig.js';
import { type CountingGuest, countingGuest, Migration, runOnce } from './two-hosts.js';

/** A guest with an in-kernel irqchip, and what a VMM wires to it. */
const wiredGuest = (vmm: Vmm) => {
  const { fd, vm } = vmm.process.createVm();
  vmm.process.must(vmm.process.ioctl(fd, IOCTL.KVM_CREATE_IRQCHIP));
  const guest: CountingGuest = countingGuest(vmm, { vmm, fd, vm, vcpus: [vmm.process.createVcpu(fd)] }, () => {});
  const eventfd = (count: bigint, semaphore = false): { readonly fd: number; readonly counter: EventFd } => {
    const counter = new EventFd(count, semaphore);
    return { counter, fd: vmm.process.must(vmm.process.process.files.install(new File(counter, OPEN.RDWR), true)) };
  };
  const call = (request: number, bytes: Uint8Array): void => void vmm.process.must(vmm.process.ioctl(fd, request, bytes));
  return {
    guest,
    eventfd,
    ioeventfd: (args: Parameters<typeof kvm_ioeventfd.encode>[0]) => call(IOCTL.KVM_IOEVENTFD, kvm_ioeventfd.encode(args)),
    irqfd: (args: Parameters<typeof kvm_irqfd.encode>[0]) => call(IOCTL.KVM_IRQFD, kvm_irqfd.encode(args)),
  };
};

const receivedOf = ({ received }: Migration): ReceivedVm => {
  if (received === null) throw new Error('nothing has arrived');
  return received;
};

describe('device wiring', () => {
  it('is told to the destination with what its eventfds count when the guest has stopped', () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const { guest, eventfd, ioeventfd, irqfd } = wiredGuest(here.vmm);
    const queue = eventfd(0n);
    const doorbell = eventfd(0n);
    ioeventfd({
      fd: queue.fd,
      addr: 0x510n,
      len: 2,
      datamatch: 7n,
      flags: KVM_IOEVENTFD_FLAG.PIO | KVM_IOEVENTFD_FLAG.DATAMATCH,
    });
    ioeventfd({ fd: doorbell.fd, addr: 0xfe00_0000n, len: 0 });
    irqfd({ fd: eventfd(0n).fd, gsi: 5 });
    const resamplefd = eventfd(0n).fd;
    irqfd({ fd: eventfd(0n).fd, gsi: 9, flags: KVM_IRQFD_FLAG.RESAMPLE, resamplefd });
    const migration = new Migration(guest, there.vmm);
    migration.until(() => migration.received !== null);
    expect(receivedOf(migration).ioeventfds.map(({ count }) => count)).toEqual([0n, 0n]);
    for (let kick = 0; kick < 3; kick++) queue.counter.signal();
    expect(migration.run()).toBe('sent');
    const { ioeventfds, irqfds } = receivedOf(migration);
    expect(ioeventfds).toEqual([
      { address: 0x510n, length: 2, datamatch: 7n, pio: true, count: 3n },
      { address: 0xfe00_0000n, length: 0, datamatch: null, pio: false, count: 0n },
    ]);
    expect(irqfds).toEqual([
      { gsi: 5, resample: false, count: 0n },
      { gsi: 9, resample: true, count: 0n },
    ]);
  });

  it('counts of an irqfd what has not raised its GSI yet, and not what had raised it when it was assigned', () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const { guest, eventfd, irqfd } = wiredGuest(here.vmm);
    irqfd({ fd: eventfd(4n).fd, gsi: 5 });
    const semaphore = eventfd(0n, true);
    irqfd({ fd: semaphore.fd, gsi: 6 });
    here.vmm.process.must(
      here.vmm.process.call((current) =>
        semaphore.counter.write(current, new File(semaphore.counter, OPEN.RDWR), new Uint8Array([5, 0, 0, 0, 0, 0, 0, 0])),
      ),
    );
    const migration = new Migration(guest, there.vmm);
    expect(migration.run()).toBe('sent');
    expect(receivedOf(migration).irqfds.map(({ count }) => count)).toEqual([0n, 4n]);
    expect(semaphore.counter.value).toBe(0n);
  });

  it('is that of the end, not that of the beginning', () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const { guest, eventfd, irqfd } = wiredGuest(here.vmm);
    const migration = new Migration(guest, there.vmm);
    migration.until(() => migration.source.state.phase === 'copying');
    irqfd({ fd: eventfd(0n).fd, gsi: 5 });
    expect(migration.run()).toBe('sent');
    expect(receivedOf(migration).irqfds).toEqual([{ gsi: 5, resample: false, count: 0n }]);
  });
});

describe('an event of an irqfd that comes when the guest has been stopped', () => {
  const begin = (semaphore = false, scheduler = new Scheduler()) => {
    const [here, there] = [createSevRig({ seed: 'here' }, scheduler), createSevRig({ seed: 'there' })];
    const wired = wiredGuest(here.vmm);
    const { fd, counter } = wired.eventfd(0n, semaphore);
    wired.irqfd({ fd, gsi: 5 });
    const migration = new Migration(wired.guest, there.vmm);
    const { vm } = wired.guest;
    return { ...wired, counter, migration, injected: () => [...vm.irqfds].map(({ injected }) => injected) };
  };

  it('stays in its eventfd once the irqchip has been read: the VMM hands it on, also when it has closed the VM', () => {
    const { guest, counter, migration, injected } = begin();
    migration.until(() => migration.source.state.phase === 'preparing');
    counter.signal();
    expect(migration.run()).toBe('sent');
    expect(receivedOf(migration).irqfds).toEqual([{ gsi: 5, resample: false, count: 0n }]);
    counter.signal();
    expect([counter.value, injected()]).toEqual([2n, [0]]);
    guest.vmm.process.close(guest.vmFd);
    expect(counter.value).toBe(2n);
  });

  it('travels, and is taken out of the eventfd, where it comes between the irqchip and the wiring', () => {
    // Others run while the state is read.
    const { guest, counter, migration, injected } = begin(false, new Scheduler({ preemptAtLocks: true }));
    migration.until(() => migration.source.state.phase === 'draining');
    let signals = 0;
    while (migration.source.state.phase === 'draining') {
      guest.vm.kernel.work('device', function* signal() {
        counter.signal();
        signals++;
      });
      migration.step();
    }
    expect(migration.run()).toBe('sent');
    expect(receivedOf(migration).irqfds).toEqual([{ gsi: 5, resample: false, count: 1n }]);
    expect([counter.value, injected()]).toEqual([0n, [signals - 1]]);
  });

  it.each([false, true])('raises its GSI when the guest stays, as if nothing had been (semaphore: %s)', (semaphore) => {
    const { counter, migration, injected } = begin(semaphore);
    migration.until(() => migration.source.state.phase === 'preparing');
    for (let event = 0; event < 3; event++) counter.signal();
    expect([counter.value, injected()]).toEqual([3n, [0]]);
    migration.source.cancel(because('OPERATOR'));
    expect([counter.value, injected()]).toEqual([0n, [semaphore ? 3 : 1]]);
    expect(migration.run()).toBe('OPERATOR');
    counter.signal();
    expect([counter.value, injected()]).toEqual([0n, [semaphore ? 4 : 2]]);
  });

  it('raises nothing when the guest stays, and the VMM has read it meanwhile', () => {
    const { counter, migration, injected } = begin();
    migration.until(() => migration.source.state.phase === 'preparing');
    counter.signal();
    counter.take();
    migration.source.cancel(because('OPERATOR'));
    expect(injected()).toEqual([0]);
    expect(migration.run()).toBe('OPERATOR');
  });
});

describe('an interrupt that the VMM raises when the guest has been stopped', () => {
  const GSI = 5;
  const PIC_MASTER = 0;
  const IRR = 1;

  const begin = () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const { guest } = wiredGuest(here.vmm);
    const migration = new Migration(guest, there.vmm);
    migration.until(() => migration.source.state.phase === 'preparing');
    const { process } = guest.vmm;
    const raise = process.startIoctl(guest.vmFd, IOCTL.KVM_IRQ_LINE, kvm_irq_level.encode({ irq: GSI, level: 1 }));
    const isRaised = (): boolean => {
      const chip = kvm_irqchip.encode({ chip_id: PIC_MASTER });
      process.must(process.ioctl(guest.vmFd, IOCTL.KVM_GET_IRQCHIP, chip));
      return ((kvm_irqchip.decode(chip).chip[IRR] ?? 0) & (1 << GSI)) !== 0;
    };
    return { guest, migration, raise, isRaised };
  };

  it('waits, and is raised when the guest stays', () => {
    const { migration, raise, isRaised } = begin();
    expect([raise.result(), isRaised()]).toEqual([undefined, false]);
    migration.source.cancel(because('OPERATOR'));
    expect(migration.run()).toBe('OPERATOR');
    expect([raise.result(), isRaised()]).toEqual([0, true]);
  });

  it('waits, and is refused when the guest has gone: the VMM raises it there', () => {
    const { migration, raise } = begin();
    expect(migration.run()).toBe('sent');
    expect(raise.result()).toMatchObject({ errno: 'EIO' });
  });

  it('waits no longer than until a signal comes', () => {
    const { guest, migration, raise } = begin();
    raise.task.signal(10);
    guest.vmm.process.kernel.scheduler.run();
    expect(raise.result()).toMatchObject({ errno: 'EINTR' });
    expect(migration.run()).toBe('sent');
  });
});

describe('a VM that its VMM changes while it migrates', () => {
  it('stays where it is, since the destination has made room for another one', () => {
    const [here, there] = [createSevRig({ seed: 'here' }), createSevRig({ seed: 'there' })];
    const { guest } = wiredGuest(here.vmm);
    const migration = new Migration(guest, there.vmm);
    migration.until(() => migration.source.state.phase === 'copying');
    here.vmm.addSlot({ fd: guest.vmFd }, 1, 0x10_0000, here.vmm.map(null, PAGE_SIZE), PAGE_SIZE);
    expect(migration.run()).toBe('GUEST_CHANGED_MEANWHILE');
    expect(runOnce(guest, [])).toBe(2);
  });
});
