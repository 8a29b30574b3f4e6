import { expect } from 'vitest';
import { type Kvm, KvmX86VmType, type SevPlatform, startWorld, type Vcpu, type Vm, type World } from '../../client/index.js';

/** Kinds of guests: type, the policy without options, and the bit of it that decides about debugging, which is SNP's the other way round. */
export const SEV = { name: 'SEV', type: KvmX86VmType.KVM_X86_SEV_VM, es: false, snp: false, policy: 0 } as const;
export const SEV_ES = { name: 'SEV-ES', type: KvmX86VmType.KVM_X86_SEV_ES_VM, es: true, snp: false, policy: 4 } as const;
export const SNP = { name: 'SEV-SNP', type: KvmX86VmType.KVM_X86_SNP_VM, es: true, snp: true, policy: 0x3_0000 } as const;
export type Kind = typeof SEV | typeof SEV_ES | typeof SNP;

/** A world with /dev/kvm and /dev/sev open. */
export interface Setup extends AsyncDisposable {
  readonly world: World;
  readonly kvm: Kvm;
  readonly sev: SevPlatform;
}

export const setUp = async (...args: string[]): Promise<Setup> => {
  const world = await startWorld({ args });
  const kvm = await world.process.openKvm();
  const sev = await world.process.openSev();
  return { world, kvm, sev, [Symbol.asyncDispose]: () => world[Symbol.asyncDispose]() };
};

/** A world on whose host such guests can be. */
export const setUpFor = ({ snp }: Kind): Promise<Setup> => setUp(...(snp ? ['--snp'] : []));

/** A VM with one slot of memory at 0, of which `uaddr` is the user address. */
export interface Machine {
  readonly kind: Kind;
  readonly vm: Vm;
  readonly uaddr: bigint;
  readonly vcpus: readonly Vcpu[];
}

export const ENTRY = 0x1000;
const PAGE = 4096;
export const MEMORY_BYTES = 0x4_0000;
/** Tables that map memory to itself, private but for one page, in which the guest reports. */
const PML4 = 0x3_0000;
const PDPT = 0x3_1000;
const PAGE_DIRECTORY = 0x3_2000;
const PAGE_TABLE = 0x3_3000;
export const SHARED = 0x3_4000;

const C_BIT = 1n << 51n;
const PRESENT_WRITABLE = 3n;
/** PE, ET, PG; PAE and OSFXSR; LME and LMA. */
const CR0 = 0x8000_0011n;
const CR4 = 0x220n;
const EFER = 0x500n;
const GUEST_MEMFD = 4;
const PRIVATE = 8n;
const NORMAL_PAGE = 1;

const FLAT = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0 };

const writePageTables = async ({ process }: World, uaddr: bigint): Promise<void> => {
  const table = (at: number, entries: readonly bigint[]) =>
    process.memory.write(uaddr + BigInt(at), new Uint8Array(BigUint64Array.from(entries).buffer));
  const privately = (at: number): bigint => BigInt(at) | PRESENT_WRITABLE | C_BIT;
  await table(PML4, [privately(PDPT)]);
  await table(PDPT, [privately(PAGE_DIRECTORY)]);
  await table(PAGE_DIRECTORY, [privately(PAGE_TABLE)]);
  const pages = Array.from({ length: MEMORY_BYTES / PAGE }, (_, index) => index * PAGE);
  await table(
    PAGE_TABLE,
    pages.map((page) => (page === SHARED ? BigInt(page) | PRESENT_WRITABLE : privately(page))),
  );
};

const addMemory = async (vm: Vm, uaddr: bigint, { snp }: Kind): Promise<void> => {
  const slot = { slot: 0, guest_phys_addr: 0, memory_size: MEMORY_BYTES, userspace_addr: uaddr };
  if (!snp) {
    await vm.setUserMemoryRegion({ ...slot, flags: 0 });
    return;
  }
  const gmem = await vm.createGuestMemfd({ size: BigInt(MEMORY_BYTES), flags: 0n });
  await vm.setUserMemoryRegion2({ ...slot, flags: GUEST_MEMFD, guest_memfd: gmem.fd, guest_memfd_offset: 0n });
  for (const [from, to] of PRIVATE_RANGES)
    await vm.setMemoryAttributes({ address: BigInt(from), size: BigInt(to - from), attributes: PRIVATE });
};

