import { KvmX86VmType, type Process, type SimKvm, type Vcpu } from '../../../client/index.js';
import { GHCB_EXIT, GHCB_MSR } from '../../../server/hardware/amd/ghcb.js';
import { MESSAGE_TYPE, sealMessage } from '../../../server/hardware/amd/snp/guest-message.js';
import { template } from '../../unit/kernel/kvm/svm/es-guest.js';
import { ENTRY, FLAT_SEGMENTS, u32, vmgexit } from './canary-guest.js';

export const PAGE = 4096;
export const MEMORY_BYTES = 0x4_0000;
const PDPT = 0x3000;
const PAGE_DIRECTORY = 0x4000;
const PAGE_TABLE = 0x5000;
const SECRETS = 0xc000;
export const VMPCK0 = SECRETS + 0x20;
/** Shared: the GHCB, a request to the firmware, its answer. */
const GHCB = 0x2_0000;
export const REQUEST = 0x2_1000;
export const RESPONSE = 0x2_2000;
const SHARED_END = 0x2_3000;
/** Private, what the guest copies there: the request to the host, and a message under each key. */
const GHCB_TEMPLATE = 0x2_4000;
const MESSAGES = 0x2_5000;
export const VMPCKS = [0, 1, 2, 3];

const C_BIT = 1n << 51n;
const PRESENT = 1n;
const WRITABLE = 2n;
const NORMAL = 1;
const SECRETS_TYPE = 5;
const PRIVATE = 8n;
const GUEST_MEMFD = 4;
export const POLICY = 0x30000n;
export const AP_RESET_HOLD = 6;

/** `mov esi, from; mov edi, to; mov ecx, 1024; rep movsd` */
const copyPage = (from: number, to: number): number[] => [
  ...[0xbe, ...u32(from), 0xbf, ...u32(to), 0xb9, ...u32(PAGE / 4), 0xf3, 0xa5],
];

/** The guest says which page its GHCB is. */
export const REGISTER_GHCB = vmgexit(GHCB | GHCB_MSR.REGISTER_GPA_REQ);

/** Asks the firmware what is in the request page. */
export const ASK = [...copyPage(GHCB_TEMPLATE, GHCB), ...vmgexit(GHCB)];

/** Asks with a message under one of its keys, whose tag is wrong: the firmware uses the key, and refuses. */
export const askWrongly = (vmpck: number): number[] => [...copyPage(MESSAGES + vmpck * PAGE, REQUEST), ...ASK];

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

const writeImage = async ({ memory }: Process, uaddr: bigint, code: Uint8Array): Promise<void> => {
  const put = (at: number, bytes: Uint8Array) => memory.write(uaddr + BigInt(at), bytes);
  await put(ENTRY, code);
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

/** A guest that runs `code`, in flat 32-bit mode with PAE paging; launched, with a secrets page. */
export const launchedGuest = async (simkvm: SimKvm, code: Uint8Array) => {
  const process = await simkvm.attach();
  const [kvm, sev] = [await process.openKvm(), await process.openSev()];
  const vm = await kvm.createVm(KvmX86VmType.KVM_X86_SNP_VM);
  await vm.sev.init2({});
  const uaddr = await process.memory.mmap({ length: MEMORY_BYTES });
  await writeImage(process, uaddr, code);
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
