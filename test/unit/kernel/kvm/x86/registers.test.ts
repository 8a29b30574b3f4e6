import { describe, expect, it } from 'vitest';
import { KVM_CAP } from '../../../../../server/kernel/uapi/capabilities.js';
import { KVM_EXIT, KVM_GUESTDBG, KVM_MSR_EXIT_REASON, KVM_SYNC_X86 } from '../../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../../server/kernel/uapi/ioctls.js';
import { kvm_run__debug, kvm_run__hypercall, kvm_run__msr, kvm_sync_regs } from '../../../../../server/kernel/uapi/kvm-run.js';
import { kvm_device_attr, kvm_translation } from '../../../../../server/kernel/uapi/kvm-structs.js';
import {
  kvm_clock_data,
  kvm_cpuid_entry2,
  kvm_cpuid2,
  kvm_debugregs,
  kvm_fpu,
  kvm_guest_debug,
  kvm_msr_entry,
  kvm_msr_filter,
  kvm_msrs,
  kvm_regs,
  kvm_vcpu_events,
  kvm_xcrs,
  kvm_xsave,
} from '../../../../../server/kernel/uapi/x86-structs.js';
import { CODE, Guest, STACK } from './guest.js';

type Entry = { function: number; eax?: number; ebx?: number; ecx?: number; edx?: number };

const cpuid = (entries: readonly Entry[]): Uint8Array => {
  const data = new Uint8Array(kvm_cpuid2.size + entries.length * kvm_cpuid_entry2.size);
  kvm_cpuid2.write(data, { nent: entries.length });
  entries.forEach((entry, index) => {
    kvm_cpuid_entry2.write(data, entry, kvm_cpuid2.size + index * kvm_cpuid_entry2.size);
  });
  return data;
};

const msrs = (entries: readonly { index: number; data?: bigint }[]): Uint8Array => {
  const data = new Uint8Array(kvm_msrs.size + entries.length * kvm_msr_entry.size);
  kvm_msrs.write(data, { nmsrs: entries.length });
  entries.forEach((entry, index) => {
    kvm_msr_entry.write(data, entry, kvm_msrs.size + index * kvm_msr_entry.size);
  });
  return data;
};

const msrData = (data: Uint8Array, index: number): bigint =>
  kvm_msr_entry.decode(data, kvm_msrs.size + index * kvm_msr_entry.size).data;

const LONG_MODE = { cr0: 0x8000_0011n, cr4: 0x20n, efer: 0x500n };
const C_BIT = 1n << 51n;

describe('the general registers', () => {
  it('come back one by one as they were set, all 64 bits of each', () => {
    const guest = new Guest();
    const fields = Object.entries(kvm_regs.fields).map(([name, { offset }]) => [
      name,
      (BigInt(offset + 1) << 56n) | BigInt(offset),
    ]);
    const set = { ...Object.fromEntries(fields), rflags: 0x3f_7fd7n };
    guest.setRegs(set);
    expect(guest.regs).toEqual(set);
  });
});

describe('KVM_SET_SREGS', () => {
  it.each([
    ['long mode without PAE', { cr0: 0x8000_0011n, cr4: 0n, efer: 0x500n }],
    ['LME and paging without LMA', { cr0: 0x8000_0011n, cr4: 0x20n, efer: 0x100n }],
    ['LMA without paging', { cr0: 0x11n, cr4: 0x20n, efer: 0x500n }],
    ['NW without CD', { cr0: 0x2000_0010n }],
    ['paging without protection', { cr0: 0x8000_0010n }],
    ['a bit above 32 in CR0', { cr0: 1n << 32n }],
    ['VMXE', { cr4: 1n << 13n }],
    ['an APIC base with reserved bits', { apic_base: 0xfee0_0901n }],
    ['a CR3 beyond MAXPHYADDR', { ...LONG_MODE, cr3: 1n << 36n }],
  ])('refuses %s, and changes nothing', (_name, values) => {
    const guest = new Guest();
    const before = guest.sregs;
    expect(guest.trySregs(() => values)).toBe('EINVAL');
    expect(guest.sregs).toEqual(before);
  });

  it('takes a CR3 with the C-bit only when CPUID says where it is, and the VM is an SEV guest', () => {
    const guest = new Guest();
    const widths = { function: 0x8000_0008, eax: 48 | (48 << 8) };
    const entries = [{ function: 0x8000_0000, eax: 0x8000_001f }, widths, { function: 0x8000_001f, eax: 2, ebx: 51 }];
    expect(guest.try(IOCTL.KVM_SET_CPUID2, cpuid(entries))).toBe(0);
    expect(guest.trySregs(() => ({ ...LONG_MODE, cr3: C_BIT | 0x1000n }))).toBe('EINVAL');
    expect(guest.trySregs(() => ({ ...LONG_MODE, cr3: 0x1000n }))).toBe(0);
  });

  it('queues the lowest vector of the interrupt bitmap', () => {
    const guest = new Guest();
    guest.setSregs(() => ({ interrupt_bitmap: [0n, 0b1010n, 1n, 0n] }));
    expect(guest.vcpu.arch.events.interrupt).toMatchObject({ injected: true, vector: 65 });
    expect(guest.sregs.interrupt_bitmap).toEqual([0n, 0b10n, 0n, 0n]);
  });

  it('ignores a bad CR8', () => {
    const guest = new Guest();
    guest.setSregs(() => ({ cr8: 5n }));
    guest.setSregs(() => ({ cr8: 16n }));
    expect(guest.sregs.cr8).toBe(5n);
  });
});

