import { describe, expect, it } from 'vitest';
import { KvmX86VmType, type Process, type SimKvm, type Vcpu, type Vm } from '../../../client/index.js';
import { GHCB_EXIT, GHCB_MSR } from '../../../server/hardware/amd/ghcb.js';
import { MESSAGE_TYPE, sealMessage } from '../../../server/hardware/amd/snp/guest-message.js';
import { template } from '../../unit/kernel/kvm/svm/es-guest.js';
import {
  checksum,
  derive,
  derived,
  ENTRY,
  FLAT_SEGMENTS,
  GHCB_MSR_INDEX,
  remember,
  SUM_TO_EDX,
  u32,
  vmgexit,
} from './canary-guest.js';
import { NOTHING, observedHost, type Secret, seek } from './observed-host.js';

/*
 * A SEV-SNP guest derives its blocks from the first of the keys that the firmware has put into its secrets page. Then it uses all
 * four of these keys once, in messages that the firmware refuses, so that the test learns them; and it says the sum of the blocks.
 */
const PAGE = 4096;
const MEMORY_BYTES = 0x4_0000;
const PDPT = 0x3000;
const PAGE_DIRECTORY = 0x4000;
const PAGE_TABLE = 0x5000;
const SECRETS = 0xc000;
const VMPCK0 = SECRETS + 0x20;
/** Shared: the GHCB, a request to the firmware, its answer. */
const GHCB = 0x2_0000;
const REQUEST = 0x2_1000;
const RESPONSE = 0x2_2000;
const SHARED_END = 0x2_3000;
/** Private, what the guest copies there: the request to the host, and a message under each key. */
const GHCB_TEMPLATE = 0x2_4000;
const MESSAGES = 0x2_5000;
const VMPCKS = [0, 1, 2, 3];

const C_BIT = 1n << 51n;
const PRESENT = 1n;
const WRITABLE = 2n;
const NORMAL = 1;
const SECRETS_TYPE = 5;
const PRIVATE = 8n;
const GUEST_MEMFD = 4;
const POLICY = 0x30000n;
const AP_RESET_HOLD = 6;

/** `mov esi, from; mov edi, to; mov ecx, 1024; rep movsd` */
const copyPage = (from: number, to: number): number[] => [
  ...[0xbe, ...u32(from), 0xbf, ...u32(to), 0xb9, ...u32(PAGE / 4), 0xf3, 0xa5],
];

const CODE = Uint8Array.from([
  ...[...derive(VMPCK0), ...remember(VMPCK0), ...vmgexit(AP_RESET_HOLD)],
  ...vmgexit(GHCB | GHCB_MSR.REGISTER_GPA_REQ),
  ...VMPCKS.flatMap((vmpck) => [
    ...copyPage(MESSAGES + vmpck * PAGE, REQUEST),
    ...copyPage(GHCB_TEMPLATE, GHCB),
    ...vmgexit(GHCB),
  ]),
  ...SUM_TO_EDX,
  ...[0xb9, ...u32(GHCB_MSR_INDEX), 0xb8, ...u32(GHCB_MSR.TERMINATE), 0x0f, 0x30, 0xf3, 0x0f, 0x01, 0xd9], // wrmsr; vmgexit
]);

/** Identity mapping in PAE mode; the page of the GHCB and those after it are shared. */
const pageTables = (): readonly (readonly [number, Uint8Array])[] => {
  const table = (entries: readonly bigint[]): Uint8Array => new Uint8Array(BigUint64Array.from(entries).buffer);
  const pages = Array.from({ length: MEMORY_BYTES / PAGE }, (_, index) => index * PAGE);
  const entryOf = (page: number): bigint => BigInt(page) | PRESENT | WRITABLE | (page >= GHCB && page < SHARED_END ? 0n : C_BIT);
  return [
    [PDPT, table([BigInt(PAGE_DIRECTORY) | PRESENT | C_BIT])],
    [PAGE_DIRECTORY, table([BigInt(PAGE_TABLE) | PRESENT | WRITABLE | C_BIT])],
    [PAGE_TABLE, table(pages.map(entryOf))],
  ];
};

const writeImage = async ({ memory }: Process, uaddr: bigint): Promise<void> => {
  const put = (at: number, bytes: Uint8Array) => memory.write(uaddr + BigInt(at), bytes);
  await put(ENTRY, CODE);
  for (const [at, table] of pageTables()) await put(at, table);
  const request = { code: GHCB_EXIT.GUEST_REQUEST, info1: BigInt(REQUEST), info2: BigInt(RESPONSE) };
  await put(GHCB_TEMPLATE, template(request));
  // Nobody but the guest could seal them: with any other key the firmware opens the message and finds its tag wrong.
  const payload = new Uint8Array(96);
  const message = { type: MESSAGE_TYPE.REPORT_REQ, seqno: 1n, payload };
  for (const vmpck of VMPCKS) await put(MESSAGES + vmpck * PAGE, sealMessage(new Uint8Array(32), { ...message, vmpck }));
};

