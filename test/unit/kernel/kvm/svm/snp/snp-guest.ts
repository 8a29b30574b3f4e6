import { GHCB_MSR } from '../../../../../../server/hardware/amd/ghcb.js';
import { SECRETS_PAGE } from '../../../../../../server/hardware/amd/snp/secrets-page.js';
import type { Frame, MemoryKey } from '../../../../../../server/hardware/dram.js';
import { gfn, PAGE_SIZE } from '../../../../../../server/hardware/units.js';
import { DEFAULT_HOST_CONFIG, type HostConfig } from '../../../../../../server/kernel/config.js';
import { failed } from '../../../../../../server/kernel/failure.js';
import type { Vcpu } from '../../../../../../server/kernel/kvm/vcpu.js';
import { KVM_CAP } from '../../../../../../server/kernel/uapi/capabilities.js';
import { IOCTL } from '../../../../../../server/kernel/uapi/ioctls.js';
import {
  kvm_create_guest_memfd,
  kvm_enable_cap,
  kvm_memory_attributes,
  kvm_userspace_memory_region2,
} from '../../../../../../server/kernel/uapi/kvm-structs.js';
import {
  KVM_SEV_SNP_PAGE_TYPE,
  kvm_sev_init,
  kvm_sev_snp_launch_finish,
  kvm_sev_snp_launch_start,
  kvm_sev_snp_launch_update,
} from '../../../../../../server/kernel/uapi/sev-structs.js';
import { GHCB_GPA, type GhcbRequest, RAM_BYTES, startLongMode, template, vmgexit } from '../es-guest.js';
import { createSevRig, type Guest, type SevAnswer, type SevRig, type Vmm } from '../sev-rig.js';

export const SNP = 4;
/** SMT allowed, and the bit that must be one. */
export const SNP_POLICY = 0x30000n;
const KVM_MEM_GUEST_MEMFD = 4;
const PRIVATE = 8n;

const PML4 = 0x1000;
const PDPT = 0x2000;
const PAGE_DIRECTORY = 0x3000;
const PAGE_TABLE = 0x4000;
const CODE = 0x5000;
/** Shared pages beside the GHCB: a request to the firmware, its response, certificates. */
export const REQUEST_GPA = 0x9000;
export const RESPONSE_GPA = 0xa000;
export const CERTS_GPA = 0xb000;
const SECRETS_GPA = 0xc000;
/** Private pages that are not part of the launch: the guest has to accept them. */
export const FREE_GPA = 0xe000;
const TEMPLATES = 0x10000;
const SHARED: readonly number[] = [GHCB_GPA, REQUEST_GPA, RESPONSE_GPA, CERTS_GPA];

const C_BIT = 1n << 51n;
const PRESENT_WRITABLE = 3n;

/** A host on which SEV-SNP is enabled. */
export const createSnpHost = (config: Partial<HostConfig> = {}): SevRig =>
  createSevRig({ sev: { ...DEFAULT_HOST_CONFIG.sev, snp: true }, ...config });

// ---- guest code, 64-bit ----------------------------------------------------------------------------------------------

const imm32 = (value: number): number[] => [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];

/** The guest says which page its GHCB is. */
export const registerGhcb = (): number[] => vmgexit(GHCB_GPA | GHCB_MSR.REGISTER_GPA_REQ);

/** The GHCB MSR protocol with all 64 bits of a request. */
const vmgexitWide = (value: bigint): number[] => [
  ...[0xb9, ...imm32(0xc001_0130)],
  ...[0xb8, ...imm32(Number(value & 0xffff_ffffn))],
  ...[0xba, ...imm32(Number(value >> 32n))],
  ...[0x0f, 0x30, 0xf3, 0x0f, 0x01, 0xd9],
];

/** Asks for a page to become private (1) or shared (2), by the MSR. */
export const changePageState = (address: number, operation: 1 | 2): number[] =>
  vmgexitWide((BigInt(operation) << 52n) | BigInt(address) | BigInt(GHCB_MSR.PSC_REQ));

/** `mov eax, address; xor ecx, ecx; mov edx, 1; pvalidate` */
export const accept = (address: number): number[] => [
  ...[0xb8, ...imm32(address), 0x31, 0xc9],
  ...[0xba, ...imm32(1), 0xf2, 0x0f, 0x01, 0xff],
];

/** `rmpadjust` of a page: a save area, without permissions for VMPL 1. */
export const makeSaveArea = (address: number): number[] => [
  ...[0xb8, ...imm32(address), 0x31, 0xc9],
  ...[0xba, ...imm32(0x1_0001), 0xf3, 0x0f, 0x01, 0xfe],
];

