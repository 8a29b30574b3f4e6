import { ARENA_END, type Move, PAGE, RAM_BYTES, type SlotModel, type VmModel, type World } from './world.js';

const SLOTS = [1, 1, 2, 2, 3, 4, 5, 6, 7, 32_763] as const;
const SLOTS_OUT_OF_RANGE = [32_764, 40_000, 0x10000, 0xffff_ffff] as const;
const SLOTS_END = 32_764;
const LOG_DIRTY = 1;
const READONLY = 2;

const someGpa = ({ random }: World): number => RAM_BYTES + random.below((ARENA_END - RAM_BYTES) / PAGE) * PAGE;
const someOffset = ({ random }: World): number => RAM_BYTES + random.below(184) * PAGE;

const newSlot = (world: World): SlotModel => ({
  gpa: someGpa(world),
  size: world.random.pick([1, 1, 2, 3, 4, 8, 16]) * PAGE,
  offset: someOffset(world),
  flags: world.random.pick([0, 0, 0, 1, 1, 2, 3]),
});

/** A slot that exists, with one property changed. */
const changed = (world: World, slot: SlotModel): SlotModel => {
  const { random } = world;
  switch (random.below(7)) {
    case 0:
      return { ...slot, gpa: someGpa(world) };
    case 1:
      return { ...slot, flags: slot.flags ^ LOG_DIRTY };
    case 2:
      return { ...slot, gpa: someGpa(world), flags: slot.flags ^ LOG_DIRTY };
    case 3:
      return { ...slot, size: slot.size + random.pick([-PAGE, PAGE]) };
    case 4:
      return { ...slot, offset: someOffset(world) };
    case 5:
      return { ...slot, flags: slot.flags ^ READONLY };
    default:
      return { ...slot };
  }
};

const spoil = ({ random }: World, slot: SlotModel): SlotModel => {
  const part = random.pick([1, 0x800, 0xfff]);
  switch (random.below(4)) {
    case 0:
      return { ...slot, gpa: slot.gpa + part };
    case 1:
      return { ...slot, size: slot.size + part };
    case 2:
      return { ...slot, offset: slot.offset + part };
    default:
      return { ...slot, flags: slot.flags | random.pick([4, 8, 0x8000_0000]) };
  }
};

/** Whether KVM should take it. */
const isTaken = (vm: VmModel, number: number, { gpa, size, offset, flags }: SlotModel): boolean => {
  const old = vm.slots.get(number);
  if (number >= SLOTS_END || (flags & ~3) !== 0 || size <= 0 || [gpa, size, offset].some((value) => value % PAGE !== 0))
    return false;
  if (old !== undefined && (old.size !== size || old.offset !== offset || ((old.flags ^ flags) & READONLY) !== 0)) return false;
  const overlaps = [...vm.slots].some(([other, slot]) => other !== number && slot.gpa < gpa + size && gpa < slot.gpa + slot.size);
  return gpa >= RAM_BYTES && !overlaps;
};

const setSlot: Move = (world, vm) => {
  const { random } = world;
  const number = random.chance(0.06) ? random.pick(SLOTS_OUT_OF_RANGE) : random.pick(SLOTS);
  const old = vm.slots.get(number);
  let slot = old !== undefined && random.chance(0.6) ? changed(world, old) : newSlot(world);
  if (world.mistaken) slot = spoil(world, slot);
  world.setRegion(vm, number, slot);
  if (isTaken(vm, number, slot)) vm.slots.set(number, slot);
};

const deleteSlot: Move = (world, vm) => {
  const { random } = world;
  const slot = random.pick([...vm.slots.keys(), 8]);
  const flags = world.mistaken ? random.pick([1, 3, 8]) : 0;
  const gpa = world.mistaken ? random.pick([1, 0x5000]) : 0;
  const addr = world.mistaken ? random.pick([1, 0x5000]) : 0;
  world.add('set_user_memory_region', { vm: vm.name, slot, flags, gpa, size: 0, addr });
  if (flags !== 8 && gpa !== 1 && addr !== 1) vm.slots.delete(slot);
};

/**
 * Values that only the outer checks look at: ranges that wrap, addresses of the kernel's half. No size just below the
 * limit of 2^31 pages: a real kernel with shadow paging takes it and allocates 16 GiB for its reverse map.
 */
const strangeSlot: Move = (world, vm) => {
  const { random } = world;
  world.add('set_user_memory_region', {
    vm: vm.name,
    slot: random.pick([9, 0x10009]),
    flags: random.below(4),
    gpa: random.pick(['0xfffffffffffff000', '0x7fffffff000', '0xffffffffff000', '0x10000000000000', 0x200000]),
    size: random.pick([
      PAGE,
      2 * PAGE,
      '0x7ffffffff000',
      '0x80000000000',
      '0x80000001000',
      '0x100000000000',
      '0xfffffffffffff000',
    ]),
    addr: random.pick([0, PAGE, '0x7ffffffff000', '0x7fffffffe000', '0x800000000000', '0xffff800000000000']),
  });
  world.add('set_user_memory_region', { vm: vm.name, slot: 9, flags: 0, gpa: 0, size: 0, addr: 0 });
};

export const MEMSLOT_MOVES = { setSlot, deleteSlot, strangeSlot } as const;
