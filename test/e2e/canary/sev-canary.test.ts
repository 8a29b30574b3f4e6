import { randomBytes } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import {
  guestOwner,
  KvmX86VmType,
  type Process,
  type SevPlatform,
  type SimKvm,
  type Vcpu,
  type Vm,
} from '../../../client/index.js';
import { Needles } from '../../helpers/needles.js';
import {
  BLOCKS,
  CANARY,
  derive,
  derived,
  ENTRY,
  FLAT_SEGMENTS,
  FORGET,
  remember,
  SAY_BY_MSR,
  SAY_BY_PORT,
} from './canary-guest.js';
import { NOTHING, observedHost, type Secret, seek } from './observed-host.js';

/*
 * A host-side reader looks for what a guest has derived from a secret, and for every key: in DRAM, in every reply and in the log,
 * after launch, run, debugging, sending and move. The same reader finds all of it on a plain VM.
 */
const MEMORY_BYTES = 0x4_0000;
const PAGE = 4096;
const SECRET = 0x9000;
const CERTIFICATE = 2084;
const SESSION = 128;
const HEADER = 52;
/** What a guest with SSE needs in CR4: OSFXSR. */
const CR4_OSFXSR = 0x200n;

const SEV = {
  name: 'SEV',
  policy: 0,
  init: (vm: Vm) => vm.sev.init(),
  code: Uint8Array.from([...derive(SECRET), ...FORGET, ...SAY_BY_PORT]),
  exit: 'KVM_EXIT_IO',
} as const;
const SEV_ES = {
  name: 'SEV-ES',
  policy: 4,
  init: (vm: Vm) => vm.sev.esInit(),
  code: Uint8Array.from([...derive(SECRET), ...remember(SECRET), ...SAY_BY_MSR]),
  exit: 'KVM_EXIT_AP_RESET_HOLD',
} as const;
type Kind = typeof SEV | typeof SEV_ES;

const addMemory = (vm: Vm, uaddr: bigint) =>
  vm.setUserMemoryRegion({ slot: 0, guest_phys_addr: 0, memory_size: MEMORY_BYTES, userspace_addr: uaddr, flags: 0 });

const startAt = async (vcpu: Vcpu): Promise<void> => {
  const sregs = await vcpu.getSregs();
  await vcpu.setSregs({ ...sregs, ...FLAT_SEGMENTS, cr0: sregs.cr0 | 1n, cr4: sregs.cr4 | CR4_OSFXSR });
  await vcpu.setRegs({ rip: BigInt(ENTRY), rflags: 2n });
};

const mapGuest = async ({ memory }: Process, code: Uint8Array): Promise<bigint> => {
  const uaddr = await memory.mmap({ length: MEMORY_BYTES });
  await memory.write(uaddr + BigInt(ENTRY), code);
  return uaddr;
};

const named = (blocks: readonly Uint8Array[]): Secret[] => blocks.map((bytes, index) => ({ what: `block ${index}`, bytes }));

