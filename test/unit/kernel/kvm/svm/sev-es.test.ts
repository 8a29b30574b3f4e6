import { describe, expect, it } from 'vitest';
import { GHCB, GHCB_EXIT, ghcbMsrSevInfo, isGhcbFieldValid } from '../../../../../server/hardware/amd/ghcb.js';
import { SEV_FEATURE, VMSA } from '../../../../../server/hardware/amd/vmsa.js';
import { SvmExitCode } from '../../../../../server/hardware/cpu/types.js';
import { postMovePolicy } from '../../../../../server/kernel/kvm/post-move/index.js';
import { toSevInfo } from '../../../../../server/kernel/kvm/svm/sev-info.js';
import { toSvm } from '../../../../../server/kernel/kvm/svm/vcpu-svm.js';
import { KVM_EXIT, KVM_MP_STATE, KVM_SYSTEM_EVENT } from '../../../../../server/kernel/uapi/constants.js';
import { IOCTL } from '../../../../../server/kernel/uapi/ioctls.js';
import {
  kvm_run__hypercall,
  kvm_run__internal,
  kvm_run__io,
  kvm_run__mmio,
  kvm_run__msr,
  kvm_run__system_event,
} from '../../../../../server/kernel/uapi/kvm-run.js';
import { kvm_mp_state } from '../../../../../server/kernel/uapi/kvm-structs.js';
import { kvm_cpuid_entry2, kvm_cpuid2, kvm_regs } from '../../../../../server/kernel/uapi/x86-structs.js';
import { ask, createEsGuest, type EsGuest, GHCB_GPA, type GhcbRequest, RAM_BYTES, vmgexit } from './es-guest.js';
import { createSevRig, type Vmm } from './sev-rig.js';

const IOIO = BigInt(SvmExitCode.IOIO);
const OUT8 = 0x10n;
const IN8 = 0x11n;
const port = (number: bigint, flags: bigint): bigint => (number << 16n) | flags;
const OUT: GhcbRequest = { code: IOIO, info1: (0x10n << 16n) | OUT8, rax: 0n };
const BUFFER = BigInt(GHCB_GPA + GHCB.sharedBuffer.offset);
/** Memory outside the block. */
const OTHER = 0x1_0000n;

/** Runs until the next exit; its reason. */
const run = (guest: EsGuest, vmm: Vmm = guest.vmm): number => {
  vmm.process.must(vmm.process.ioctl(guest.vcpuFd, IOCTL.KVM_RUN));
  return exitOf(guest).exitReason;
};
const exitOf = ({ vcpus: [vcpu] }: EsGuest) => {
  if (vcpu === undefined) throw new Error('no vCPU');
  return vcpu.vcpu.arch.run;
};
/** The save area as the guest's CPU sees it. */
const saveAreaOf = ({ vm, vcpus: [vcpu] }: EsGuest): Uint8Array => {
  const key = vm.kernel.amd?.asidKeys.keyOf(toSevInfo(vm).asid);
  const { saveArea } = vcpu === undefined ? { saveArea: null } : toSvm(vcpu.vcpu).sevEs;
  if (key === null || key === undefined || saveArea === null) throw new Error('no save area');
  return saveArea.page.frame.view(key);
};
const ghcb = (guest: EsGuest): Uint8Array => guest.vmm.read(guest.address + GHCB_GPA, 4096);
const start = (requests: readonly GhcbRequest[], code?: readonly number[]) => {
  const rig = createSevRig();
  return { ...rig, guest: createEsGuest(rig.vmm, requests, code) };
};

