import { gfn } from '../../server/hardware/units.js';
import { VmFile } from '../../server/kernel/kvm/vm-file.js';
import { IOCTL } from '../../server/kernel/uapi/ioctls.js';
import { kvm_userspace_memory_region } from '../../server/kernel/uapi/kvm-structs.js';
import type { Figure } from './figure.js';
import { InProcess } from './in-process.js';

const PAGE = 4096;
const SLOTS = 32_764;
/** Slots of the small set that the large one is compared with. */
const FEW = 512;
const LOOKUPS = 200_000;

const microseconds = (count: number, once: (index: number) => void): number => {
  const begin = performance.now();
  for (let index = 0; index < count; index++) once(index);
  return ((performance.now() - begin) * 1000) / count;
};

/** Spreads slot numbers over addresses, so that neither the first nor the last is always next. */
const scattered = (index: number, count: number): number => (index * 7919) % count;

interface Times {
  readonly insert: number;
  readonly lookUp: number;
}

const measure = (count: number): Times => {
  const host = new InProcess();
  const vmFd = host.ioctl(host.openKvm(), IOCTL.KVM_CREATE_VM);
  const memory = BigInt(host.map(PAGE));
  const ops = host.process.files.lookup(vmFd)?.ops;
  if (!(ops instanceof VmFile)) throw new Error('not a VM');
  const insert = microseconds(count, (slot) => {
    const guest_phys_addr = BigInt(scattered(slot, SLOTS) * 2 * PAGE);
    const region = { slot, flags: 0, guest_phys_addr, memory_size: BigInt(PAGE), userspace_addr: memory };
    host.mm.write(Number(host.scratch), kvm_userspace_memory_region.encode(region));
    host.ioctl(vmFd, IOCTL.KVM_SET_USER_MEMORY_REGION, host.scratch);
  });
  const { memslots } = ops.vm;
  const lookUp = microseconds(LOOKUPS, (index) => memslots.find(gfn(scattered(index % count, SLOTS) * 2)));
  return { insert, lookUp };
};

/** Insertion and lookup at the limit on slots against those at few: logarithmic growth is log2(32764) / log2(512), 1.67. */
export const measureMemslots = (): Figure[] => {
  measure(FEW);
  const few = measure(FEW);
  const many = measure(SLOTS);
  const target = `at most ${(Math.log2(SLOTS) / Math.log2(FEW)).toFixed(2)}`;
  const figure = (name: string, what: keyof Times): Figure => ({
    name: `memslot ${name}, ${SLOTS} slots`,
    ours: `${many[what].toFixed(2)} us`,
    baseline: `${FEW} slots ${few[what].toFixed(2)} us`,
    ratio: many[what] / few[what],
    target,
  });
  return [figure('insertion', 'insert'), figure('lookup', 'lookUp')];
};
