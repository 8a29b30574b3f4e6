import { type Move, PAGE } from './world.js';

const SLOTS = [20, 21, 22, 23] as const;
const GPA = 0x200000;
const BACKING = 0x20000;

const createGuestMemfd: Move = (world, vm) => {
  const { random } = world;
  const name = world.name('g');
  const size = world.mistaken ? random.pick([0, 1, 0x1800, '0x8000000000000000']) : random.pick([1, 2, 4, 8]) * PAGE;
  world.add('create_guest_memfd', { vm: vm.name, size, flags: random.pick([0, 0, 1, 2, 3, 3, 4]), as: name });
  vm.guestMemfds.push(name);
};

const bind: Move = (world, vm) => {
  if (vm.guestMemfds.length === 0) createGuestMemfd(world, vm);
  const { random } = world;
  const all = world.vms.flatMap(({ guestMemfds }) => guestMemfds);
  world.add('set_user_memory_region2', {
    vm: vm.name,
    slot: random.pick(SLOTS),
    flags: random.pick([4, 4, 4, 4, 5, 6]),
    gpa: GPA + random.below(16) * PAGE,
    size: random.pick([1, 2, 4]) * PAGE,
    backing: { map: vm.map, off: BACKING },
    gmem: world.mistaken ? world.wrongDescriptor() : random.pick(random.chance(0.9) ? vm.guestMemfds : all),
    gmem_offset: random.pick([0, 0, PAGE, 2 * PAGE, 3 * PAGE, 0x800, '0x7ffffffffffff000', '0xfffffffffffff000']),
  });
};

const unbind: Move = (world, vm) =>
  world.add('set_user_memory_region', { vm: vm.name, slot: world.random.pick(SLOTS), flags: 0, gpa: 0, size: 0, addr: 0 });

const useFile: Move = (world, vm) => {
  if (vm.guestMemfds.length === 0) return;
  const { random } = world;
  const fd = random.pick(vm.guestMemfds);
  switch (random.below(6)) {
    case 0:
      return world.add('fstat', { fd });
    case 1:
      return world.add('ftruncate', { fd, len: random.pick([0, PAGE, 16 * PAGE]) });
    case 2:
      return world.add('mmap_fd', { fd, size: random.pick([PAGE, 2 * PAGE, 16 * PAGE]), off: random.pick([0, PAGE]), touch: 0 });
    case 3:
      return random.chance(0.3) ? world.add('close', { fd }) : world.add('lseek', { fd, off: 0, whence: random.below(3) });
    default:
      return world.add('fallocate', {
        fd,
        mode: random.pick([1, 1, 3, 3, 0, 2]),
        off: random.pick([0, PAGE, 2 * PAGE, 0x800, 16 * PAGE]),
        len: random.pick([PAGE, 2 * PAGE, 0, 0x800]),
      });
  }
};

/** Touches a guest_memfd through the memory that the guest and its host share. */
const setAttributes: Move = (world, vm) => {
  const { random } = world;
  world.add('set_memory_attributes', {
    vm: vm.name,
    address: random.pick([0, PAGE, 0x800]),
    size: random.pick([0, PAGE, 0x1800]),
    attributes: random.pick([0, 1, 8]),
    flags: random.pick([0, 0, 1]),
  });
};

export const GUEST_MEMFD_MOVES = { createGuestMemfd, bind, unbind, useFile, setAttributes } as const;
