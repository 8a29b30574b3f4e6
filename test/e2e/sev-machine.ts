import { expect } from 'vitest';
import { type Kvm, KvmX86VmType, type SevPlatform, startWorld, type Vcpu, type Vm, type World } from '../../client/index.js';

/** Kinds of legacy guests, and the policy bit that says which one it is. */
export const SEV = { name: 'SEV', type: KvmX86VmType.KVM_X86_SEV_VM, es: false, policy: 0 } as const;
export const SEV_ES = { name: 'SEV-ES', type: KvmX86VmType.KVM_X86_SEV_ES_VM, es: true, policy: 4 } as const;
export type Kind = typeof SEV | typeof SEV_ES;

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

/** A VM with one slot of memory at 0, of which `uaddr` is the user address. */
export interface Machine {
  readonly vm: Vm;
  readonly uaddr: bigint;
  readonly vcpus: readonly Vcpu[];
}

export const ENTRY = 0x1000;
/** Room for what a guest reports to its owner. */
export const RESULT = 0x2000;
export const MEMORY_BYTES = 0x4_0000;

const FLAT = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, s: 1, l: 0, db: 1, g: 1, avl: 0, unusable: 0 };

/** Memory without an initialised guest: `code` is at ENTRY, and every vCPU starts there in flat 32-bit protected mode. */
export const machine = async (
  { world: { process }, kvm }: Setup,
  { type }: Pick<Kind, 'type'> | { readonly type: number },
  code: Uint8Array,
  initialise: (vm: Vm) => Promise<unknown>,
): Promise<Machine> => {
  const vm = await kvm.createVm(type);
  await initialise(vm);
  const uaddr = await process.memory.mmap({ length: MEMORY_BYTES });
  await process.memory.write(uaddr + BigInt(ENTRY), code);
  await vm.setUserMemoryRegion({ slot: 0, guest_phys_addr: 0, memory_size: MEMORY_BYTES, userspace_addr: uaddr, flags: 0 });
  const vcpu = await vm.createVcpu(0);
  await vcpu.setCpuid2(await kvm.getSupportedCpuid());
  const sregs = await vcpu.getSregs();
  const data = { ...FLAT, selector: 0x10, type: 3 };
  const segments = { cs: { ...FLAT, selector: 8, type: 11 }, ds: data, es: data, fs: data, gs: data, ss: data };
  await vcpu.setSregs({ ...sregs, ...segments, cr0: sregs.cr0 | 1n, idt: { base: 0n, limit: 0 } });
  await vcpu.setRegs({ rip: BigInt(ENTRY), rsp: BigInt(MEMORY_BYTES), rflags: 2n });
  return { vm, uaddr, vcpus: [vcpu] };
};

/** A guest whose memory and save areas have been launched. */
export const launched = async (setup: Setup, kind: Kind, code: Uint8Array, policy = 0): Promise<Machine> => {
  const guest = await machine(setup, kind, code, (vm) => vm.sev.init2({}));
  await guest.vm.memoryEncryptRegRegion({ addr: guest.uaddr, size: MEMORY_BYTES });
  await guest.vm.sev.launchStart({ policy: kind.policy | policy }, setup.sev.fd);
  await guest.vm.sev.launchUpdateData({ uaddr: guest.uaddr, len: MEMORY_BYTES });
  if (kind.es) await guest.vm.sev.launchUpdateVmsa();
  return guest;
};

/** LAUNCH_MEASURE and LAUNCH_FINISH. */
export const finishLaunch = async ({ vm }: Machine): Promise<void> => {
  await vm.sev.launchMeasure({ len: 48 });
  await vm.sev.launchFinish();
};

/** Ends the process, and expects that nothing is left and nothing was found. */
export const freeAll = async ({ world }: Setup): Promise<void> => {
  await world.process[Symbol.asyncDispose]();
  const { vms, kmem, sev, findings } = await world.simkvm.host.getHost();
  expect({ vms, kmem, contexts: sev?.guest_count, findings }).toEqual({ vms: 0, kmem: [], contexts: 0, findings: 0n });
};
