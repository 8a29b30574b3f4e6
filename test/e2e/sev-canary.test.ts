import { randomBytes } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { guestOwner, KvmX86VmType, type Process, SimKvm, type Vcpu, type Vm } from '../../client/index.js';
import { startTestDaemon } from '../helpers/daemon.js';
import { Needles } from '../helpers/needles.js';
import { startTapProxy } from '../helpers/tap-proxy.js';
import { ENTRY, MEMORY_BYTES } from './sev-machine.js';

/*
 * A host-side reader looks for what a guest has derived from a secret: in DRAM, in every reply and in the log, after launch, run,
 * move and debugging. The same reader finds all of it on a plain VM.
 */
const DRAM_BYTES = 2 * 2 ** 20;
/** What lies below the memory that the host hands out. */
const FIRST_BYTES = 16 * 2 ** 20;
const CHUNK = 2 ** 20;
const SECRET = 0x9000;
const SCRATCH = 0x8000;
const CANARY = 0x1_0000;
const BLOCKS = 1024;
const WORDS = BLOCKS * 4;
const POLICY = 0;

const u32 = (value: number): number[] => [...new Uint8Array(new Uint32Array([value]).buffer)];

/** One word of xorshift128 to [edi]. */
const NEXT_WORD = [
  ...[0x89, 0xd8, 0xc1, 0xe0, 11, 0x31, 0xd8], // mov eax, ebx; shl eax, 11; xor eax, ebx
  ...[0x89, 0xcb, 0x89, 0xd1, 0x89, 0xf2], // mov ebx, ecx; mov ecx, edx; mov edx, esi
  ...[0xa3, ...u32(SCRATCH), 0xc1, 0xe8, 8], // mov [SCRATCH], eax; shr eax, 8
  ...[0x33, 0x05, ...u32(SCRATCH)], // xor eax, [SCRATCH]
  ...[0x89, 0x35, ...u32(SCRATCH), 0xc1, 0xee, 19], // mov [SCRATCH], esi; shr esi, 19
  ...[0x33, 0x35, ...u32(SCRATCH), 0x31, 0xc6], // xor esi, [SCRATCH]; xor esi, eax
  ...[0x89, 0x37, 0x83, 0xc7, 4, 0x4d], // mov [edi], esi; add edi, 4; dec ebp
];

/** Derives the blocks from the secret, forgets its registers, and says so on a port; then only says so, again and again. */
const CODE = Uint8Array.from([
  ...[0x8b, 0x1d, ...u32(SECRET)], // mov ebx, [SECRET]
  ...[0x8b, 0x0d, ...u32(SECRET + 4)], // mov ecx, [SECRET + 4]
  ...[0x8b, 0x15, ...u32(SECRET + 8)], // mov edx, [SECRET + 8]
  ...[0x8b, 0x35, ...u32(SECRET + 12)], // mov esi, [SECRET + 12]
  ...[0xbf, ...u32(CANARY), 0xbd, ...u32(WORDS)], // mov edi, CANARY; mov ebp, WORDS
  ...[...NEXT_WORD, 0x75, 0x100 - NEXT_WORD.length - 2], // jnz
  ...[0x31, 0xc0, 0x31, 0xdb, 0x31, 0xc9, 0x31, 0xd2, 0x31, 0xf6], // registers = 0
  ...[0xe6, 0x80, 0xeb, 0xfc], // out 0x80, al; jmp
]);

/** What the guest derives, in blocks of 16 bytes. */
const derived = (secret: Uint8Array): Uint8Array[] => {
  let [x = 0, y = 0, z = 0, w = 0] = new Uint32Array(Uint8Array.from(secret).buffer);
  const words = new Uint32Array(WORDS);
  for (let index = 0; index < WORDS; index++) {
    const t = x ^ (x << 11);
    [x, y, z] = [y, z, w];
    w = (w ^ (w >>> 19) ^ t ^ (t >>> 8)) >>> 0;
    words[index] = w;
  }
  const bytes = new Uint8Array(words.buffer);
  return Array.from({ length: BLOCKS }, (_, index) => bytes.slice(index * 16, index * 16 + 16));
};

const FLAT = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, s: 1, l: 0, db: 1, g: 1, avl: 0, unusable: 0 };