/** What a launch measures: everything but the shared page. */
const PRIVATE_RANGES = [
  [0, SHARED],
  [SHARED + PAGE, MEMORY_BYTES],
] as const;

/** Memory without an initialised guest: `code` is at ENTRY, and the vCPU starts there in 64-bit mode. */
const machine = async (
  { world, kvm }: Setup,
  kind: Kind,
  code: Uint8Array,
  initialise: (vm: Vm) => Promise<unknown>,
): Promise<Machine> => {
  const vm = await kvm.createVm(kind.type);
  await initialise(vm);
  const { memory } = world.process;
  const uaddr = await memory.mmap({ length: MEMORY_BYTES });
  await memory.write(uaddr + BigInt(ENTRY), code);
  await writePageTables(world, uaddr);
  await addMemory(vm, uaddr, kind);
  const vcpu = await vm.createVcpu(0);
  await vcpu.setCpuid2(await kvm.getSupportedCpuid());
  const sregs = await vcpu.getSregs();
  const data = { ...FLAT, selector: 0x10, type: 3, l: 0, db: 1 };
  const segments = { cs: { ...FLAT, selector: 8, type: 11, l: 1, db: 0 }, ds: data, es: data, fs: data, gs: data, ss: data };
  const control = { cr0: CR0, cr3: BigInt(PML4), cr4: CR4, efer: EFER };
  await vcpu.setSregs({ ...sregs, ...segments, ...control, idt: { base: 0n, limit: 0 } });
  await vcpu.setRegs({ rip: BigInt(ENTRY), rsp: BigInt(PML4), rflags: 2n });
  return { kind, vm, uaddr, vcpus: [vcpu] };
};

/** A guest whose memory and, but for SNP, save areas have been launched. `prepare` is what its VMM does with its vCPU before. */
export const launched = async (
  setup: Setup,
  kind: Kind,
  code: Uint8Array,
  policy = 0,
  prepare: (vcpu: Vcpu) => Promise<void> = async () => {},
): Promise<Machine> => {
  const guest = await machine(setup, kind, code, (vm) => vm.sev.init2({}));
  const { vm, uaddr, vcpus } = guest;
  for (const vcpu of vcpus) await prepare(vcpu);
  if (kind.snp) {
    await vm.sev.snpLaunchStart({ policy: BigInt(kind.policy | policy) }, setup.sev.fd);
    for (const [from, to] of PRIVATE_RANGES) {
      const range = { gfn_start: BigInt(from / PAGE), uaddr: uaddr + BigInt(from), len: BigInt(to - from) };
      await vm.sev.snpLaunchUpdate({ ...range, type: NORMAL_PAGE }, setup.sev.fd);
    }
    return guest;
  }
  await vm.memoryEncryptRegRegion({ addr: uaddr, size: MEMORY_BYTES });
  await vm.sev.launchStart({ policy: kind.policy | policy }, setup.sev.fd);
  for (const [from, to] of PRIVATE_RANGES) await vm.sev.launchUpdateData({ uaddr: uaddr + BigInt(from), len: to - from });
  if (kind.es) await vm.sev.launchUpdateVmsa();
  return guest;
};

/** LAUNCH_MEASURE and LAUNCH_FINISH. */
export const finishLaunch = async ({ kind, vm }: Machine, { sev }: Setup): Promise<void> => {
  if (kind.snp) {
    await vm.sev.snpLaunchFinish({}, sev.fd);
    return;
  }
  await vm.sev.launchMeasure({ len: 48 });
  await vm.sev.launchFinish();
};

/** What the guest has left in its shared page. */
export const shared = ({ world }: Setup, { uaddr }: Machine, offset: number, length: number): Promise<Uint8Array> =>
  world.process.memory.read(uaddr + BigInt(SHARED + offset), length);

/** Ends the process, and expects that nothing is left and nothing was found. */
export const freeAll = async ({ world }: Setup): Promise<void> => {
  await world.process[Symbol.asyncDispose]();
  const { vms, kmem, sev, findings } = await world.simkvm.host.getHost();
  expect({ vms, kmem, contexts: sev?.guest_count, findings }).toEqual({ vms: 0, kmem: [], contexts: 0, findings: 0n });
};