/** A guest, launched with a session and given a secret that its owner has sealed for it; and what nobody else may know. */
const secretGuest = async (simkvm: SimKvm, kind: Kind) => {
  const process = await simkvm.attach();
  const [kvm, sev] = [await process.openKvm(), await process.openSev()];
  const cpuid = await kvm.getSupportedCpuid();
  const { pdh_cert_address_bytes: pdh } = await sev.pdhCertExport();
  const { policy } = kind;
  const session = guestOwner.createLaunchSession({ pdh, policy });
  const uaddr = await mapGuest(process, kind.code);
  const vm = await kvm.createVm(KvmX86VmType.KVM_X86_DEFAULT_VM);
  await kind.init(vm);
  await addMemory(vm, uaddr);
  const vcpu = await vm.createVcpu(0);
  await vcpu.setCpuid2(cpuid);
  await startAt(vcpu);
  await vm.memoryEncryptRegRegion({ addr: uaddr, size: MEMORY_BYTES });
  const start = { policy, dh_uaddr_bytes: session.certificate, session_uaddr_bytes: session.session };
  await vm.sev.launchStart(start, sev.fd);
  const image = await process.memory.read(uaddr, MEMORY_BYTES);
  await vm.sev.launchUpdateData({ uaddr, len: MEMORY_BYTES });
  if (kind === SEV_ES) await vm.sev.launchUpdateVmsa();

  const { uaddr_bytes: measurement } = await vm.sev.launchMeasure({ len: 48 });
  if (kind === SEV) {
    const { api_major: apiMajor, api_minor: apiMinor, build } = await sev.platformStatus();
    const measured = { apiMajor, apiMinor, build, policy, digest: guestOwner.launchDigest(image) };
    expect(guestOwner.verifyMeasurement(measurement, session.keys.tik, measured)).toBe(true);
  }
  const secret = new Uint8Array(randomBytes(16));
  const packet = guestOwner.sealSecret(session.keys, measurement, secret);
  const guest = { guest_uaddr: uaddr + BigInt(SECRET), guest_len: secret.length };
  await vm.sev.launchSecret({ hdr_uaddr_bytes: packet.header, trans_uaddr_bytes: packet.data, ...guest });
  await vm.sev.launchFinish();
  const secrets: Secret[] = [
    ...named(derived(secret)),
    { what: 'the injected secret', bytes: secret },
    { what: 'TEK', bytes: session.keys.tek },
    { what: 'TIK', bytes: session.keys.tik },
  ];
  return { process, kvm, sev, cpuid, vm, vcpu, uaddr, secrets };
};

/** Sends the guest's memory to a new guest on the same platform, which never runs, and cancels. */
const sendToItself = async (
  simkvm: SimKvm,
  { process, kvm, sev, vm, uaddr }: Awaited<ReturnType<typeof secretGuest>> & { sev: SevPlatform },
  kind: Kind,
): Promise<void> => {
  const { pdh_cert_address_bytes: pdh, cert_chain_address_bytes: chain } = await sev.pdhCertExport();
  const { amd_certs } = await simkvm.keyDistribution.getAuthorities();
  const cek = await simkvm.keyDistribution.getCek();
  const started = await vm.sev.sendStart({
    ...{ policy: kind.policy, pdh_cert_uaddr_bytes: pdh, session_len: SESSION },
    ...{ plat_certs_uaddr_bytes: Buffer.concat([chain.subarray(0, 2 * CERTIFICATE), cek]), amd_certs_uaddr_bytes: amd_certs },
  });
  const target = await kvm.createVm(KvmX86VmType.KVM_X86_DEFAULT_VM);
  await kind.init(target);
  const copy = await process.memory.mmap({ length: MEMORY_BYTES });
  await target.memoryEncryptRegRegion({ addr: copy, size: MEMORY_BYTES });
  const received = { policy: started.policy, pdh_uaddr_bytes: pdh, session_uaddr_bytes: started.session_uaddr_bytes };
  await target.sev.receiveStart(received, sev.fd);
  for (let at = 0n; at < MEMORY_BYTES; at += BigInt(PAGE)) {
    const lengths = { hdr_len: HEADER, guest_len: PAGE, trans_len: PAGE };
    const packet = await vm.sev.sendUpdateData({ guest_uaddr: uaddr + at, ...lengths });
    await target.sev.receiveUpdateData({
      ...{ hdr_uaddr_bytes: packet.hdr_uaddr_bytes, trans_uaddr_bytes: packet.trans_uaddr_bytes },
      ...{ guest_uaddr: copy + at, guest_len: PAGE },
    });
  }
  await target.sev.receiveFinish();
  await process.memory.read(copy, MEMORY_BYTES);
  await vm.sev.sendCancel();
};