const addMemory = (vm: Vm, uaddr: bigint) =>
  vm.setUserMemoryRegion({ slot: 0, guest_phys_addr: 0, memory_size: MEMORY_BYTES, userspace_addr: uaddr, flags: 0 });

const startAt = async (vcpu: Vcpu): Promise<void> => {
  const sregs = await vcpu.getSregs();
  const data = { ...FLAT, selector: 0x10, type: 3 };
  const segments = { cs: { ...FLAT, selector: 8, type: 11 }, ds: data, es: data, fs: data, gs: data, ss: data };
  await vcpu.setSregs({ ...sregs, ...segments, cr0: sregs.cr0 | 1n });
  await vcpu.setRegs({ rip: BigInt(ENTRY), rflags: 2n });
};

/** Runs the guest until it has said once more that it is ready. */
const runOnce = async (vcpu: Vcpu): Promise<void> => {
  expect((await vcpu.run()).reason).toBe('KVM_EXIT_IO');
};

/** A daemon whose replies and log are kept, and all of whose memory can be read. */
const observedHost = async () => {
  const daemon = await startTestDaemon('--memory', String(DRAM_BYTES), '--log-level', 'debug');
  const tap = await startTapProxy(daemon.address);
  const simkvm = await SimKvm.connect(tap.target);
  return {
    simkvm,
    /** Where the secrets are seen. */
    async scan(needles: Needles) {
      const dram = new Set<number>();
      for (let at = 0; at < FIRST_BYTES + DRAM_BYTES; at += CHUNK)
        for (const secret of needles.in(await simkvm.host.readPhysical(at, CHUNK))) dram.add(secret);
      return { dram: dram.size, replies: needles.in(tap.take()).size, log: needles.in(Buffer.from(daemon.log())).size };
    },
    async [Symbol.asyncDispose]() {
      await simkvm[Symbol.asyncDispose]();
      await tap[Symbol.asyncDispose]();
      await daemon[Symbol.asyncDispose]();
    },
  };
};

const NOWHERE = { dram: 0, replies: 0, log: 0 };

const mapGuest = async ({ memory }: Process): Promise<bigint> => {
  const uaddr = await memory.mmap({ length: MEMORY_BYTES });
  await memory.write(uaddr + BigInt(ENTRY), CODE);
  return uaddr;
};

/** A SEV guest, launched with a session and given a secret that its owner has sealed for it; and what to look for. */
const secretGuest = async (simkvm: SimKvm) => {
  const process = await simkvm.attach();
  const [kvm, sev] = [await process.openKvm(), await process.openSev()];
  const cpuid = await kvm.getSupportedCpuid();
  const { pdh_cert_address_bytes: pdh } = await sev.pdhCertExport();
  const session = guestOwner.createLaunchSession({ pdh, policy: POLICY });
  const uaddr = await mapGuest(process);
  const vm = await kvm.createVm(KvmX86VmType.KVM_X86_DEFAULT_VM);
  await vm.sev.init();
  await addMemory(vm, uaddr);
  const vcpu = await vm.createVcpu(0);
  await vcpu.setCpuid2(cpuid);
  await startAt(vcpu);
  await vm.memoryEncryptRegRegion({ addr: uaddr, size: MEMORY_BYTES });
  const start = { policy: POLICY, dh_uaddr_bytes: session.certificate, session_uaddr_bytes: session.session };
  await vm.sev.launchStart(start, sev.fd);
  const image = await process.memory.read(uaddr, MEMORY_BYTES);
  await vm.sev.launchUpdateData({ uaddr, len: MEMORY_BYTES });

  const { uaddr_bytes: measurement } = await vm.sev.launchMeasure({ len: 48 });
  const { api_major: apiMajor, api_minor: apiMinor, build } = await sev.platformStatus();
  const measured = { apiMajor, apiMinor, build, policy: POLICY, digest: guestOwner.launchDigest(image) };
  expect(guestOwner.verifyMeasurement(measurement, session.keys.tik, measured)).toBe(true);
  const secret = new Uint8Array(randomBytes(16));
  const packet = guestOwner.sealSecret(session.keys, measurement, secret);
  const guest = { guest_uaddr: uaddr + BigInt(SECRET), guest_len: secret.length };
  await vm.sev.launchSecret({ hdr_uaddr_bytes: packet.header, trans_uaddr_bytes: packet.data, ...guest });
  await vm.sev.launchFinish();
  const needles = new Needles([...derived(secret), secret, session.keys.tek, session.keys.tik]);
  return { process, kvm, cpuid, vm, vcpu, uaddr, needles };
};

