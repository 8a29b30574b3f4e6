import type { Field } from '../../../../../server/hardware/amd/byte-layout.js';
import { GHCB, setGhcbField } from '../../../../../server/hardware/amd/ghcb.js';
import { PAGE_SIZE } from '../../../../../server/hardware/units.js';
import type { ShmemObject } from '../../../../../server/kernel/mm/memory-object.js';
import { IOCTL } from '../../../../../server/kernel/uapi/ioctls.js';
import { kvm_regs, kvm_sregs } from '../../../../../server/kernel/uapi/x86-structs.js';
import type { Guest, SevGuestOptions, Vmm } from './sev-rig.js';

/** Guest memory of an SEV-ES guest in 64-bit mode. */
const PML4 = 0x1000;
const PDPT = 0x2000;
const PAGE_DIRECTORY = 0x3000;
const PAGE_TABLE = 0x4000;
const CODE = 0x5000;
/** The one shared page: GHCB. */
export const GHCB_GPA = 0x8000;
const TEMPLATES = 0x10000;
export const RAM_BYTES = 64 * PAGE_SIZE;

const C_BIT = 1n << 51n;
const PRESENT_WRITABLE = 3n;
const GHCB_MSR = 0xc001_0130;

const imm32 = (value: number): number[] => [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];

/** One request to the host, as the guest leaves it in its GHCB. */
export interface GhcbRequest {
  readonly code: bigint;
  readonly info1?: bigint;
  readonly info2?: bigint;
  readonly rax?: bigint;
  readonly rbx?: bigint;
  readonly rcx?: bigint;
  readonly rdx?: bigint;
  readonly cpl?: number;
  readonly scratch?: bigint;
  /** Into the shared buffer. */
  readonly data?: Uint8Array;
  /** Fields that the guest forgets to declare as valid. */
  readonly undeclared?: readonly ('swExitCode' | 'swExitInfo1' | 'swExitInfo2')[];
  /** @default 0 */
  readonly usage?: number;
}

/** The GHCB with a request in it. */
export const template = (request: GhcbRequest): Uint8Array => {
  const page = new Uint8Array(PAGE_SIZE);
  const put = (name: 'swExitCode' | 'swExitInfo1' | 'swExitInfo2', value: bigint): void => {
    const field: Field<bigint> = GHCB[name];
    if (request.undeclared?.includes(name)) field.set(page, value);
    else setGhcbField(page, field, value);
  };
  put('swExitCode', request.code);
  put('swExitInfo1', request.info1 ?? 0n);
  put('swExitInfo2', request.info2 ?? 0n);
  if (request.rax !== undefined) setGhcbField(page, GHCB.rax, request.rax);
  if (request.rbx !== undefined) setGhcbField(page, GHCB.rbx, request.rbx);
  if (request.rcx !== undefined) setGhcbField(page, GHCB.rcx, request.rcx);
  if (request.rdx !== undefined) setGhcbField(page, GHCB.rdx, request.rdx);
  if (request.cpl !== undefined) setGhcbField(page, GHCB.cpl, request.cpl);
  if (request.scratch !== undefined) setGhcbField(page, GHCB.swScratch, request.scratch);
  if (request.data !== undefined) page.set(request.data, GHCB.sharedBuffer.offset);
  GHCB.protocolVersion.set(page, 1);
  GHCB.usage.set(page, request.usage ?? 0);
  return page;
};

/** `mov ecx, GHCB MSR; mov eax, value; xor edx, edx; wrmsr; vmgexit`, in 64-bit mode. */
export const vmgexit = (value: number): number[] => [
  ...[0xb9, ...imm32(GHCB_MSR)],
  ...[0xb8, ...imm32(value)],
  ...[0x31, 0xd2, 0x0f, 0x30],
  ...[0xf3, 0x0f, 0x01, 0xd9],
];