describe('registers', () => {
  it('keep bit 1 of RFLAGS whatever is set', () => {
    const guest = new Guest();
    guest.setRegs({ rflags: 0n, rip: 1n << 63n });
    expect(guest.regs).toMatchObject({ rflags: 2n, rip: 1n << 63n });
  });

  it('come and go through kvm_run when they are asked for', () => {
    const guest = new Guest().program('f4 f4');
    guest.setRun({ kvm_valid_regs: BigInt(KVM_SYNC_X86.REGS) });
    guest.run();
    const sync = (): ReturnType<typeof kvm_sync_regs.decode> => kvm_sync_regs.decode(guest.vcpu.runPages.run.bytes, 304);
    expect(sync().regs.rip).toBe(BigInt(CODE + 1));
    guest.setRun({ kvm_dirty_regs: BigInt(KVM_SYNC_X86.REGS) });
    kvm_sync_regs.write(guest.vcpu.runPages.run.bytes, { regs: { ...sync().regs, rax: 0x1234n, rip: BigInt(CODE) } }, 304);
    guest.run();
    expect(guest.regs).toMatchObject({ rax: 0x1234n, rip: BigInt(CODE + 1) });
    guest.setRun({ kvm_valid_regs: 8n });
    expect(guest.run().errno).toBe('EINVAL');
  });

  it('of the FPU go round, but for MXCSR', () => {
    const guest = new Guest();
    const xmm = Uint8Array.from({ length: 256 }, (_, index) => index);
    expect(guest.try(IOCTL.KVM_SET_FPU, kvm_fpu.encode({ fcw: 0x27f, xmm, mxcsr: 0x1f80 }))).toBe(0);
    expect(guest.get(IOCTL.KVM_GET_FPU, kvm_fpu)).toMatchObject({ fcw: 0x27f, mxcsr: 0, xmm });
  });

  it('of an XSAVE area go round; unknown components and reserved bits of MXCSR do not', () => {
    const guest = new Guest();
    const { region } = guest.get(IOCTL.KVM_GET_XSAVE, kvm_xsave);
    region.fill(0xab, 160, 176);
    expect(guest.try(IOCTL.KVM_SET_XSAVE, region)).toBe(0);
    expect(guest.get(IOCTL.KVM_GET_XSAVE, kvm_xsave).region).toEqual(region);
    const withAvx = region.slice();
    withAvx[512] = 7;
    expect(guest.try(IOCTL.KVM_SET_XSAVE, withAvx)).toBe('EINVAL');
    const badMxcsr = region.slice();
    badMxcsr[27] = 0xff;
    expect(guest.try(IOCTL.KVM_SET_XSAVE, badMxcsr)).toBe('EINVAL');
  });

  it('XCR0 needs x87, and what CPUID does not have cannot be set', () => {
    const guest = new Guest();
    const set = (value: bigint): string | number =>
      guest.try(IOCTL.KVM_SET_XCRS, kvm_xcrs.encode({ nr_xcrs: 1, xcrs: [{ xcr: 0, reserved: 0, value }] }));
    expect([1n, 0n, 2n, 3n].map(set)).toEqual([0, 'EINVAL', 'EINVAL', 'EINVAL']);
  });

  it('DR6 and DR7 have 32 bits', () => {
    const guest = new Guest();
    const set = (values: Parameters<typeof kvm_debugregs.encode>[0]): string | number =>
      guest.try(IOCTL.KVM_SET_DEBUGREGS, kvm_debugregs.encode(values));
    expect(set({ db: [0x1000n, 0n, 0n, 1n << 63n], dr6: 0xffff_0ff0n, dr7: 0x400n })).toBe(0);
    expect(guest.get(IOCTL.KVM_GET_DEBUGREGS, kvm_debugregs).db).toEqual([0x1000n, 0n, 0n, 1n << 63n]);
    expect(set({ dr6: 1n << 32n })).toBe('EINVAL');
    expect(set({ dr7: 1n << 32n })).toBe('EINVAL');
    expect(set({ flags: 1n })).toBe('EINVAL');
  });
});

