import { describe, expect, it } from 'vitest';
import { PAGE_SIZE } from '../../../server/hardware/units.js';
import { REQUEST } from '../../../server/kernel/kvm/vcpu.js';
import type { Vm } from '../../../server/kernel/kvm/vm.js';
import { MSR } from '../../../server/kernel/kvm/x86/msr-index.js';
import { SAVED_MSRS } from '../../../server/kernel/kvm/x86/msr-store.js';
import { KVM_CAP } from '../../../server/kernel/uapi/capabilities.js';
import { KVM_GUESTDBG, KVM_IRQ_ROUTING, KVM_MEM, KVM_MSR_FILTER } from '../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../server/kernel/uapi/ioctls.js';
import {
  kvm_irq_routing,
  kvm_irq_routing_entry,
  kvm_irq_routing_msi,
  kvm_pit_config,
  kvm_pit_state2,
  kvm_reinject_control,
} from '../../../server/kernel/uapi/irq-structs.js';
import {
  kvm_coalesced_mmio_zone,
  kvm_dirty_log,
  kvm_interrupt,
  kvm_mp_state,
  kvm_tpr_access_ctl,
  kvm_userspace_memory_region,
  kvm_vapic_addr,
} from '../../../server/kernel/uapi/kvm-structs.js';
import {
  kvm_cpuid_entry2,
  kvm_cpuid2,
  kvm_debugregs,
  kvm_guest_debug,
  kvm_lapic_state,
  kvm_msr_entry,
  kvm_msr_filter,
  kvm_msr_filter_range,
  kvm_msrs,
  kvm_regs,
  kvm_sregs,
  kvm_vcpu_events,
  kvm_xcrs,
  kvm_xsave,
} from '../../../server/kernel/uapi/x86-structs.js';
import type { SevRig, Vmm } from '../kernel/kvm/svm/sev-rig.js';
import { callOn, createVm, enable, hosts, setCpuid, VCPUS } from './configured-vm.js';
import { type CountingGuest, Migration, sevEsGuest, sevGuest } from './two-hosts.js';

const LVTT = 0x320;
const SPIV = 0xf0;
const TMCCT = 0x390;
const LVTT_TSC_DEADLINE = 2 << 17;
const X2APIC = 0xc00n;

const word = (value: bigint): Uint8Array => new Uint8Array(BigUint64Array.of(value).buffer);

const msrs = (values: Readonly<Record<number, bigint>>): Uint8Array => {
  const entries = Object.entries(values).map(([index, data]) => kvm_msr_entry.encode({ index: Number(index), data }));
  return Uint8Array.from([...kvm_msrs.encode({ nmsrs: entries.length }), ...entries.flatMap((entry) => [...entry])]);
};

/** KVM_RUN and everything else goes on at the destination, in the order of the source's vCPUs. */
const migrate = (
  guest: CountingGuest,
  there: SevRig,
): { readonly vm: Vm; readonly migration: Migration; readonly fds: readonly number[] } => {
  const migration = new Migration(guest, there.vmm);
  expect(migration.run()).toBe('sent');
  return { vm: migration.arrived().vm, migration, fds: migration.received?.vcpuFds ?? [] };
};

const read = (vmm: Vmm, fd: number, request: number, bytes: Uint8Array): Uint8Array => {
  vmm.process.must(vmm.process.ioctl(fd, request, bytes));
  return bytes;
};

