import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { KvmCap, KvmX86VmType } from '../../client/index.js';
import { freeAll, type Setup, setUp } from './sev-machine.js';

/** The SEV-SNP rows of the kernel's sev_init2_tests and sev_smoke_test, over the wire. */
const SNP = KvmX86VmType.KVM_X86_SNP_VM;
const POLICY = 0x30000n;
const DEBUG = 1n << 19n;
const MEMORY_BYTES = 0x1_0000;
const ENTRY = 0x1000;
const GUEST_MEMFD = 4;
const PRIVATE = 8n;
const NORMAL = 1;

const FLAT = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, s: 1, l: 0, db: 1, g: 1, avl: 0, unusable: 0 };

/** Reads SEV_STATUS, and terminates with it as the reason: `rdmsr; shl eax, 16; or eax, 0x100; xor edx, edx; wrmsr; vmgexit`. */
const TERMINATE_WITH_STATUS = Uint8Array.from([
  ...[0xb9, 0x31, 0x01, 0x01, 0xc0, 0x0f, 0x32, 0xc1, 0xe0, 0x10, 0x0d, 0x00, 0x01, 0x00, 0x00, 0x31, 0xd2],
  ...[0xb9, 0x30, 0x01, 0x01, 0xc0, 0x0f, 0x30, 0xf3, 0x0f, 0x01, 0xd9],
]);

describe('a host with --snp', () => {
  let setup: Setup;
  beforeAll(async () => {
    setup = await setUp('--snp');
  });
  afterAll(async () => {
    await freeAll(setup);
    await setup[Symbol.asyncDispose]();
  });

  it('offers the type that CPUID has', async () => {
    const types = await setup.kvm.checkExtension(KvmCap.KVM_CAP_VM_TYPES);
    const { entries } = await setup.kvm.getSupportedCpuid();
    const eax = entries.find((entry) => entry.function === 0x8000_001f)?.eax ?? 0;
    expect([(types >> SNP) & 1, (eax >> 4) & 1]).toEqual([1, 1]);
  });

  it.each([POLICY, POLICY | DEBUG])('launches and runs a guest with policy %s, which sees what it is', async (policy) => {
    const { kvm, sev, world } = setup;
    const { memory } = world.process;
    await using vm = await kvm.createVm(SNP);
    await vm.sev.init2({});
    const uaddr = await memory.mmap({ length: MEMORY_BYTES });
    await memory.write(uaddr + BigInt(ENTRY), TERMINATE_WITH_STATUS);
    await using gmem = await vm.createGuestMemfd({ size: BigInt(MEMORY_BYTES), flags: 0n });
    await vm.setUserMemoryRegion2({
      ...{ slot: 0, flags: GUEST_MEMFD, guest_phys_addr: 0n, memory_size: BigInt(MEMORY_BYTES) },
      ...{ userspace_addr: uaddr, guest_memfd: gmem.fd, guest_memfd_offset: 0n },
    });
    await vm.setMemoryAttributes({ address: 0n, size: BigInt(MEMORY_BYTES), attributes: PRIVATE });
    const vcpu = await vm.createVcpu(0);
    await vm.sev.snpLaunchStart({ policy }, sev.fd);
    await vm.sev.snpLaunchUpdate({ gfn_start: 0n, uaddr, len: BigInt(MEMORY_BYTES), type: NORMAL }, sev.fd);
    const sregs = await vcpu.getSregs();
    const data = { ...FLAT, selector: 0x10, type: 3 };
    const segments = { cs: { ...FLAT, selector: 8, type: 11 }, ds: data, es: data, fs: data, gs: data, ss: data };
    await vcpu.setSregs({ ...sregs, ...segments, cr0: sregs.cr0 | 1n });
    await vcpu.setRegs({ rip: BigInt(ENTRY), rflags: 2n });
    await vm.sev.snpLaunchFinish({}, sev.fd);
    const exit = await vcpu.run();
    if (exit.reason !== 'KVM_EXIT_SYSTEM_EVENT') throw new Error(exit.reason);
    expect(exit.system_event.type).toBe(6);
    expect(exit.system_event.data[0]).toBe(0x7_0100n);
  });
});
