import { describe, expect, it } from 'vitest';
import { PAGE_SIZE } from '../../../server/hardware/units.js';
import { KVM_CAP } from '../../../server/kernel/uapi/capabilities.js';
import { KVM_MEM } from '../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../server/kernel/uapi/ioctls.js';
import { kvm_irq_routing, kvm_irqchip } from '../../../server/kernel/uapi/irq-structs.js';
import { kvm_userspace_memory_region } from '../../../server/kernel/uapi/kvm-structs.js';
import { kvm_cpuid2 } from '../../../server/kernel/uapi/x86-structs.js';
import { type Call, callOn, createVm, enable, hosts, setCpuid } from './configured-vm.js';
import { Migration } from './two-hosts.js';

describe('a VM that its VMM changes while it is copied', () => {
  const SIZE = 16 * PAGE_SIZE;

  it.each([
    ['another capability', (call: Call) => call(IOCTL.KVM_ENABLE_CAP, enable(KVM_CAP.EXCEPTION_PAYLOAD, 1n))],
    [
      'a slot whose writes are logged from now on',
      (call: Call, address: number) =>
        call(
          IOCTL.KVM_SET_USER_MEMORY_REGION,
          kvm_userspace_memory_region.encode({
            ...{ slot: 0, flags: KVM_MEM.LOG_DIRTY_PAGES, memory_size: BigInt(SIZE), userspace_addr: BigInt(address) },
          }),
        ),
    ],
  ])('stays: %s could only be lost', (_what, change) => {
    const [here, there] = hosts();
    const { guest, onVm } = createVm(here);
    const migration = new Migration(guest, there.vmm);
    migration.until(() => migration.source.state.phase === 'copying');
    change(onVm, guest.address);
    expect(migration.run()).toBe('GUEST_CHANGED_MEANWHILE');
    expect(guest.vm.life.kind).toBe('alive');
  });

  it('stays where a vCPU that has not run yet gets another CPUID, and goes where it gets the same', () => {
    for (const [nent, outcome] of [
      [0, 'GUEST_CHANGED_MEANWHILE'],
      [null, 'sent'],
    ] as const) {
      const [here, there] = hosts();
      const { guest } = createVm(here);
      const migration = new Migration(guest, there.vmm);
      migration.until(() => migration.source.state.phase === 'copying');
      if (nent === null) setCpuid(here.vmm, guest.vcpuFd);
      else callOn(here.vmm, guest.vcpuFd)(IOCTL.KVM_SET_CPUID2, kvm_cpuid2.encode({ nent }));
      expect(migration.run()).toBe(outcome);
    }
  });

  it('takes along what can be changed at any time', () => {
    const [here, there] = hosts();
    const { guest, onVm } = createVm(here, (call) => call(IOCTL.KVM_CREATE_IRQCHIP));
    const migration = new Migration(guest, there.vmm);
    migration.until(() => migration.source.state.phase === 'copying');
    onVm(IOCTL.KVM_SET_GSI_ROUTING, kvm_irq_routing.encode({ nr: 0 }));
    onVm(IOCTL.KVM_SET_IRQCHIP, kvm_irqchip.encode({ chip_id: 0, chip: new Uint8Array(512).fill(0x40, 2, 3) }));
    expect(migration.run()).toBe('sent');
    expect(migration.arrived().vm.arch.irq.routes.size).toBe(0);
  });
});