/** What a VMM can read of a vCPU, but for what the time changes. */
const vcpuState = (vmm: Vmm, fd: number) => {
  const get = (request: number, size: number): Uint8Array => read(vmm, fd, request, new Uint8Array(size));
  const lapic = get(IOCTL.KVM_GET_LAPIC, kvm_lapic_state.size);
  lapic.fill(0, TMCCT, TMCCT + 4);
  const indices = [...SAVED_MSRS, MSR.UCODE_REV, MSR.VM_CR, MSR.AMD64_DE_CFG, MSR.MCG_CAP].filter((index) => index !== MSR.TSC);
  const banks = Array.from({ length: 40 }, (_, at) => MSR.MC0_CTL + at);
  const values = read(vmm, fd, IOCTL.KVM_GET_MSRS, msrs(Object.fromEntries([...indices, ...banks].map((index) => [index, 0n]))));
  const cpuid = new Uint8Array(kvm_cpuid2.size + 256 * kvm_cpuid_entry2.size);
  cpuid.set(kvm_cpuid2.encode({ nent: 256 }));
  return {
    regs: kvm_regs.decode(get(IOCTL.KVM_GET_REGS, kvm_regs.size)),
    sregs: kvm_sregs.decode(get(IOCTL.KVM_GET_SREGS, kvm_sregs.size)),
    xcrs: get(IOCTL.KVM_GET_XCRS, kvm_xcrs.size),
    xsave: get(IOCTL.KVM_GET_XSAVE, kvm_xsave.size),
    debug: kvm_debugregs.decode(get(IOCTL.KVM_GET_DEBUGREGS, kvm_debugregs.size)),
    mp: kvm_mp_state.decode(get(IOCTL.KVM_GET_MP_STATE, kvm_mp_state.size)),
    events: kvm_vcpu_events.decode(get(IOCTL.KVM_GET_VCPU_EVENTS, kvm_vcpu_events.size)),
    lapic,
    msrs: values,
    cpuid: read(vmm, fd, IOCTL.KVM_GET_CPUID2, cpuid),
    tscKhz: vmm.process.must(vmm.process.ioctl(fd, IOCTL.KVM_GET_TSC_KHZ)),
  };
};

const inTscDeadlineMode = (): Uint8Array => {
  const regs = new Uint8Array(1024);
  const view = new DataView(regs.buffer);
  view.setUint32(SPIV, 0x1ff, true);
  view.setUint32(LVTT, LVTT_TSC_DEADLINE | 0x40, true);
  return regs;
};