describe('what an SEV-ES guest asks for in its GHCB', () => {
  it('OUT and IN reach userspace, and the result is in the GHCB', () => {
    const { guest } = start([
      { code: IOIO, info1: port(0x10n, OUT8), rax: 0x42n },
      { code: IOIO, info1: port(0x11n, IN8), rax: 0xff00n },
    ]);
    expect(run(guest)).toBe(KVM_EXIT.IO);
    expect(exitOf(guest).read(kvm_run__io)).toMatchObject({ direction: 1, size: 1, port: 0x10, count: 1 });
    expect(exitOf(guest).pio[0]).toBe(0x42);
    expect(run(guest)).toBe(KVM_EXIT.IO);
    expect(exitOf(guest).read(kvm_run__io)).toMatchObject({ direction: 0, size: 1, port: 0x11 });
    exitOf(guest).pio[0] = 0x99;
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(GHCB.rax.get(ghcb(guest))).toBe(0xff99n);
  });

  it('string I/O moves data through the shared buffer', () => {
    const { guest } = start([
      { code: IOIO, info1: port(0x10n, OUT8 | 4n), info2: 5n, scratch: BUFFER, data: Uint8Array.of(1, 2, 3, 4, 5) },
      { code: IOIO, info1: port(0x10n, IN8 | 4n), info2: 3n, scratch: BUFFER },
    ]);
    expect(run(guest)).toBe(KVM_EXIT.IO);
    expect(exitOf(guest).read(kvm_run__io)).toMatchObject({ port: 0x10, count: 5 });
    expect([...exitOf(guest).pio.subarray(0, 5)]).toEqual([1, 2, 3, 4, 5]);
    expect(run(guest)).toBe(KVM_EXIT.IO);
    exitOf(guest).pio.set([7, 8, 9]);
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect([...GHCB.sharedBuffer.get(ghcb(guest)).subarray(0, 3)]).toEqual([7, 8, 9]);
  });

  it('string I/O takes up to 64 KiB of other memory, and nothing at all', () => {
    const { guest } = start([
      { code: IOIO, info1: port(0x10n, OUT8 | 4n), info2: 0n, scratch: OTHER },
      { code: IOIO, info1: port(0x10n, OUT8 | 4n), info2: 0x1_0000n, scratch: OTHER },
    ]);
    for (let page = 0; page < 16; page++) {
      expect(run(guest)).toBe(KVM_EXIT.IO);
      expect(exitOf(guest).read(kvm_run__io)).toMatchObject({ port: 0x10, count: 4096 });
    }
    expect(run(guest)).toBe(KVM_EXIT.HLT);
  });

  it.each([
    [
      'EFAULT where there is no memory for the data',
      'EFAULT',
      { code: GHCB_EXIT.MMIO_WRITE, info2: 8n, scratch: BigInt(RAM_BYTES) },
    ],
    ['EFAULT where the data begin beyond all memory', 'EFAULT', { code: GHCB_EXIT.MMIO_READ, info2: 8n, scratch: 1n << 60n }],
    [
      'EINVAL for more elements than an int counts',
      'EINVAL',
      { code: IOIO, info1: port(0n, OUT8 | 4n), info2: 1n << 31n, scratch: OTHER },
    ],
  ] as const)('%s', (_, errno, request) => {
    const { guest, vmm } = start([request]);
    expect(vmm.run(guest.vcpuFd)).toBe(errno);
  });

  it('MMIO goes out in parts of at most eight bytes, and data comes back where the guest said', () => {
    const { guest } = start([
      { code: GHCB_EXIT.MMIO_WRITE, info1: 0xf000_0000n, info2: 12n, scratch: BUFFER, data: new Uint8Array(12).fill(0xab) },
      { code: GHCB_EXIT.MMIO_READ, info1: 0xf000_1000n, info2: 4n, scratch: BUFFER },
    ]);
    expect(run(guest)).toBe(KVM_EXIT.MMIO);
    expect(exitOf(guest).read(kvm_run__mmio)).toMatchObject({ phys_addr: 0xf000_0000n, len: 8, is_write: 1 });
    expect(run(guest)).toBe(KVM_EXIT.MMIO);
    expect(exitOf(guest).read(kvm_run__mmio)).toMatchObject({ phys_addr: 0xf000_0008n, len: 4, is_write: 1 });
    expect(run(guest)).toBe(KVM_EXIT.MMIO);
    expect(exitOf(guest).read(kvm_run__mmio)).toMatchObject({ phys_addr: 0xf000_1000n, len: 4, is_write: 0 });
    const [vcpu] = guest.vcpus;
    kvm_run__mmio.write(vcpu?.vcpu.runPages.run.bytes ?? new Uint8Array(0), { data: Uint8Array.of(1, 2, 3, 4) });
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect([...GHCB.sharedBuffer.get(ghcb(guest)).subarray(0, 4)]).toEqual([1, 2, 3, 4]);
  });

  it('CPUID answers what KVM_SET_CPUID2 has set', () => {
    const { vmm, guest } = start([{ code: BigInt(SvmExitCode.CPUID), rax: 0x4000_0000n, rcx: 0n }]);
    const entry = kvm_cpuid_entry2.encode({ function: 0x4000_0000, eax: 1, ebx: 2, ecx: 3, edx: 0xffff_ffff });
    const cpuid = new Uint8Array(kvm_cpuid2.size + entry.length);
    cpuid.set(kvm_cpuid2.encode({ nent: 1 }));
    cpuid.set(entry, kvm_cpuid2.size);
    vmm.process.must(vmm.process.ioctl(guest.vcpuFd, IOCTL.KVM_SET_CPUID2, cpuid));
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    const page = ghcb(guest);
    expect([GHCB.rax, GHCB.rbx, GHCB.rcx, GHCB.rdx].map((field) => field.get(page))).toEqual([1n, 2n, 3n, 0xffff_ffffn]);
  });

  it('whatever is asked, four registers come back declared: as they were, or zero', () => {
    const { guest } = start([{ code: GHCB_EXIT.HV_FEATURES, rax: 0x11n, rcx: 0x33n }]);
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    const page = ghcb(guest);
    const registers = [GHCB.rax, GHCB.rbx, GHCB.rcx, GHCB.rdx];
    expect(registers.map((field) => [isGhcbFieldValid(page, field), field.get(page)])).toEqual([
      [true, 0x11n],
      [true, 0n],
      [true, 0x33n],
      [true, 0n],
    ]);
    expect([GHCB.swScratch, GHCB.xcr0, GHCB.swExitCode].some((field) => isGhcbFieldValid(page, field))).toBe(false);
  });

  it('NMIs that are over are counted', () => {
    const { guest } = start([{ code: GHCB_EXIT.NMI_COMPLETE }]);
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(guest.vcpus[0]?.vcpu.arch.stat.nmi_window_exits).toBe(1);
  });

  it('the AP jump table is kept for the guest', () => {
    const { guest } = start([
      { code: GHCB_EXIT.AP_JUMP_TABLE, info1: 0n, info2: 0x1234_5000n },
      { code: GHCB_EXIT.AP_JUMP_TABLE, info1: 1n },
    ]);
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(GHCB.swExitInfo2.get(ghcb(guest))).toBe(0x1234_5000n);
  });

  it('a request for termination ends in KVM_EXIT_SYSTEM_EVENT with the block’s address', () => {
    const { guest } = start([{ code: GHCB_EXIT.TERMINATION }]);
    expect(run(guest)).toBe(KVM_EXIT.SYSTEM_EVENT);
    const event = exitOf(guest).read(kvm_run__system_event);
    expect([event.type, event.ndata, event.data[0]]).toEqual([KVM_SYSTEM_EVENT.SEV_TERM, 1, BigInt(GHCB_GPA)]);
  });

  it('an MSR is written and read through the block, and one that nobody knows is a #GP', () => {
    const cstar = 0xc000_0083n;
    const { guest } = start([
      { code: BigInt(SvmExitCode.MSR), info1: 1n, rcx: cstar, rax: 0x89ab_cdefn, rdx: 0x4567n },
      { code: BigInt(SvmExitCode.MSR), info1: 0n, rcx: cstar },
      OUT,
      { code: BigInt(SvmExitCode.MSR), info1: 0n, rcx: 0x1234_5678n },
    ]);
    guest.vm.arch.userSpaceMsrMask = 0;
    expect(run(guest)).toBe(KVM_EXIT.IO);
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    const page = ghcb(guest);
    expect([GHCB.swExitInfo1.get(page), GHCB.swExitInfo2.get(page)]).toEqual([1n, 0x8000_030dn]);
  });

  it('the value of an MSR comes back in RAX and RDX', () => {
    const { guest } = start([
      { code: BigInt(SvmExitCode.MSR), info1: 1n, rcx: 0xc000_0083n, rax: 0x89ab_cdefn, rdx: 0x4567n },
      { code: BigInt(SvmExitCode.MSR), info1: 0n, rcx: 0xc000_0083n },
    ]);
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    const page = ghcb(guest);
    expect([GHCB.rax.get(page), GHCB.rdx.get(page)]).toEqual([0x89ab_cdefn, 0x4567n]);
  });

  it('userspace may decide about an MSR, as it may about an instruction', () => {
    const { guest } = start([{ code: BigInt(SvmExitCode.MSR), info1: 0n, rcx: 0x1234_5678n }]);
    guest.vm.arch.userSpaceMsrMask = 2;
    expect(run(guest)).toBe(KVM_EXIT.X86_RDMSR);
    expect(exitOf(guest).read(kvm_run__msr)).toMatchObject({ index: 0x1234_5678, reason: 2 });
    const [vcpu] = guest.vcpus;
    kvm_run__msr.write(vcpu?.vcpu.runPages.run.bytes ?? new Uint8Array(0), { error: 0, data: 0x1_0000_0002n });
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect([GHCB.rax.get(ghcb(guest)), GHCB.rdx.get(ghcb(guest))]).toEqual([2n, 1n]);
  });

  it('a hypercall goes to userspace if it has asked for it, and the result is in RAX', () => {
    const mapGpaRange = { code: BigInt(SvmExitCode.VMMCALL), rax: 12n, rbx: 0x1000n, rcx: 1n, rdx: 0n };
    const { guest } = start([{ ...mapGpaRange, cpl: 3 }, OUT, { ...mapGpaRange, cpl: 0 }]);
    guest.vm.arch.hypercallExitMask = 1n << 12n;
    expect(run(guest)).toBe(KVM_EXIT.IO);
    expect(run(guest)).toBe(KVM_EXIT.HYPERCALL);
    expect(exitOf(guest).read(kvm_run__hypercall)).toMatchObject({ nr: 12n, flags: 1n });
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(GHCB.rax.get(ghcb(guest))).toBe(0n);
    const user = start([{ ...mapGpaRange, cpl: 3 }]);
    expect(run(user.guest)).toBe(KVM_EXIT.HLT);
    expect(BigInt.asIntN(64, GHCB.rax.get(ghcb(user.guest)))).toBe(-1n);
  });

  it('MONITOR, MWAIT, WBINVD and the debug control register are nothing to do for the host', () => {
    const codes = [SvmExitCode.MONITOR, SvmExitCode.MWAIT, SvmExitCode.WBINVD, SvmExitCode.READ_DR7, SvmExitCode.WRITE_DR7];
    const { guest } = start(codes.map((code) => ({ code: BigInt(code), rax: 0x400n, rcx: 0n, rdx: 0n })));
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect([GHCB.swExitInfo1.get(ghcb(guest)), GHCB.swExitInfo2.get(ghcb(guest))]).toEqual([0n, 0n]);
  });

  it.each([
    ['RDPMC is a #GP', SvmExitCode.RDPMC],
    ['RDTSCP is a #UD', SvmExitCode.RDTSCP],
  ])('%s, which ends a guest without a handler', (_, code) => {
    const { guest } = start([{ code: BigInt(code), rcx: 0n }]);
    expect(run(guest)).toBe(KVM_EXIT.SHUTDOWN);
  });

  it('a request that is well formed and that svm never intercepts is an internal error with its code', () => {
    const { guest } = start([{ code: BigInt(SvmExitCode.RDTSC) }]);
    expect(run(guest)).toBe(KVM_EXIT.INTERNAL_ERROR);
    expect(exitOf(guest).read(kvm_run__internal).data[0]).toBe(BigInt(SvmExitCode.RDTSC));
  });

  it('a #VC that the guest could not handle ends KVM_RUN', () => {
    const { guest, vmm } = start([{ code: GHCB_EXIT.UNSUPPORTED, info1: 0x7bn }]);
    expect(vmm.run(guest.vcpuFd)).toBe('EINVAL');
  });

  for (const [name, request, reason] of [
    ['a block of another usage', { code: IOIO, usage: 1 }, 2n],
    ['an exit code that is not declared', { code: IOIO, undeclared: ['swExitCode'] }, 4n],
    ['OUT without a register', { code: IOIO, info1: port(0x10n, OUT8) }, 4n],
    ['a scratch area that leaves the block', { code: GHCB_EXIT.MMIO_WRITE, info2: 8n, scratch: BUFFER + 2030n }, 3n],
    ['a scratch area before the shared buffer', { code: GHCB_EXIT.MMIO_WRITE, info2: 8n, scratch: BUFFER - 16n }, 3n],
    ['a scratch area of more than 64 KiB', { code: IOIO, info1: port(0x10n, OUT8 | 4n), info2: 0x1_0001n, scratch: OTHER }, 3n],
    ['a scratch area that wraps', { code: GHCB_EXIT.MMIO_READ, info2: 16n, scratch: 2n ** 64n - 8n }, 3n],
    ['a scratch area at 0', { code: GHCB_EXIT.MMIO_READ, info2: 16n, scratch: 0n }, 3n],
    ['MMIO without a scratch area', { code: GHCB_EXIT.MMIO_READ, info1: 0xf000_0000n, info2: 4n }, 4n],
    ['string I/O without a scratch area', { code: IOIO, info1: port(0x10n, OUT8 | 4n), info2: 1n }, 4n],
    ['an operand of no size', { code: IOIO, info1: port(0x10n, 0n), rax: 0n }, 5n],
    ['CPUID of XSAVE areas without XCR0', { code: BigInt(SvmExitCode.CPUID), rax: 0xdn, rcx: 0n }, 4n],
    ['an exit that there is not', { code: 0x7777n }, 6n],
    ['RDMSR without the MSR', { code: BigInt(SvmExitCode.MSR) }, 4n],
    ['WRMSR without a value', { code: BigInt(SvmExitCode.MSR), info1: 1n, rcx: 0xc000_0083n, rax: 0n }, 4n],
    ['a hypercall without its privilege level', { code: BigInt(SvmExitCode.VMMCALL), rax: 12n }, 4n],
    ['MWAIT without its hints', { code: BigInt(SvmExitCode.MWAIT), rax: 0n }, 4n],
    ['a write of DR7 without its value', { code: BigInt(SvmExitCode.WRITE_DR7) }, 4n],
    ['a page state change of a guest that is not SEV-SNP', { code: GHCB_EXIT.PSC, scratch: BUFFER }, 4n],
    ['AP creation of a guest that is not SEV-SNP', { code: GHCB_EXIT.AP_CREATION, rax: 0n }, 4n],
  ] as const)
    it(`tells the guest that ${name} is malformed`, () => {
      const { guest } = start([request]);
      expect(run(guest)).toBe(KVM_EXIT.HLT);
      const page = ghcb(guest);
      expect([GHCB.swExitInfo1.get(page), GHCB.swExitInfo2.get(page)]).toEqual([2n, reason]);
    });
});