describe('MSRs', () => {
  it('are done one after the other until one fails', () => {
    const guest = new Guest();
    const set = msrs([
      { index: 0xc000_0102, data: 0x1234n },
      { index: 0xdead_beef, data: 1n },
      { index: 0xc000_0102, data: 5n },
    ]);
    expect(guest.try(IOCTL.KVM_SET_MSRS, set)).toBe(1);
    const get = msrs([{ index: 0xc000_0102 }, { index: 0xdead_beef }]);
    expect(guest.try(IOCTL.KVM_GET_MSRS, get)).toBe(1);
    expect(msrData(get, 0)).toBe(0x1234n);
    expect(guest.try(IOCTL.KVM_GET_MSRS, kvm_msrs.encode({ nmsrs: 256 }))).toBe('E2BIG');
  });

  it('refuse what is not canonical, reserved memory types and reserved bits of EFER', () => {
    const guest = new Guest();
    for (const entry of [
      { index: 0xc000_0082, data: 1n << 63n },
      { index: 0xc000_0080, data: 2n },
      { index: 0x277, data: 0x02n },
      { index: 0x200, data: 7n },
    ])
      expect(guest.try(IOCTL.KVM_SET_MSRS, msrs([entry]))).toBe(0);
  });

  it('the guest cannot set EFER.LME without long mode in its CPUID', () => {
    // mov ecx,0xc0000080; rdmsr; or eax,0x100; wrmsr; hlt, with #GP going to 0x1100
    const program = '66b9800000c0 0f32 660d00010000 0f30 f4';
    const gp = (guest: Guest): Guest => {
      guest.program(program).write(13 * 4, '00110000');
      guest.write(0x1100, 'e680');
      return guest;
    };
    expect(gp(new Guest()).run().reason).toBe(KVM_EXIT.IO);
    const withLongMode = gp(new Guest());
    withLongMode.must(withLongMode.vcpuFd, IOCTL.KVM_SET_CPUID2, cpuid([{ function: 0x8000_0001, edx: 1 << 29 }]));
    expect(withLongMode.run().reason).toBe(KVM_EXIT.HLT);
    expect(withLongMode.sregs.efer).toBe(0x100n);
  });

  it('go to userspace where a filter denies them, and come back with its answer or #GP', () => {
    // mov ecx,0x174; rdmsr; hlt
    const guest = new Guest().program('66b974010000 0f32 f4 0f32 f4');
    guest.write(13 * 4, '00110000');
    guest.write(0x1100, 'e680');
    guest.enableCap(KVM_CAP.X86_USER_SPACE_MSR, BigInt(KVM_MSR_EXIT_REASON.FILTER));
    const range = { flags: 1, nmsrs: 8, base: 0x174, bitmap: BigInt(guest.map(4096)) };
    guest.must(guest.vmFd, IOCTL.KVM_X86_SET_MSR_FILTER, kvm_msr_filter.encode({ ranges: [range] }));
    expect(guest.run().reason).toBe(KVM_EXIT.X86_RDMSR);
    expect(guest.runPage(kvm_run__msr)).toMatchObject({ index: 0x174, reason: KVM_MSR_EXIT_REASON.FILTER, error: 0 });
    kvm_run__msr.write(guest.vcpu.runPages.run.bytes, { data: 0x5_0000_0099n });
    expect(guest.run().reason).toBe(KVM_EXIT.HLT);
    expect(guest.regs).toMatchObject({ rax: 0x99n, rdx: 5n });
    expect(guest.run().reason).toBe(KVM_EXIT.X86_RDMSR);
    kvm_run__msr.write(guest.vcpu.runPages.run.bytes, { error: 1 });
    expect(guest.run().reason).toBe(KVM_EXIT.IO);
  });

  it('TSC_ADJUST of the guest moves its TSC; the offset is an attribute of the vCPU', () => {
    const guest = new Guest();
    expect(guest.try(IOCTL.KVM_SET_MSRS, msrs([{ index: 0x10, data: 1_000_000n }]))).toBe(1);
    guest.time = 1_000_000n;
    const get = msrs([{ index: 0x10 }]);
    guest.try(IOCTL.KVM_GET_MSRS, get);
    expect(msrData(get, 0)).toBe(1_000_000n + 2_450_000n);
    const attribute = (attr: bigint): Uint8Array => kvm_device_attr.encode({ group: 0, attr, addr: BigInt(guest.memory) });
    expect(guest.try(IOCTL.KVM_GET_DEVICE_ATTR, attribute(0n))).toBe(0);
    expect(guest.read(0, 8)).toBe('40420f0000000000');
    expect(guest.try(IOCTL.KVM_HAS_DEVICE_ATTR, attribute(1n))).toBe('ENXIO');
  });
});