describe('what a VMM reads of a vCPU', () => {
  it('is the same on the destination: registers, MSRs, events, local APIC, machine check banks', () => {
    const [here, there] = hosts();
    const { guest, onVcpu } = createVm(here, (onVm) => onVm(IOCTL.KVM_CREATE_IRQCHIP));
    for (const index of VCPUS) {
      const on = onVcpu(index);
      const fd = [guest.vcpuFd, guest.vcpuFd + 1][index] ?? -1;
      const sregs = kvm_sregs.decode(read(here.vmm, fd, IOCTL.KVM_GET_SREGS, new Uint8Array(kvm_sregs.size)));
      on(IOCTL.KVM_SET_SREGS, kvm_sregs.encode({ ...sregs, cr2: 0x1234n, cr8: 5n, apic_base: sregs.apic_base | X2APIC }));
      on(IOCTL.KVM_SET_REGS, kvm_regs.encode({ rip: 0x1000n, rflags: 0x46n, rax: 1n + BigInt(index), r15: 0xdead_beefn }));
      on(IOCTL.KVM_SET_DEBUGREGS, kvm_debugregs.encode({ db: [1n, 2n, 3n, 4n], dr6: 0xffff_0ff1n, dr7: 0x401n }));
      on(IOCTL.KVM_X86_SETUP_MCE, word(0x100_0109n));
      const values = { [MSR.MC0_CTL + 5]: 0x8000_0000_0000_0001n, [MSR.MC0_CTL + 6]: 0x4000n, [MSR.MC0_CTL + 8]: 0n };
      on(
        IOCTL.KVM_SET_MSRS,
        msrs({ ...values, [MSR.UCODE_REV]: 0x123n, [MSR.VM_CR]: 0x18n, [MSR.LSTAR]: 0x7777n, [MSR.PAT]: 6n }),
      );
      on(IOCTL.KVM_SET_LAPIC, inTscDeadlineMode());
      on(IOCTL.KVM_SET_MSRS, msrs({ [MSR.TSC_DEADLINE]: 1n << 62n }));
      on(IOCTL.KVM_SET_VCPU_EVENTS, kvm_vcpu_events.encode({ nmi: { injected: 0, pending: 2, masked: 1 }, flags: 1 }));
    }
    onVcpu(1)(IOCTL.KVM_SET_MP_STATE, kvm_mp_state.encode({ mp_state: 3 }));
    const before = VCPUS.map((index) => vcpuState(here.vmm, guest.vcpuFd + index));
    const { fds } = migrate(guest, there);
    expect(fds.map((fd) => vcpuState(there.vmm, fd))).toEqual(before);
  });

  it('has what is set and never read: debugger, TPR reporting and page, the next exits', () => {
    const [here, there] = hosts();
    const { guest, onVcpu } = createVm(here, (onVm) => {
      onVm(IOCTL.KVM_ENABLE_CAP, enable(KVM_CAP.SPLIT_IRQCHIP, 24n));
    });
    const control = KVM_GUESTDBG.ENABLE | KVM_GUESTDBG.USE_HW_BP;
    const debugreg = [0x1000n, 0n, 0n, 0n, 0n, 0n, 0n, 0x402n];
    onVcpu(1)(IOCTL.KVM_SET_GUEST_DEBUG, kvm_guest_debug.encode({ control, debugreg }));
    onVcpu(1)(IOCTL.KVM_TPR_ACCESS_REPORTING, kvm_tpr_access_ctl.encode({ enabled: 1 }));
    onVcpu(1)(IOCTL.KVM_SET_VAPIC_ADDR, kvm_vapic_addr.encode({ vapic_addr: 0x3008n }));
    onVcpu(0)(IOCTL.KVM_INTERRUPT, kvm_interrupt.encode({ irq: 0x31 }));
    const [, vcpu] = guest.vm.vcpus;
    if (vcpu === undefined || vcpu.arch.lapic === null) throw new Error('no vCPU');
    vcpu.request(REQUEST.TRIPLE_FAULT);
    vcpu.request(REQUEST.IOAPIC_EOI_EXIT);
    vcpu.arch.lapic.pendingIoapicEoi = 0x55;
    vcpu.request(REQUEST.REPORT_TPR_ACCESS);
    vcpu.arch.tprAccess = { isWrite: true };
    const [first, second] = migrate(guest, there).vm.vcpus;
    expect(first?.arch.lapic?.pendingExternalVector).toBe(0x31);
    expect(second?.arch).toMatchObject({ tprAccessReporting: true, tprAccess: { isWrite: true } });
    expect(second?.arch.guestDebug).toEqual({ control, debugRegisters: debugreg });
    expect(second?.arch.lapic).toMatchObject({ vapicAddress: 0x3008, pendingIoapicEoi: 0x55 });
    for (const request of [REQUEST.TRIPLE_FAULT, REQUEST.IOAPIC_EOI_EXIT, REQUEST.REPORT_TPR_ACCESS])
      expect([first?.testRequest(request), second?.testRequest(request)]).toEqual([false, true]);
  });

  it('has TSCs in step, as they were, although time goes on while they are read and set', () => {
    const [here, there] = hosts();
    const { guest, onVcpu } = createVm(here);
    for (const index of VCPUS) onVcpu(index)(IOCTL.KVM_SET_MSRS, msrs({ [MSR.TSC]: 1n << 40n }));
    const [one, other] = guest.vm.vcpus.map(({ arch }) => arch.tscOffset);
    const skew = (other ?? 0n) - (one ?? 0n);
    expect(skew).not.toBe(0n);
    const [first, second] = migrate(guest, there).vm.vcpus.map(({ arch }) => arch.tscOffset);
    expect((second ?? 0n) - (first ?? 0n)).toBe(skew);
  });

  it('of a SEV-ES guest: the mode of its local APIC, and what KVM knows of the mode of its CPU', () => {
    const [here, there] = hosts();
    const guest = sevEsGuest(here);
    Object.assign(guest.vcpu.arch.state, { cr4: 0x4_06a0n, efer: 0x1d01n });
    const { vm } = migrate(guest, there);
    const [vcpu] = vm.vcpus;
    expect(vcpu?.arch.state).toMatchObject({ cr4: 0x4_06a0n, efer: 0x1d01n });
    expect(vcpu?.arch.apicBase).toBe(guest.vcpu.arch.apicBase);
  });
});