describe('the GHCB MSR protocol', () => {
  it('answers SEV_INFO in the MSR', () => {
    const { guest } = start([], vmgexit(2));
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    const [vcpu] = guest.vcpus;
    if (vcpu === undefined) throw new Error('no vCPU');
    const version1 = 1n << 48n;
    expect(toSvm(vcpu.vcpu).vmcb.ghcb).toBe((ghcbMsrSevInfo(51) & (version1 - 1n)) | version1);
  });

  it('0x100 terminates', () => {
    const { guest } = start([], vmgexit(0x100));
    expect(run(guest)).toBe(KVM_EXIT.SYSTEM_EVENT);
    expect(exitOf(guest).read(kvm_run__system_event).data[0]).toBe(0x100n);
  });

  it.each([0x016, 0x7ff])('leaves a request that nobody knows as it is, for the guest to see: %i', (request) => {
    const { guest } = start([], vmgexit(request));
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    const [vcpu] = guest.vcpus;
    expect(vcpu === undefined ? null : toSvm(vcpu.vcpu).vmcb.ghcb).toBe(BigInt(request));
  });

  it.each([0x010, 0x012, 0x014])('a request for SEV-SNP guests terminates another one: %i', (request) => {
    const { guest } = start([], vmgexit(request));
    expect(run(guest)).toBe(KVM_EXIT.SYSTEM_EVENT);
    expect(exitOf(guest).read(kvm_run__system_event).data[0]).toBe(BigInt(request));
  });

  it('AP reset hold is userspace’s without an in-kernel APIC', () => {
    const { guest } = start([], vmgexit(6));
    expect(run(guest)).toBe(KVM_EXIT.AP_RESET_HOLD);
  });
});