describe('CPUID', () => {
  it('gives what was set, with the bits that follow the registers', () => {
    const guest = new Guest().program('66b801000000 0fa2 f4');
    guest.must(guest.vcpuFd, IOCTL.KVM_SET_CPUID2, cpuid([{ function: 1, eax: 0x600, ecx: 1 << 26, edx: 0 }]));
    guest.run();
    // APIC (bit 9) is on; OSXSAVE follows CR4.
    expect(guest.regs).toMatchObject({ rax: 0x600n, rcx: 1n << 26n, rdx: 1n << 9n });
  });

  it('is fixed by the first run, though the same may be set again', () => {
    const guest = new Guest().program('f4');
    const entries = [
      { function: 0, eax: 1 },
      { function: 1, eax: 0x600 },
    ];
    guest.must(guest.vcpuFd, IOCTL.KVM_SET_CPUID2, cpuid(entries));
    guest.run();
    expect(guest.try(IOCTL.KVM_SET_CPUID2, cpuid(entries))).toBe(0);
    expect(
      guest.try(
        IOCTL.KVM_SET_CPUID2,
        cpuid([
          { function: 0, eax: 2 },
          { function: 1, eax: 0x600 },
        ]),
      ),
    ).toBe('EINVAL');
    expect(guest.try(IOCTL.KVM_SET_CPUID2, cpuid(entries.slice(1)))).toBe('EINVAL');
  });

  it('takes at most 256 entries, and virtual addresses of 48 or 57 bits', () => {
    const guest = new Guest();
    expect(guest.try(IOCTL.KVM_SET_CPUID2, kvm_cpuid2.encode({ nent: 257 }))).toBe('E2BIG');
    expect(guest.try(IOCTL.KVM_SET_CPUID2, cpuid([{ function: 0x8000_0008, eax: 32 << 8 }]))).toBe('EINVAL');
  });

  it.each(['amd', 'intel'] as const)('of a host by %s can be set as it is', (vendor) => {
    const guest = new Guest({ vendor });
    const kvm = guest.process.openKvm();
    const data = new Uint8Array(kvm_cpuid2.size + 64 * kvm_cpuid_entry2.size);
    kvm_cpuid2.write(data, { nent: 64 });
    guest.must(kvm, IOCTL.KVM_GET_SUPPORTED_CPUID, data);
    expect(guest.try(IOCTL.KVM_SET_CPUID2, data)).toBe(0);
    const leaf = guest.vcpu.arch.cpuid.find(0x8000_001f, 0);
    expect(leaf === undefined ? null : leaf.ebx).toBe(vendor === 'amd' ? 51 : null);
    kvm_cpuid2.write(data, { nent: 1 });
    expect(guest.process.try(kvm, IOCTL.KVM_GET_SUPPORTED_CPUID, data)).toBe('E2BIG');
  });
});

