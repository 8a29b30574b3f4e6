import { describe, expect, it } from 'vitest';
import type { HostConfig } from '../../../../server/kernel/config.js';
import { EventFd } from '../../../../server/kernel/fs/eventfd.js';
import { File, OPEN } from '../../../../server/kernel/fs/file.js';
import type { Vcpu } from '../../../../server/kernel/kvm/vcpu.js';
import { KVM_USERSPACE_IRQ_SOURCE_ID, kvmSetIrq, kvmSetMsi } from '../../../../server/kernel/kvm/x86/irq/irq-comm.js';
import { kvmCpuGetInterrupt } from '../../../../server/kernel/kvm/x86/irq/vcpu-irq.js';
import { IOCTL } from '../../../../server/kernel/uapi/ioctls.js';
import { kvm_irq_routing, kvm_irq_routing_entry, kvm_irq_routing_msi } from '../../../../server/kernel/uapi/irq-structs.js';
import { kvm_irqfd } from '../../../../server/kernel/uapi/kvm-structs.js';
import { createTestHost, type TestHost } from '../kvm/test-host.js';

const GSI = 24;
const VECTOR = 0x45;
const SPIV = 0xf0;
const LAPIC_BYTES = 1024;

interface OneVm {
  readonly fd: number;
  readonly vcpuFd: number;
  readonly vcpu: Vcpu;
}

const msiRouting = (): Uint8Array => {
  const u = kvm_irq_routing_msi.encode({ address_lo: 0xfee0_0000, data: VECTOR });
  return Uint8Array.from([...kvm_irq_routing.encode({ nr: 1 }), ...kvm_irq_routing_entry.encode({ gsi: GSI, type: 2, u })]);
};

/** A VM with an irqchip whose GSI 24 is an MSI to its one vCPU. */
const createVm = (host: TestHost): OneVm => {
  const { fd } = host.createVm();
  host.must(host.ioctl(fd, IOCTL.KVM_CREATE_IRQCHIP));
  host.must(host.ioctl(fd, IOCTL.KVM_SET_GSI_ROUTING, msiRouting()));
  const { fd: vcpuFd, vcpu } = host.createVcpu(fd);
  const state = readLapic(host, vcpuFd);
  new DataView(state.buffer).setUint32(SPIV, 0x1ff, true);
  host.must(host.ioctl(vcpuFd, IOCTL.KVM_SET_LAPIC, state));
  return { fd, vcpuFd, vcpu };
};

const readLapic = (host: TestHost, vcpuFd: number): Uint8Array => {
  const state = new Uint8Array(LAPIC_BYTES);
  host.must(host.ioctl(vcpuFd, IOCTL.KVM_GET_LAPIC, state));
  return state;
};

const create = (config: Partial<HostConfig> = {}) => {
  const host = createTestHost(config);
  const [source, destination] = [createVm(host), createVm(host)];
  const counter = new EventFd(0n, false);
  const eventfd = host.must(host.process.files.install(new File(counter, OPEN.RDWR), true));
  const { interrupts, findings } = host.kernel.sanitizer;
  return {
    ...{ host, source, destination, counter },
    irqfd: (vm: OneVm): void => {
      host.must(host.ioctl(vm.fd, IOCTL.KVM_IRQFD, kvm_irqfd.encode({ fd: eventfd, gsi: GSI })));
    },
    move: (from = source, to = destination): void => interrupts.moving(from.vcpu.vm, to.vcpu.vm),
    enter: (vm = destination): void => interrupts.entered(vm.vcpu),
    msi: (vm: OneVm, data = VECTOR): number => kvmSetMsi(vm.vcpu.vm, { addressLo: 0xfee0_0000, addressHi: 0, data }),
    /** The VMM copies the local APIC from the source, as it was when `state` was read. */
    carry: (state: Uint8Array): void => {
      host.must(host.ioctl(destination.vcpuFd, IOCTL.KVM_SET_LAPIC, state));
    },
    kinds: (): string[] => {
      interrupts.callEnded();
      return findings.all.map(({ domain, kind }) => `${domain} ${kind}`);
    },
  };
};