describe('the local APIC of a SEV-ES guest', () => {
  it('is in x2APIC mode there too, with its deadline, though nobody can set the registers of its vCPU', () => {
    const [here, there] = hosts();
    const { vmm } = here;
    const guest = vmm.createSevGuest({ es: true, irqchip: true });
    const [vcpu] = guest.vcpus;
    if (vcpu === undefined) throw new Error('no vCPU');
    const on = callOn(vmm, vcpu.fd);
    setCpuid(vmm, vcpu.fd);
    const sregs = kvm_sregs.decode(read(vmm, vcpu.fd, IOCTL.KVM_GET_SREGS, new Uint8Array(kvm_sregs.size)));
    on(IOCTL.KVM_SET_SREGS, kvm_sregs.encode({ ...sregs, apic_base: sregs.apic_base | X2APIC }));
    on(IOCTL.KVM_SET_LAPIC, inTscDeadlineMode());
    on(IOCTL.KVM_SET_MSRS, msrs({ [MSR.TSC_DEADLINE]: 1n << 62n }));
    vmm.must(vmm.command(guest.fd, 'LAUNCH_UPDATE_VMSA'));
    vmm.must(vmm.command(guest.fd, 'LAUNCH_FINISH'));
    const { vm } = migrate({ vmm, vm: guest.vm, vmFd: guest.fd, vcpuFd: vcpu.fd, vcpu: vcpu.vcpu, address: 0 }, there);
    const lapic = vm.vcpus[0]?.arch.lapic;
    expect([lapic?.x2apic, lapic?.timer.tscDeadlineMode, lapic?.timer.tscDeadline]).toEqual([true, true, 1n << 62n]);
  });
});