describe('an application processor that waits for its SIPI in the kernel', () => {
  /** Starts the second vCPU, which waits where its code has put it; then it gets one more SIPI, and goes on to its end. */
  const wakeUp = (hold: readonly number[], requests: readonly GhcbRequest[] = []) => {
    const { vmm } = createSevRig();
    // mov eax, [RDMSR of the GHCB MSR]; mov [GHCB + 0x900], eax
    const look = [0xb9, 0x30, 0x01, 0x01, 0xc0, 0x0f, 0x32, 0x89, 0x04, 0x25, 0, 0x89, 0, 0];
    const guest = createEsGuest(vmm, requests, [...hold, ...look, ...vmgexit(0x100)], { vcpus: 2, irqchip: true });
    const ap = guest.vcpus[1];
    if (ap === undefined) throw new Error('no second vCPU');
    const sipi = () => {
      const state = kvm_mp_state.encode({ mp_state: KVM_MP_STATE.SIPI_RECEIVED });
      vmm.process.must(vmm.process.ioctl(ap.fd, IOCTL.KVM_SET_MP_STATE, state));
    };
    sipi();
    const held = vmm.process.startIoctl(ap.fd, IOCTL.KVM_RUN);
    expect(held.result()).toBeUndefined();
    expect(ap.vcpu.arch.mpState).toBe(KVM_MP_STATE.AP_RESET_HOLD);
    held.task.signal(2);
    vmm.process.kernel.scheduler.run();
    expect(held.result()).toMatchObject({ errno: 'EINTR' });
    sipi();
    vmm.process.must(vmm.process.ioctl(ap.fd, IOCTL.KVM_RUN));
    expect(ap.vcpu.arch.run.exitReason).toBe(KVM_EXIT.SYSTEM_EVENT);
    return { page: ghcb(guest), msr: new DataView(ghcb(guest).buffer, ghcb(guest).byteOffset).getUint32(0x900, true) };
  };

  it('is told in the MSR that it goes on', () => {
    expect(wakeUp(vmgexit(6)).msr).toBe(0x1007);
  });

  it('is told in its GHCB', () => {
    const { page } = wakeUp(ask(0), [{ code: GHCB_EXIT.AP_HLT_LOOP }]);
    expect(GHCB.swExitInfo2.get(page)).toBe(1n);
  });
});