/** Copies a template to the GHCB and exits with it. */
export const ask = (index: number): number[] => [
  ...[0xbe, ...imm32(TEMPLATES + index * PAGE_SIZE)],
  ...[0xbf, ...imm32(GHCB_GPA)],
  ...[0xb9, ...imm32(PAGE_SIZE)],
  ...[0xf3, 0xa4],
  ...vmgexit(GHCB_GPA),
];

export interface EsGuest extends Guest {
  readonly vcpuFd: number;
  readonly ram: ShmemObject;
  /** Address of the RAM in the VMM. */
  readonly address: number;
}

/**
 * An SEV-ES guest, launched, whose vCPU makes the requests one after the other and then halts; `code` is executed
 * in their place if given.
 */
export const createEsGuest = (
  vmm: Vmm,
  requests: readonly GhcbRequest[],
  code?: readonly number[],
  options: Omit<SevGuestOptions, 'es'> = {},
): EsGuest => {
  const ram = vmm.sharedMemory(RAM_BYTES);
  const address = vmm.map(ram, RAM_BYTES);
  const entry = (at: number, value: bigint): void => {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, value, true);
    vmm.write(address + at, bytes);
  };
  entry(PML4, BigInt(PDPT) | PRESENT_WRITABLE | C_BIT);
  entry(PDPT, BigInt(PAGE_DIRECTORY) | PRESENT_WRITABLE | C_BIT);
  entry(PAGE_DIRECTORY, BigInt(PAGE_TABLE) | PRESENT_WRITABLE | C_BIT);
  for (let page = 0; page < RAM_BYTES; page += PAGE_SIZE)
    entry(PAGE_TABLE + (page / PAGE_SIZE) * 8, BigInt(page) | PRESENT_WRITABLE | (page === GHCB_GPA ? 0n : C_BIT));
  for (const [index, request] of requests.entries()) vmm.write(address + TEMPLATES + index * PAGE_SIZE, template(request));
  vmm.write(address + CODE, Uint8Array.from([...(code ?? requests.flatMap((_, index) => ask(index))), 0xf4, 0xeb, 0xfd]));

  const guest = vmm.createSevGuest({ ...options, es: true });
  const [vcpu] = guest.vcpus;
  if (vcpu === undefined) throw new Error('no vCPU');
  vmm.addSlot(guest, 0, 0, address, RAM_BYTES);
  vmm.must(vmm.updateData(guest, address, GHCB_GPA));
  vmm.must(vmm.updateData(guest, address + GHCB_GPA + PAGE_SIZE, RAM_BYTES - GHCB_GPA - PAGE_SIZE));
  for (const { fd } of guest.vcpus) startLongMode(vmm, fd);
  vmm.must(vmm.command(guest.fd, 'LAUNCH_UPDATE_VMSA'));
  vmm.must(vmm.command(guest.fd, 'LAUNCH_FINISH'));
  return { ...guest, vcpuFd: vcpu.fd, ram, address };
};

/** Puts a vCPU into 64-bit mode at CODE, with page tables at PML4. */
export const startLongMode = (vmm: Vmm, vcpuFd: number): void => {
  const bytes = new Uint8Array(kvm_sregs.size);
  vmm.process.must(vmm.process.ioctl(vcpuFd, IOCTL.KVM_GET_SREGS, bytes));
  const value = kvm_sregs.decode(bytes);
  const flat = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0 };
  const cs = { ...value.cs, ...flat, selector: 8, type: 11, db: 0, l: 1 };
  const data = { ...value.ds, ...flat, selector: 16, type: 3, db: 1, l: 0 };
  const sregs = { ...value, cs, ds: data, es: data, ss: data, cr0: 0x8000_0011n, cr3: BigInt(PML4), cr4: 0x20n, efer: 0x500n };
  vmm.process.must(vmm.process.ioctl(vcpuFd, IOCTL.KVM_SET_SREGS, kvm_sregs.encode(sregs)));
  vmm.process.must(vmm.process.ioctl(vcpuFd, IOCTL.KVM_SET_REGS, kvm_regs.encode({ rip: BigInt(CODE), rflags: 2n })));
};