describe('events and debugging', () => {
  const events = (values: Parameters<typeof kvm_vcpu_events.encode>[0]): Uint8Array => kvm_vcpu_events.encode(values);

  it('an exception put in by hand goes through the IVT', () => {
    const guest = new Guest().program('f4');
    guest.write(6 * 4, '00110000');
    guest.write(0x1100, 'e680');
    const exception = { injected: 1, nr: 6, has_error_code: 0, pending: 0, error_code: 0 };
    expect(guest.try(IOCTL.KVM_SET_VCPU_EVENTS, events({ exception }))).toBe(0);
    expect(guest.run().reason).toBe(KVM_EXIT.IO);
  });

  it('flags need their capability', () => {
    const guest = new Guest();
    const flags = [0x10, 0x20, 0x40].map((each) => guest.try(IOCTL.KVM_SET_VCPU_EVENTS, events({ flags: each })));
    expect(flags).toEqual(['EINVAL', 'EINVAL', 'EINVAL']);
    guest.enableCap(KVM_CAP.X86_TRIPLE_FAULT_EVENT, 1n);
    expect(guest.get(IOCTL.KVM_GET_VCPU_EVENTS, kvm_vcpu_events).flags).toBe(0x2d);
    expect(guest.try(IOCTL.KVM_SET_VCPU_EVENTS, events({ flags: 0x20, triple_fault: { pending: 1 } }))).toBe(0);
    expect(guest.run().reason).toBe(KVM_EXIT.SHUTDOWN);
  });

  it('two NMIs wait, a third is lost; the second goes in when the first has returned', () => {
    // mov word [8],0x1100; mov word [10],0; hlt; hlt
    const guest = new Guest().program('c70608000011 c7060a000000 f4 f4');
    guest.write(0x1100, 'e680 cf');
    guest.run();
    for (let sent = 0; sent < 3; sent++) guest.must(guest.vcpuFd, IOCTL.KVM_NMI);
    expect(guest.get(IOCTL.KVM_GET_VCPU_EVENTS, kvm_vcpu_events).nmi.pending).toBe(2);
    const step = (): [number, bigint] => [guest.run().reason, guest.regs.rsp];
    const inHandler = BigInt(STACK - 6);
    expect([step(), step(), step()]).toEqual([
      [KVM_EXIT.IO, inHandler],
      [KVM_EXIT.IO, inHandler],
      [KVM_EXIT.HLT, BigInt(STACK)],
    ]);
  });

  it('a single step ends KVM_RUN after each instruction, also one that KVM emulates', () => {
    const guest = new Guest().program('90 e610 90 f4');
    const control = KVM_GUESTDBG.ENABLE | KVM_GUESTDBG.SINGLESTEP;
    guest.must(guest.vcpuFd, IOCTL.KVM_SET_GUEST_DEBUG, kvm_guest_debug.encode({ control }));
    const step = (): [number, bigint] => [guest.run().reason, guest.runPage(kvm_run__debug).pc];
    expect(step()).toEqual([KVM_EXIT.DEBUG, BigInt(CODE + 1)]);
    expect(guest.runPage(kvm_run__debug)).toMatchObject({ exception: 1, dr6: 0xffff_4ff0n });
    expect(guest.run().reason).toBe(KVM_EXIT.IO);
    expect(step()).toEqual([KVM_EXIT.DEBUG, BigInt(CODE + 3)]);
  });

  it('a breakpoint of userspace stops the guest, which does not see it in its own registers', () => {
    const guest = new Guest().program('90 90 90 f4');
    const control = KVM_GUESTDBG.ENABLE | KVM_GUESTDBG.USE_HW_BP;
    const debugreg = [BigInt(CODE + 2), 0n, 0n, 0n, 0n, 0n, 0n, 1n];
    guest.must(guest.vcpuFd, IOCTL.KVM_SET_GUEST_DEBUG, kvm_guest_debug.encode({ control, debugreg }));
    expect(guest.run().reason).toBe(KVM_EXIT.DEBUG);
    expect(guest.regs.rip).toBe(BigInt(CODE + 2));
    expect(guest.get(IOCTL.KVM_GET_DEBUGREGS, kvm_debugregs)).toMatchObject({ db: [0n, 0n, 0n, 0n], dr7: 0x400n });
  });

  it('INT3 goes to a debugger that wants it', () => {
    const guest = new Guest().program('90 cc');
    const control = KVM_GUESTDBG.ENABLE | KVM_GUESTDBG.USE_SW_BP;
    guest.must(guest.vcpuFd, IOCTL.KVM_SET_GUEST_DEBUG, kvm_guest_debug.encode({ control }));
    expect(guest.run().reason).toBe(KVM_EXIT.DEBUG);
    expect(guest.runPage(kvm_run__debug)).toMatchObject({ exception: 3, pc: BigInt(CODE + 1) });
  });

  it('injecting an exception while one waits is EBUSY', () => {
    const guest = new Guest();
    const inject = (bit: number): string | number =>
      guest.try(IOCTL.KVM_SET_GUEST_DEBUG, kvm_guest_debug.encode({ control: KVM_GUESTDBG.ENABLE | bit }));
    expect([inject(KVM_GUESTDBG.INJECT_DB), inject(KVM_GUESTDBG.INJECT_BP)]).toEqual([0, 'EBUSY']);
  });
});