describe('what a guest derives from its secret', () => {
  it('is seen nowhere outside a SEV guest: not after launch, run, debugging or move', async () => {
    await using host = await observedHost();
    const { process, kvm, cpuid, vm: source, vcpu, uaddr, needles } = await secretGuest(host.simkvm);
    expect(await host.scan(needles), 'launch').toEqual(NOWHERE);

    await runOnce(vcpu);
    await process.memory.read(uaddr, MEMORY_BYTES);
    expect(await host.scan(needles), 'run').toEqual(NOWHERE);

    const plain = await process.memory.mmap({ length: 4096 });
    const code = uaddr + BigInt(ENTRY);
    await source.sev.dbgDecrypt({ src_uaddr: code, dst_uaddr: plain, len: CODE.length });
    expect(await process.memory.read(plain, CODE.length)).toEqual(CODE);
    await source.sev.dbgEncrypt({ src_uaddr: plain, dst_uaddr: code, len: CODE.length });
    await runOnce(vcpu);
    expect(await host.scan(needles), 'debug').toEqual(NOWHERE);

    const [regs, sregs] = [await vcpu.getRegs(), await vcpu.getSregs()];
    const destination = await kvm.createVm(KvmX86VmType.KVM_X86_DEFAULT_VM);
    await addMemory(destination, uaddr);
    const next = await destination.createVcpu(0);
    await destination.moveEncContextFrom(source);
    await next.setCpuid2(cpuid);
    await next.setSregs(sregs);
    await next.setRegs(regs);
    await runOnce(next);
    expect(await host.scan(needles), 'move').toEqual(NOWHERE);
  });

  it('is there: the guest’s memory has it, decrypted as the policy allows', async () => {
    await using host = await observedHost();
    const { process, vm, vcpu, uaddr, needles } = await secretGuest(host.simkvm);
    await runOnce(vcpu);
    const plain = await process.memory.mmap({ length: BLOCKS * 16 });
    await vm.sev.dbgDecrypt({ src_uaddr: uaddr + BigInt(CANARY), dst_uaddr: plain, len: BLOCKS * 16 });
    expect((await host.scan(needles)).dram).toBe(BLOCKS);
  });

  it('is seen by the same reader in a plain VM', async () => {
    await using host = await observedHost();
    const process = await host.simkvm.attach();
    const kvm = await process.openKvm();
    const secret = new Uint8Array(randomBytes(16));
    const needles = new Needles([...derived(secret), secret]);
    const uaddr = await mapGuest(process);
    await process.memory.write(uaddr + BigInt(SECRET), secret);
    const vm = await kvm.createVm();
    await addMemory(vm, uaddr);
    const vcpu = await vm.createVcpu(0);
    await startAt(vcpu);
    await runOnce(vcpu);
    const { dram, replies } = await host.scan(needles);
    expect(dram).toBe(BLOCKS + 1);
    // A reply comes in frames of 16 KiB, and a block may lie across two of them.
    expect(replies).toBeGreaterThan(BLOCKS - 8);
  });
});

describe('the reader', () => {
  it('finds what is shifted, in hex and in base64', () => {
    const secret = new Uint8Array(randomBytes(16));
    const needles = new Needles([new Uint8Array(randomBytes(16)), secret]);
    const base64 = (before: number) =>
      Buffer.from(Buffer.concat([randomBytes(before), secret, randomBytes(3)]).toString('base64'));
    const hex = Buffer.from(secret).toString('hex');
    const shown = [
      ...[0, 1, 2, 5].map(base64),
      Buffer.from(hex),
      Buffer.from(hex.toUpperCase()),
      Buffer.concat([randomBytes(7), secret]),
    ];
    for (const haystack of shown) expect([...needles.in(haystack)]).toEqual([1]);
    expect(needles.in(secret.subarray(1)).size).toBe(0);
  });
});