describe.each([SEV, SEV_ES])('what a guest derives from its secret, and every key: $name', (kind) => {
  const runOnce = async (vcpu: Vcpu): Promise<void> => {
    expect((await vcpu.run()).reason).toBe(kind.exit);
  };

  it('is seen nowhere outside: not after launch, run, debugging, sending or move', async () => {
    await using host = await observedHost();
    const guest = await secretGuest(host.simkvm, kind);
    const { process, kvm, cpuid, vm: source, vcpu, uaddr, secrets } = guest;
    const launch = await host.look();

    await runOnce(vcpu);
    await process.memory.read(uaddr, MEMORY_BYTES);
    await vcpu.getFpu();
    const [regs, sregs] = [await vcpu.getRegs(), await vcpu.getSregs()];
    const run = await host.look();

    const plain = await process.memory.mmap({ length: PAGE });
    const code = uaddr + BigInt(ENTRY);
    await source.sev.dbgDecrypt({ src_uaddr: code, dst_uaddr: plain, len: kind.code.length });
    expect(await process.memory.read(plain, kind.code.length)).toEqual(kind.code);
    await source.sev.dbgEncrypt({ src_uaddr: plain, dst_uaddr: code, len: kind.code.length });
    await runOnce(vcpu);
    const debug = await host.look();

    await sendToItself(host.simkvm, guest, kind);
    await runOnce(vcpu);
    const send = await host.look();

    const destination = await kvm.createVm(KvmX86VmType.KVM_X86_DEFAULT_VM);
    await addMemory(destination, uaddr);
    const next = await destination.createVcpu(0);
    await destination.moveEncContextFrom(source);
    await next.setCpuid2(cpuid);
    if (kind === SEV) {
      await next.setSregs(sregs);
      await next.setRegs(regs);
    }
    await runOnce(next);
    await process.memory.read(uaddr, MEMORY_BYTES);
    const move = await host.look();

    const keys = host.keys();
    // The guest's own key, those of a session and those that wrap them, MACs and their keys, and the platform's scalars.
    for (const use of ['aes-128-ecb', 'aes-128-ctr', 'hmac-sha256', 'secp384r1'])
      expect(keys.map(({ what }) => what)).toContain(use);
    for (const [when, sight] of Object.entries({ launch, run, debug, send, move }))
      expect(seek([...secrets, ...keys], sight), when).toEqual(NOTHING);
  });

  it('is there: the guest’s memory has it, decrypted as the policy allows', async () => {
    await using host = await observedHost();
    const { process, vm, vcpu, uaddr, secrets } = await secretGuest(host.simkvm, kind);
    await runOnce(vcpu);
    const plain = await process.memory.mmap({ length: BLOCKS * 16 });
    await vm.sev.dbgDecrypt({ src_uaddr: uaddr + BigInt(CANARY), dst_uaddr: plain, len: BLOCKS * 16 });
    expect(seek(secrets, await host.look()).dram.length).toBe(BLOCKS);
  });
});

describe('the reader', () => {
  it('finds all of it in a plain VM, and keys that the host has in the clear', async () => {
    await using host = await observedHost();
    const process = await host.simkvm.attach();
    const kvm = await process.openKvm();
    const sev = await process.openSev();
    await sev.pdhCertExport();
    const secret = new Uint8Array(randomBytes(16));
    const secrets = [...named(derived(secret)), { what: 'the secret', bytes: secret }];
    const uaddr = await mapGuest(process, SEV.code);
    await process.memory.write(uaddr + BigInt(SECRET), secret);
    const vm = await kvm.createVm();
    await addMemory(vm, uaddr);
    const vcpu = await vm.createVcpu(0);
    await startAt(vcpu);
    expect((await vcpu.run()).reason).toBe('KVM_EXIT_IO');
    const keys = host.keys();
    const uses = new Set(keys.map(({ what }) => what));
    await process.memory.write(uaddr + 0x2_0001n, Buffer.concat(keys.map(({ bytes }) => bytes)));
    const { dram, replies } = seek([...secrets, ...keys], await host.look());
    expect(new Set(dram)).toEqual(new Set([...secrets.map(({ what }) => what), ...uses]));
    // A reply comes in frames of 16 KiB, and a block may lie across two of them.
    expect(replies.length).toBeGreaterThan(BLOCKS - 8);
  });

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