const startAt = async (vcpu: Vcpu): Promise<void> => {
  const sregs = await vcpu.getSregs();
  // PE, ET, PG; PAE and OSFXSR.
  await vcpu.setSregs({ ...sregs, ...FLAT_SEGMENTS, cr0: 0x8000_0011n, cr3: BigInt(PDPT), cr4: 0x220n });
  await vcpu.setRegs({ rip: BigInt(ENTRY), rflags: 2n });
};

const launchedGuest = async (simkvm: SimKvm) => {
  const process = await simkvm.attach();
  const [kvm, sev] = [await process.openKvm(), await process.openSev()];
  const vm = await kvm.createVm(KvmX86VmType.KVM_X86_SNP_VM);
  await vm.sev.init2({});
  const uaddr = await process.memory.mmap({ length: MEMORY_BYTES });
  await writeImage(process, uaddr);
  const gmem = await vm.createGuestMemfd({ size: BigInt(MEMORY_BYTES), flags: 0n });
  await vm.setUserMemoryRegion2({
    ...{ slot: 0, flags: GUEST_MEMFD, guest_phys_addr: 0n, memory_size: BigInt(MEMORY_BYTES) },
    ...{ userspace_addr: uaddr, guest_memfd: gmem.fd, guest_memfd_offset: 0n },
  });
  const vcpu = await vm.createVcpu(0);
  await vm.sev.snpLaunchStart({ policy: POLICY }, sev.fd);
  const launch = async (from: number, to: number, type = NORMAL): Promise<void> => {
    await vm.setMemoryAttributes({ address: BigInt(from), size: BigInt(to - from), attributes: PRIVATE });
    const range = { gfn_start: BigInt(from / PAGE), uaddr: uaddr + BigInt(from), len: BigInt(to - from) };
    await vm.sev.snpLaunchUpdate({ ...range, type }, sev.fd);
  };
  await launch(0, SECRETS);
  await launch(SECRETS, SECRETS + PAGE, SECRETS_TYPE);
  await launch(SECRETS + PAGE, GHCB);
  await launch(SHARED_END, MEMORY_BYTES);
  await startAt(vcpu);
  await vm.sev.snpLaunchFinish({}, sev.fd);
  return { process, kvm, vm, vcpu, uaddr };
};

/** Whatever the host may ask about a vCPU. */
const readRegisters = async (vcpu: Vcpu): Promise<void> => {
  await vcpu.try.getRegs();
  await vcpu.try.getSregs();
  await vcpu.try.getFpu();
};

const refused = async ({ process, vm, uaddr }: { process: Process; vm: Vm; uaddr: bigint }): Promise<(string | null)[]> => {
  const plain = await process.memory.mmap({ length: PAGE });
  const dbg = { src_uaddr: uaddr, dst_uaddr: plain, len: PAGE };
  return [
    (await vm.sev.try.dbgDecrypt(dbg)).errno,
    (await vm.sev.try.dbgEncrypt({ ...dbg, src_uaddr: plain, dst_uaddr: uaddr })).errno,
  ];
};

describe('what a SEV-SNP guest derives from its first message key, and every key', () => {
  it('is seen nowhere outside: not after launch, run, debugging, a move that is refused, and guest requests', async () => {
    await using host = await observedHost('--snp');
    // The keys that sign reports are made when somebody asks for their certificate.
    await host.simkvm.keyDistribution.getVcek();
    const guest = await launchedGuest(host.simkvm);
    const { process, kvm, vm, vcpu, uaddr } = guest;
    const launch = await host.look();

    expect((await vcpu.run()).reason).toBe('KVM_EXIT_AP_RESET_HOLD');
    await process.memory.read(uaddr, MEMORY_BYTES);
    await readRegisters(vcpu);
    const run = await host.look();

    expect(await refused(guest)).toEqual(['EPERM', 'EPERM']);
    const destination = await kvm.createVm(KvmX86VmType.KVM_X86_SNP_VM);
    expect((await destination.try.moveEncContextFrom(vm)).errno).toBe('EINVAL');
    const debugAndMove = await host.look();

    const before = host.keys().length;
    const exit = await vcpu.run();
    if (exit.reason !== 'KVM_EXIT_SYSTEM_EVENT') throw new Error(exit.reason);
    await process.memory.read(uaddr, MEMORY_BYTES);
    await readRegisters(vcpu);
    const requests = await host.look();

    const keys = host.keys();
    const vmpcks = keys.slice(before).filter(({ what }) => what === 'aes-256-gcm');
    expect(vmpcks.length).toBe(VMPCKS.length);
    const blocks = derived(vmpcks[0]?.bytes ?? new Uint8Array(0));
    // The guest has derived these blocks and no others.
    const [said] = exit.system_event.data;
    expect(said).toBe((BigInt(checksum(blocks)) << 32n) | BigInt(GHCB_MSR.TERMINATE));

    const secrets: Secret[] = [...blocks.map((bytes, index) => ({ what: `block ${index}`, bytes })), ...keys];
    for (const use of ['aes-128-ecb', 'hmac-sha256', 'secp384r1']) expect(keys.map(({ what }) => what)).toContain(use);
    for (const [when, sight] of Object.entries({ launch, run, debugAndMove, requests }))
      expect(seek(secrets, sight), when).toEqual(NOTHING);
  });
});