/** `mov dword [address], value` */
export const store = (address: number, value: number): number[] => [0xc7, 0x04, 0x25, ...imm32(address), ...imm32(value)];

/** Maps a page as private: sets the C-bit of its entry, and forgets the old translation. */
export const mapPrivate = (address: number): number[] => [
  ...store(PAGE_TABLE + (address / PAGE_SIZE) * 8 + 4, Number(C_BIT >> 32n)),
  ...[0x0f, 0x01, 0x3c, 0x25, ...imm32(address)],
];

/** Copies `length` bytes inside the guest. */
export const copy = (from: number, to: number, length: number): number[] => [
  ...[0xbe, ...imm32(from), 0xbf, ...imm32(to), 0xb9, ...imm32(length), 0xf3, 0xa4],
];

/** Makes the request of a template through the GHCB. */
export const ask = (index: number): number[] => [
  ...copy(TEMPLATES + index * PAGE_SIZE, GHCB_GPA, PAGE_SIZE),
  ...vmgexit(GHCB_GPA),
];

export const HLT: readonly number[] = [0xf4];

/** Where a template lies in the guest, for code that changes or executes it. */
export const templateAt = (index: number): number => TEMPLATES + index * PAGE_SIZE;

// ---- a guest ---------------------------------------------------------------------------------------------------------

export interface SnpGuest extends Guest {
  readonly gmemFd: number;
  /** Address of the shared memory in the VMM. */
  readonly address: number;
  readonly vcpuFd: number;
  readonly vcpu: Vcpu;
}

export interface SnpGuestOptions {
  readonly code: readonly number[];
  /** Pages that the guest has in private memory, for `ask`. */
  readonly requests?: readonly GhcbRequest[];
  /** More such pages, after the requests. */
  readonly pages?: readonly Uint8Array[];
  readonly vcpus?: number;
  /** KVM_SEV_SNP_ENABLE_REQ_CERTS. */
  readonly certificates?: boolean;
  readonly irqchip?: boolean;
  readonly policy?: bigint;
  /** `vcek_disabled` of KVM_SEV_SNP_LAUNCH_FINISH. */
  readonly vcekDisabled?: number;
  /** KVM_CAP_EXIT_HYPERCALL. @default true */
  readonly hypercalls?: boolean;
}

export const setPrivate = ({ process }: Vmm, fd: number, address: number, size: number, isPrivate = true): void => {
  const attributes = { address: BigInt(address), size: BigInt(size), attributes: isPrivate ? PRIVATE : 0n };
  process.must(process.ioctl(fd, IOCTL.KVM_SET_MEMORY_ATTRIBUTES, kvm_memory_attributes.encode(attributes)));
};

/** A VM of type SNP after KVM_SEV_INIT2, with a slot of private and shared memory at 0 and nothing launched. */
export const createSnpVm = (vmm: Vmm): { fd: number; vm: Guest['vm']; gmemFd: number; address: number } => {
  const { process } = vmm;
  const { fd, vm } = process.createVm(SNP);
  vmm.must(vmm.command(fd, 'INIT2', kvm_sev_init.encode({})));
  const address = vmm.map(null, RAM_BYTES);
  const gmem = kvm_create_guest_memfd.encode({ size: BigInt(RAM_BYTES), flags: 0n });
  const gmemFd = process.must(process.ioctl(fd, IOCTL.KVM_CREATE_GUEST_MEMFD, gmem));
  const region = kvm_userspace_memory_region2.encode({
    ...{ slot: 0, flags: KVM_MEM_GUEST_MEMFD, guest_phys_addr: 0n, memory_size: BigInt(RAM_BYTES) },
    ...{ userspace_addr: BigInt(address), guest_memfd: gmemFd, guest_memfd_offset: 0n },
  });
  process.must(process.ioctl(fd, IOCTL.KVM_SET_USER_MEMORY_REGION2, region));
  return { fd, vm, gmemFd, address };
};

export const launchUpdate = (
  vmm: Vmm,
  fd: number,
  gpa: number,
  uaddr: number,
  len: number,
  type: number = KVM_SEV_SNP_PAGE_TYPE.NORMAL,
): SevAnswer => {
  const update = { gfn_start: BigInt(gpa / PAGE_SIZE), uaddr: BigInt(uaddr), len: BigInt(len), type };
  return vmm.command(fd, 'SNP_LAUNCH_UPDATE', kvm_sev_snp_launch_update.encode(update));
};