describe('the ledger of interrupts', () => {
  it('finds nothing where every interrupt comes along', () => {
    const { source, msi, host, move, carry, enter, kinds } = create();
    msi(source);
    const state = readLapic(host, source.vcpuFd);
    move();
    carry(state);
    enter();
    expect(kinds()).toEqual([]);
  });

  it('finds an interrupt that came after the APIC was read, and stayed behind', () => {
    const { source, msi, host, move, carry, enter, kinds } = create();
    const state = readLapic(host, source.vcpuFd);
    msi(source);
    move();
    carry(state);
    enter();
    expect(kinds()).toEqual(['guest INTERRUPT_LOST']);
  });

  it('finds an interrupt that the destination had accepted before its APIC was overwritten', () => {
    const { source, destination, msi, host, move, carry, enter, kinds } = create();
    const state = readLapic(host, source.vcpuFd);
    move();
    expect(msi(destination)).toBe(1);
    carry(state);
    enter();
    expect(kinds()).toEqual(['guest INTERRUPT_LOST']);
  });

  it('finds an interrupt that the source delivered after its APIC was read', () => {
    const { source, msi, host, move, carry, enter, kinds } = create();
    msi(source);
    const state = readLapic(host, source.vcpuFd);
    expect(kvmCpuGetInterrupt(source.vcpu)).toBe(VECTOR);
    // The guest ends it, too.
    source.vcpu.arch.lapic?.setEoi();
    move();
    carry(state);
    enter();
    expect(kinds()).toEqual(['guest INTERRUPT_DOUBLED']);
  });

  it('lets the destination take new interrupts after the move', () => {
    const { source, destination, msi, host, move, carry, enter, kinds } = create();
    const state = readLapic(host, source.vcpuFd);
    move();
    carry(state);
    msi(destination, 0x66);
    enter();
    expect(kinds()).toEqual([]);
  });

  it("looks once: what comes after the first entry is the guest's own", () => {
    const { destination, msi, move, enter, kinds } = create();
    move();
    enter();
    msi(destination);
    enter();
    expect(kinds()).toEqual([]);
  });

  it('watches the PICs as it watches the APICs', () => {
    const { source, host, move, enter, kinds } = create();
    host.must(host.ioctl(source.fd, IOCTL.KVM_SET_GSI_ROUTING, picRouting()));
    kvmSetIrq(source.vcpu.vm, KVM_USERSPACE_IRQ_SOURCE_ID, 3, 1);
    move();
    enter();
    expect(kinds()).toEqual(['guest INTERRUPT_LOST']);
  });

  it('finds a signal that the irqfd of the VM takes which the guest has left', () => {
    const { source, irqfd, counter, move, kinds } = create();
    irqfd(source);
    counter.signal();
    expect(kinds()).toEqual([]);
    move();
    counter.signal();
    expect(counter.value).toBe(0n);
    expect(kinds()).toEqual(['guest INTERRUPT_LOST']);
  });

  it('finds nothing where both VMs have an irqfd on the eventfd, as before Linux 6.17', () => {
    const { source, destination, irqfd, counter, move, kinds } = create({ exclusiveIrqfd: false });
    irqfd(source);
    irqfd(destination);
    move();
    counter.signal();
    expect(kinds()).toEqual([]);
  });

  it('remembers what is owed through a VM in which the guest never ran', () => {
    const { host, source, destination, msi, move, enter, kinds } = create();
    const third = createVm(host);
    msi(source);
    move();
    move(destination, third);
    enter(destination);
    expect(kinds()).toEqual([]);
    enter(third);
    expect(kinds()).toEqual(['guest INTERRUPT_LOST']);
  });

  it('follows a guest that moves back', () => {
    const { source, destination, irqfd, counter, move, kinds } = create();
    irqfd(source);
    move();
    move(destination, source);
    counter.signal();
    expect(kinds()).toEqual([]);
  });
});

const picRouting = (): Uint8Array =>
  Uint8Array.from([
    ...kvm_irq_routing.encode({ nr: 1 }),
    ...kvm_irq_routing_entry.encode({ gsi: 3, type: 1, u: Uint8Array.of(0, 0, 0, 0, 3) }),
  ]);