describe('what a VM has been told', () => {
  it('is the same on the destination: capabilities, boot processor, TSC frequency, speaker, reinjection', () => {
    const [here, there] = hosts();
    const { guest, onVm } = createVm(here, (call) => {
      call(IOCTL.KVM_CREATE_IRQCHIP);
      call(IOCTL.KVM_CREATE_PIT2, kvm_pit_config.encode({ flags: 1 }));
      call(IOCTL.KVM_ENABLE_CAP, enable(KVM_CAP.X86_APIC_BUS_CYCLES_NS, 40n));
      call(IOCTL.KVM_ENABLE_CAP, enable(KVM_CAP.MAX_VCPU_ID, 8n));
      call(IOCTL.KVM_ENABLE_CAP, enable(KVM_CAP.DIRTY_LOG_RING, 4096n));
      call(IOCTL.KVM_SET_BOOT_CPU_ID, 1);
      call(IOCTL.KVM_SET_TSC_KHZ, 1_000_000);
    });
    onVm(IOCTL.KVM_ENABLE_CAP, enable(KVM_CAP.MSR_PLATFORM_INFO, 0n));
    onVm(IOCTL.KVM_ENABLE_CAP, enable(KVM_CAP.HALT_POLL, 0n));
    onVm(IOCTL.KVM_ENABLE_CAP, enable(KVM_CAP.MANUAL_DIRTY_LOG_PROTECT2, 1n));
    onVm(IOCTL.KVM_ENABLE_CAP, enable(KVM_CAP.EXCEPTION_PAYLOAD, 1n));
    onVm(IOCTL.KVM_REINJECT_CONTROL, kvm_reinject_control.encode({ pit_reinject: 0 }));
    const pit = read(here.vmm, guest.vmFd, IOCTL.KVM_GET_PIT2, new Uint8Array(kvm_pit_state2.size));
    const told = ({ arch, dirtyRingBytes, maxHaltPollNs, manualDirtyLogProtect }: Vm) => ({
      ...{ dirtyRingBytes, maxHaltPollNs, manualDirtyLogProtect },
      bus: arch.apicBusCycleNs,
      ids: arch.maxVcpuIds,
      boot: arch.bspVcpuId,
      khz: arch.defaultTscKhz,
      platformInfo: arch.guestCanReadMsrPlatformInfo,
      payload: arch.exceptionPayload,
      speaker: arch.irq.pit?.speaker,
      reinjects: arch.irq.pit?.reinjects,
    });
    const before = told(guest.vm);
    expect(before).toMatchObject({
      bus: 40,
      ids: 8,
      boot: 1,
      khz: 1_000_000,
      platformInfo: false,
      speaker: true,
      reinjects: false,
    });
    const { vm, migration } = migrate(guest, there);
    expect(told(vm)).toEqual(before);
    const { flags } = kvm_pit_state2.decode(pit);
    const received = read(there.vmm, migration.arrived().vmFd, IOCTL.KVM_GET_PIT2, new Uint8Array(kvm_pit_state2.size));
    expect(kvm_pit_state2.decode(received).flags).toBe(flags);
  });

  it('is where its interrupts go: an MSI, and a GSI that leads to another pin', () => {
    const [here, there] = hosts();
    const { guest, onVm } = createVm(here, (call) => call(IOCTL.KVM_CREATE_IRQCHIP));
    const msi = kvm_irq_routing_msi.encode({ address_lo: 0xfee0_1000, data: 0x41 });
    const pin = Uint8Array.from([2, 0, 0, 0, 9, 0, 0, 0, ...new Uint8Array(msi.length - 8)]);
    const entries = [
      kvm_irq_routing_entry.encode({ gsi: 30, type: KVM_IRQ_ROUTING.MSI, u: msi }),
      kvm_irq_routing_entry.encode({ gsi: 5, type: KVM_IRQ_ROUTING.IRQCHIP, u: pin }),
      kvm_irq_routing_entry.encode({
        gsi: 12,
        type: KVM_IRQ_ROUTING.IRQCHIP,
        u: Uint8Array.from([1, 0, 0, 0, 4, 0, 0, 0, ...pin.slice(8)]),
      }),
    ];
    onVm(
      IOCTL.KVM_SET_GSI_ROUTING,
      Uint8Array.from([...kvm_irq_routing.encode({ nr: 3 }), ...entries.flatMap((entry) => [...entry])]),
    );
    const { routes } = guest.vm.arch.irq;
    const received = migrate(guest, there).vm.arch.irq.routes;
    for (const gsi of [0, 5, 12, 30]) expect(received.map(gsi)).toEqual(routes.map(gsi));
    expect(received.size).toBe(3);
  });

  it('is which MSRs its guest may touch', () => {
    const [here, there] = hosts();
    const { guest, onVm } = createVm(here);
    const bitmap = here.vmm.map(null, PAGE_SIZE);
    here.vmm.write(bitmap, Uint8Array.of(0b101, 0, 0, 0, 0, 0, 0, 0));
    const range = kvm_msr_filter_range.decode(
      kvm_msr_filter_range.encode({ flags: KVM_MSR_FILTER.READ, nmsrs: 3, base: 0x174, bitmap: BigInt(bitmap) }),
    );
    onVm(IOCTL.KVM_X86_SET_MSR_FILTER, kvm_msr_filter.encode({ flags: 1, ranges: [range] }));
    const { msrFilter } = migrate(guest, there).vm.arch;
    expect([0x173, 0x174, 0x175, 0x176].map((index) => msrFilter?.allows(index, KVM_MSR_FILTER.READ))).toEqual([
      false,
      true,
      false,
      true,
    ]);
    expect(msrFilter?.allows(0x174, KVM_MSR_FILTER.WRITE)).toBe(false);
  });

  it('is which writes are collected, and what the VMM has not taken out of the ring', () => {
    const [here, there] = hosts();
    const { guest, onVm } = createVm(here);
    onVm(IOCTL.KVM_REGISTER_COALESCED_MMIO, kvm_coalesced_mmio_zone.encode({ addr: 0xb8000n, size: 0x1000 }));
    onVm(IOCTL.KVM_REGISTER_COALESCED_MMIO, kvm_coalesced_mmio_zone.encode({ addr: 0x3f8n, size: 8, pio: 1 }));
    guest.vm.coalesced.push(0xb8004, Uint8Array.of(1, 2, 3, 4), false);
    const { coalesced } = migrate(guest, there).vm;
    expect([...coalesced.zones].map(({ addr, size, pio }) => [addr, size, pio])).toEqual([
      [0xb8000n, 0x1000, false],
      [0x3f8n, 8, true],
    ]);
    expect(coalesced.ring.bytes).toEqual(guest.vm.coalesced.ring.bytes);
    expect(coalesced.ring.bytes.some((byte) => byte !== 0)).toBe(true);
  });
});