const pageTables = (vmm: Vmm, address: number): void => {
  const entry = (at: number, value: bigint): void => {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, value, true);
    vmm.write(address + at, bytes);
  };
  entry(PML4, BigInt(PDPT) | PRESENT_WRITABLE | C_BIT);
  entry(PDPT, BigInt(PAGE_DIRECTORY) | PRESENT_WRITABLE | C_BIT);
  entry(PAGE_DIRECTORY, BigInt(PAGE_TABLE) | PRESENT_WRITABLE | C_BIT);
  for (let page = 0; page < RAM_BYTES; page += PAGE_SIZE)
    entry(PAGE_TABLE + (page / PAGE_SIZE) * 8, BigInt(page) | PRESENT_WRITABLE | (SHARED.includes(page) ? 0n : C_BIT));
};

/** An SNP guest in 64-bit mode, launched and ready to run `code`, which a HLT follows. */
export const createSnpGuest = (vmm: Vmm, options: SnpGuestOptions): SnpGuest => {
  const { process } = vmm;
  const { code, requests = [], pages = [], vcpus = 1, certificates = false, irqchip = false, hypercalls = true } = options;
  const { fd, vm, gmemFd, address } = createSnpVm(vmm);
  if (irqchip) process.must(process.ioctl(fd, IOCTL.KVM_CREATE_IRQCHIP));
  const cap = { cap: KVM_CAP.EXIT_HYPERCALL, args: [1n << 12n, 0n, 0n, 0n] };
  if (hypercalls) process.must(process.ioctl(fd, IOCTL.KVM_ENABLE_CAP, kvm_enable_cap.encode(cap)));
  if (certificates) vmm.must(vmm.command(fd, 'SNP_ENABLE_REQ_CERTS'));
  const made = Array.from({ length: vcpus }, (_, id) => process.createVcpu(fd, id));
  const [first] = made;
  if (first === undefined) throw new Error('no vCPU');
  vmm.must(vmm.command(fd, 'SNP_LAUNCH_START', kvm_sev_snp_launch_start.encode({ policy: options.policy ?? SNP_POLICY })));
  setPrivate(vmm, fd, 0, RAM_BYTES);
  setPrivate(vmm, fd, GHCB_GPA, SHARED.length * PAGE_SIZE, false);
  // The initial contents lie where the shared memory is; nobody looks there afterwards.
  pageTables(vmm, address);
  vmm.write(address + CODE, Uint8Array.from([...code, ...HLT, 0xeb, 0xfd]));
  for (const [index, page] of [...requests.map(template), ...pages].entries()) vmm.write(address + templateAt(index), page);
  vmm.must(launchUpdate(vmm, fd, PML4, address + PML4, GHCB_GPA - PML4));
  vmm.must(launchUpdate(vmm, fd, SECRETS_GPA, address + SECRETS_GPA, PAGE_SIZE, KVM_SEV_SNP_PAGE_TYPE.SECRETS));
  vmm.must(launchUpdate(vmm, fd, TEMPLATES, address + TEMPLATES, RAM_BYTES - TEMPLATES));
  for (const { fd: vcpuFd } of made) startLongMode(vmm, vcpuFd);
  const end = { vcek_disabled: options.vcekDisabled ?? 0 };
  vmm.must(vmm.command(fd, 'SNP_LAUNCH_FINISH', kvm_sev_snp_launch_finish.encode(end)));
  return { vmm, fd, vm, vcpus: made, gmemFd, address, vcpuFd: first.fd, vcpu: first.vcpu };
};

/** KVM_RUN: the exit's reason. */
export const run = ({ vmm, vcpuFd, vcpu }: SnpGuest): number => {
  vmm.process.must(vmm.process.ioctl(vcpuFd, IOCTL.KVM_RUN));
  return vcpu.arch.run.exitReason;
};

const keyOf = ({ vm }: Guest): MemoryKey => {
  const { sev } = vm.arch;
  const key = sev === null ? null : vm.kernel.amd?.asidKeys.keyOf(sev.asid);
  if (key === null || key === undefined) throw new Error('the guest has no key');
  return key;
};

/** The frame of guest_memfd behind a guest physical address. */
export const privateFrame = ({ vm }: Guest, address: number): Frame => {
  const page = vm.memslots.find(gfn(address / PAGE_SIZE))?.gmem?.unpreparedPage(gfn(address / PAGE_SIZE));
  if (page === undefined || failed(page)) throw new Error('no private page');
  return page.frame;
};

/** Private memory as the guest itself reads it: what its code would do with it, the test does. */
export const privateBytes = (guest: Guest, address: number, length: number): Uint8Array =>
  privateFrame(guest, address - (address % PAGE_SIZE))
    .view(keyOf(guest))
    .slice(address % PAGE_SIZE, (address % PAGE_SIZE) + length);

export const vmpck0 = (guest: Guest): Uint8Array => SECRETS_PAGE.vmpck0.get(privateBytes(guest, SECRETS_GPA, PAGE_SIZE));
