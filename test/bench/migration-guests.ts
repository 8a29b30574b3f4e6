import { randomBytes } from 'node:crypto';
import { KvmX86VmType, type Process, type Vcpu, type Vm } from '../../client/index.js';

/** Guests to be moved to and fro; each has one slot of memory at 0, all of it touched and incompressible. */

const GUESTS = ['plain', 'SEV', 'SEV-ES'] as const;
export type GuestName = (typeof GUESTS)[number];

export interface BenchGuest {
  readonly vm: Vm;
  readonly vcpu: Vcpu;
  readonly uaddr: bigint;
}

const CHUNK = 2 ** 20;
/** Policy with the bit that asks for encrypted registers. */
const POLICY = { SEV: 0, 'SEV-ES': 4 } as const;
const TYPE = {
  plain: KvmX86VmType.KVM_X86_DEFAULT_VM,
  SEV: KvmX86VmType.KVM_X86_SEV_VM,
  'SEV-ES': KvmX86VmType.KVM_X86_SEV_ES_VM,
} as const;

/** The same random bytes for each chunk, but that no two pages are alike. */
function* content(bytes: number): Iterable<Uint8Array> {
  const chunk = randomBytes(CHUNK);
  for (let at = 0; at < bytes; at += CHUNK) {
    for (let page = 0; page < CHUNK; page += 4096) chunk.writeUInt32LE(at + page, page);
    yield chunk;
  }
}

const launch = async (process: Process, name: 'SEV' | 'SEV-ES', { vm, uaddr }: BenchGuest, bytes: number) => {
  const sev = await process.openSev();
  await vm.memoryEncryptRegRegion({ addr: uaddr, size: bytes });
  await vm.sev.launchStart({ policy: POLICY[name] }, sev.fd);
  for (let at = 0; at < bytes; at += CHUNK) await vm.sev.launchUpdateData({ uaddr: uaddr + BigInt(at), len: CHUNK });
  if (name === 'SEV-ES') await vm.sev.launchUpdateVmsa();
  await vm.sev.launchMeasure({ len: 48 });
  await vm.sev.launchFinish();
};

/** Makes a guest of one vCPU with so many MiB of memory. */
export const createGuest = async (process: Process, name: GuestName, mib: number): Promise<BenchGuest> => {
  const bytes = mib * CHUNK;
  await using kvm = await process.openKvm();
  const vm = await kvm.createVm(TYPE[name]);
  if (name !== 'plain') await vm.sev.init2({});
  const uaddr = await process.memory.mmap({ length: bytes });
  await process.memory.load(uaddr, content(bytes));
  await vm.setUserMemoryRegion({ slot: 0, guest_phys_addr: 0, memory_size: bytes, userspace_addr: uaddr });
  const guest: BenchGuest = { vm, vcpu: await vm.createVcpu(0), uaddr };
  if (name !== 'plain') await launch(process, name, guest, bytes);
  return guest;
};