describe('what the guest asks KVM for', () => {
  it('KVM_HC_MAP_GPA_RANGE goes to userspace when it is enabled, any other hypercall is unknown', () => {
    // mov eax,12; mov ebx,0x10000; mov ecx,1; xor edx,edx; vmmcall; hlt
    const program = '66b80c000000 66bb00000100 66b901000000 6631d2 0f01d9 f4';
    const plain = new Guest().program(program);
    plain.run();
    expect(plain.regs.rax).toBe(0xffff_fc18n);
    const guest = new Guest().program(program);
    expect(guest.enableCap(KVM_CAP.EXIT_HYPERCALL, 1n << 12n)).toBe(0);
    expect(guest.run().reason).toBe(KVM_EXIT.HYPERCALL);
    expect(guest.runPage(kvm_run__hypercall)).toMatchObject({ nr: 12n, args: [0x10000n, 1n, 0n, 0n, 0n, 0n], flags: 0n });
    kvm_run__hypercall.write(guest.vcpu.runPages.run.bytes, { ret: 7n });
    expect(guest.run().reason).toBe(KVM_EXIT.HLT);
    expect(guest.regs.rax).toBe(7n);
  });

  it('svm puts the vCPU through INIT at a shutdown, vmx leaves it as it was', () => {
    // lidt [0x3000] (limit 0); int3
    for (const [vendor, rip] of [
      ['amd', 0xfff0n],
      ['intel', BigInt(CODE + 5)],
    ] as const) {
      const guest = new Guest({ vendor }).program('0f011e0030 cc');
      expect(guest.run().reason).toBe(KVM_EXIT.SHUTDOWN);
      expect(guest.regs.rip).toBe(rip);
    }
  });
});

describe('KVM_TRANSLATE and clocks', () => {
  it('translates by identity without paging, and never fails', () => {
    const guest = new Guest();
    const of = (linear_address: bigint): unknown => guest.get(IOCTL.KVM_TRANSLATE, kvm_translation, { linear_address });
    expect(of(1n << 40n)).toMatchObject({ physical_address: 1n << 40n, valid: 1, writeable: 1, usermode: 0 });
    guest.setSregs(() => ({ ...LONG_MODE, cr3: 0x2000n }));
    expect(of(0x1000n)).toMatchObject({ physical_address: (1n << 64n) - 1n, valid: 0 });
  });

  it('the VM clock goes on from where it is set', () => {
    const guest = new Guest();
    guest.must(guest.vmFd, IOCTL.KVM_SET_CLOCK, kvm_clock_data.encode({ clock: 5_000n }));
    guest.time = 77n;
    const data = new Uint8Array(kvm_clock_data.size);
    guest.must(guest.vmFd, IOCTL.KVM_GET_CLOCK, data);
    expect(kvm_clock_data.decode(data).clock).toBe(5_077n);
    expect(guest.process.try(guest.vmFd, IOCTL.KVM_SET_CLOCK, kvm_clock_data.encode({ flags: 1 }))).toBe('EINVAL');
  });
});

describe('unknown requests', () => {
  it('are EINVAL on a vCPU and ENOTTY on a VM', () => {
    const guest = new Guest();
    expect(guest.try(0xaeff)).toBe('EINVAL');
    expect(guest.process.try(guest.vmFd, 0xaeff)).toBe('ENOTTY');
    expect(guest.try(IOCTL.KVM_SMI)).toBe('ENOTTY');
  });
});