describe('debug registers', () => {
  // mov eax, 0x1234; mov dr0, rax; mov eax, 0x400; mov dr7, rax; mov rax, dr7
  const code = [0xb8, 0x34, 0x12, 0, 0, 0x0f, 0x23, 0xc0, 0xb8, 0, 4, 0, 0, 0x0f, 0x23, 0xf8, 0x0f, 0x21, 0xf8];

  it('are the guest’s own with DebugSwap: DR7 is no exit, and all are in the save area', () => {
    const { vmm } = createSevRig();
    const guest = createEsGuest(vmm, [], code, { features: SEV_FEATURE.DEBUG_SWAP });
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(VMSA.dr0.get(saveAreaOf(guest))).toBe(0x1234n);
  });

  it('are not without: DR7 is #VC, and DR0 to DR3 stay outside the save area', () => {
    const { vmm } = createSevRig();
    const guest = createEsGuest(vmm, [], code);
    expect(run(guest)).toBe(KVM_EXIT.SHUTDOWN);
    expect(VMSA.dr0.get(saveAreaOf(guest))).toBe(0n);
  });
});

describe('the state of an encrypted vCPU', () => {
  it('is not what KVM_GET_REGS reports, before or after the guest has run', () => {
    const { guest, vmm, host } = start([{ code: IOIO, info1: port(0x10n, OUT8), rax: 1n }]);
    run(guest);
    const regs = new Uint8Array(kvm_regs.size);
    vmm.process.must(vmm.process.ioctl(guest.vcpuFd, IOCTL.KVM_GET_REGS, regs));
    expect(kvm_regs.decode(regs).rip).toBe(0x5000n);
    expect(guest.vcpus[0]?.vcpu.arch.cpu.state.rip).not.toBe(0x5000n);
    vmm.process.must(vmm.process.ioctl(guest.vcpuFd, IOCTL.KVM_SET_REGS, kvm_regs.encode({ rip: 0n })));
    expect(run(guest)).toBe(KVM_EXIT.HLT);
    expect(host.kernel.findings.all).toEqual([]);
  });

  it('FAIL_ENTRY without LAUNCH_UPDATE_VMSA: the save area decrypts to nonsense', () => {
    const { vmm } = createSevRig();
    const { fd, vcpus } = vmm.createSevGuest({ es: true });
    vmm.addSlot({ fd }, 0, 0, vmm.map(null, RAM_BYTES), RAM_BYTES);
    expect(vmm.run(vcpus[0]?.fd ?? -1)).toBe(0);
    expect(vcpus[0]?.vcpu.arch.run.exitReason).toBe(KVM_EXIT.FAIL_ENTRY);
  });

  it('moves: the destination goes on where the source was, and the old vCPU cannot enter', () => {
    const rig = createSevRig();
    const { vmm, host } = rig;
    const other = rig.spawn();
    const guest = createEsGuest(vmm, [
      { code: IOIO, info1: port(0x10n, OUT8), rax: 1n },
      { code: IOIO, info1: port(0x11n, OUT8), rax: 2n },
    ]);
    guest.vm.postMovePolicy = postMovePolicy('NOT_DEAD');
    expect([run(guest), exitOf(guest).read(kvm_run__io).port]).toEqual([KVM_EXIT.IO, 0x10]);
    const [old] = guest.vcpus;
    if (old === undefined) throw new Error('no vCPU');
    old.vcpu.runPages.run.bytes[1] = 1;
    expect(vmm.run(guest.vcpuFd)).toBe('EINTR');
    old.vcpu.runPages.run.bytes[1] = 0;

    const destination = other.createGuest(1);
    const [vcpu] = destination.vcpus;
    if (vcpu === undefined) throw new Error('no vCPU');
    const address = other.map(guest.ram, RAM_BYTES);
    other.addSlot(destination, 0, 0, address, RAM_BYTES);
    expect(other.tryMove(destination.fd, vmm.send(guest.fd, other))).toBe(0);
    const moved: EsGuest = { ...destination, vcpuFd: vcpu.fd, ram: guest.ram, address };
    expect([run(moved), exitOf(moved).read(kvm_run__io).port]).toEqual([KVM_EXIT.IO, 0x11]);
    expect(run(moved)).toBe(KVM_EXIT.HLT);
    expect(host.kernel.findings.all).toEqual([]);

    expect([vmm.run(guest.vcpuFd), old.vcpu.arch.run.exitReason]).toEqual([0, KVM_EXIT.FAIL_ENTRY]);
    other.process.closeAll();
    vmm.process.closeAll();
    host.kernel.sanitizer.callEnded();
    expect(host.kernel.findings.all).toEqual([]);
  });

  it('loses the result of a load that was under way when it moved, and that is a finding', () => {
    const { vmm, guest, host } = start([{ code: IOIO, info1: port(0x11n, IN8) }]);
    run(guest);
    expect(vmm.tryMove(vmm.createGuest(1).fd, guest.fd)).toBe(0);
    expect(host.kernel.findings.all.map(({ domain, kind }) => `${domain} ${kind}`)).toEqual(['guest IO_RESULT_LOST']);
  });
});