describe('memory slots', () => {
  const slot = (vmm: Vmm, fd: number, id: number, gpa: number, address: number, pages: number, flags = 0): void =>
    callOn(vmm, fd)(
      IOCTL.KVM_SET_USER_MEMORY_REGION,
      kvm_userspace_memory_region.encode({
        ...{ slot: id, flags, guest_phys_addr: BigInt(gpa) },
        ...{ memory_size: BigInt(pages * PAGE_SIZE), userspace_addr: BigInt(address) },
      }),
    );

  it.each(['never', 'at-once'] as const)('that show the same memory do so on the destination (post-copy: %s)', (postCopy) => {
    const [here, there] = hosts();
    const { guest } = createVm(here);
    const firmware = here.vmm.map(null, 12 * PAGE_SIZE);
    slot(here.vmm, guest.vmFd, 1, 0xffff_8000, firmware, 8, KVM_MEM.READONLY);
    slot(here.vmm, guest.vmFd, 2, 0xe_0000, firmware + 4 * PAGE_SIZE, 8);
    for (let page = 0; page < 12; page++) here.vmm.write(firmware + page * PAGE_SIZE, Uint8Array.of(page + 1));
    const migration = new Migration(guest, there.vmm, (frame) => frame, { postCopy });
    expect(migration.run()).toBe('sent');
    const { received } = migration;
    const at = (gpa: number): number => {
      const found = received?.slots.find((each) => gpa >= each.gpa && gpa < each.gpa + each.bytes);
      return (found?.address ?? 0) + gpa - (found?.gpa ?? 0);
    };
    expect([0, 4, 7].map((page) => there.vmm.read(at(0xffff_8000 + page * PAGE_SIZE), 1)[0])).toEqual([1, 5, 8]);
    expect([0, 3, 4, 7].map((page) => there.vmm.read(at(0xe_0000 + page * PAGE_SIZE), 1)[0])).toEqual([5, 8, 9, 12]);
    // And nothing of it lies in the memory beside it.
    for (let page = 0; page < 16; page++) expect(there.vmm.read(at(page * PAGE_SIZE), 1)[0]).toBe(0);
    there.vmm.write(at(0xe_1000), Uint8Array.of(99));
    expect(there.vmm.read(at(0xffff_d000), 1)[0]).toBe(99);
    expect(migration.source.statistics(0).pagesSent).toBe(12);
  });

  it('keep their flags, and a dirty log that leaves out nothing that has come', () => {
    const [here, there] = hosts();
    const { guest } = createVm(here);
    const screen = here.vmm.map(null, 4 * PAGE_SIZE);
    slot(here.vmm, guest.vmFd, 1, 0xa_0000, screen, 4, KVM_MEM.LOG_DIRTY_PAGES);
    here.vmm.write(screen + 2 * PAGE_SIZE, Uint8Array.of(1));
    const { vm, migration } = migrate(guest, there);
    expect(vm.memslots.get(1)?.flags).toBe(KVM_MEM.LOG_DIRTY_PAGES);
    const bitmap = there.vmm.map(null, PAGE_SIZE);
    const request = kvm_dirty_log.encode({ slot: 1, dirty_bitmap: BigInt(bitmap) });
    expect(there.vmm.process.try(migration.arrived().vmFd, IOCTL.KVM_GET_DIRTY_LOG, request)).toBe(0);
    expect(there.vmm.read(bitmap, 1)[0]).toBe(0b100);
  });
});

describe('memory that is registered for encryption in pieces', () => {
  it('is pinned on the destination too: a host may not move what is encrypted', () => {
    const [here, there] = hosts();
    const guest = sevGuest(here);
    const half = 32 * PAGE_SIZE;
    expect(here.vmm.region(guest.vmFd, 'REG', guest.address, half)).toBe(0);
    expect(here.vmm.region(guest.vmFd, 'REG', guest.address + half, half)).toBe(0);
    const { vm, migration } = migrate(guest, there);
    const slot = migration.received?.slots[0];
    expect(vm.arch.sev?.regions).toMatchObject([{ address: BigInt(slot?.address ?? 0), size: BigInt(2 * half) }]);
  });
});

describe('a source that describes what no VMM would make', () => {
  it('does not have its destination enable a capability of its choice', () => {
    const [here, there] = hosts();
    const { guest } = createVm(here);
    const migration = new Migration(guest, there.vmm, (frame) => {
      if (frame.kind !== 'data' || frame.message.kind !== 'offer') return frame;
      const capabilities = [{ cap: KVM_CAP.VM_MOVE_ENC_CONTEXT_FROM, argument: 4n }];
      return { ...frame, message: { ...frame.message, guest: { ...frame.message.guest, capabilities } } };
    });
    expect(migration.run()).toBe('CAPABILITY_NOT_CARRIED');
    expect(there.vmm.process.kernel.vms.size).toBe(0);
  });
});
