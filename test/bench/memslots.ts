import { type Gfn, gfn } from '../../server/hardware/units.js';
import { VmFile } from '../../server/kernel/kvm/vm-file.js';
import { IOCTL } from '../../server/kernel/uapi/ioctls.js';
import { kvm_userspace_memory_region } from '../../server/kernel/uapi/kvm-structs.js';
import { type Figure, median } from './figure.js';
import { InProcess } from './in-process.js';
import { cpuMicroseconds } from './measure-time.js';

const PAGE = 4096;
const SLOTS = 32_764;
/** Slots of the small set that the large one is compared with. */
const FEW = 512;
const LOOKUPS = 200_000;
/** Frames that are looked up again and again: few enough to leave the cache to the slots. A power of two. */
const FRAMES = 32_768;
const ROUNDS = 7;

/** CPU time of each. */
const microseconds = (count: number, once: (index: number) => void): number =>
  cpuMicroseconds(() => {
    for (let index = 0; index < count; index++) once(index);
  }) / count;

/** Spreads slot numbers over addresses, so that neither the first nor the last is always next. */
const scattered = (index: number, count: number): number => (index * 7919) % count;

/** Where slots are looked up: by chance, which no branch predictor learns. */
const lookups = (count: number): Gfn[] => {
  let state = 1;
  return Array.from({ length: FRAMES }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return gfn(scattered((state >>> 8) % count, SLOTS) * 2);
  });
};

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
  const frames = lookups(count);
  const lookUp = microseconds(LOOKUPS, (index) => memslots.find(frames[index % FRAMES] ?? gfn(0)));
  return { insert, lookUp };
};

/** Insertion and lookup at the limit on slots against those at few: logarithmic growth is log2(32764) / log2(512), 1.67. */
export const measureMemslots = (): Figure[] => {
  const rounds = Array.from({ length: ROUNDS }, () => ({ few: measure(FEW), many: measure(SLOTS) }));
  const medianOf = (what: keyof Times, size: 'few' | 'many'): number => median(rounds.map((round) => round[size][what]));
  const target = `at most ${(Math.log2(SLOTS) / Math.log2(FEW)).toFixed(2)}`;
  const figure = (name: string, what: keyof Times): Figure => ({
    name: `memslot ${name}, ${SLOTS} slots`,
    ours: `${medianOf(what, 'many').toFixed(2)} us`,
    baseline: `${FEW} slots ${medianOf(what, 'few').toFixed(2)} us`,
    ratio: medianOf(what, 'many') / medianOf(what, 'few'),
    target,
  });
  return [figure('insertion', 'insert'), figure('lookup', 'lookUp')];
};
