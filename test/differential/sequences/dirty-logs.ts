import { type Move, PAGE, RAM_BYTES, type VmModel, type World } from './world.js';

const LOG_DIRTY = 1;

const loggedSlot = ({ random }: World, vm: VmModel): number => {
  const logged = [...vm.slots].filter(([, { flags }]) => (flags & LOG_DIRTY) !== 0).map(([number]) => number);
  return random.chance(0.75) ? random.pick([0, ...logged]) : random.pick([0, 9, ...vm.slots.keys(), 0x10000]);
};

const pagesOf = (vm: VmModel, slot: number): number =>
  Math.max(1, (slot === 0 ? RAM_BYTES : (vm.slots.get(slot)?.size ?? PAGE)) / PAGE);

const get: Move = (world, vm) => {
  const slot = loggedSlot(world, vm);
  const call = { vm: vm.name, slot, npages: pagesOf(vm, slot) };
  world.add('get_dirty_log', world.random.chance(0.04) ? { ...call, addr: 0 } : call);
};

const clear: Move = (world, vm) => {
  const { random } = world;
  const slot = loggedSlot(world, vm);
  const pages = pagesOf(vm, slot);
  const first_page = random.pick([0, 0, 0, 64, 1]);
  world.add('clear_dirty_log', {
    vm: vm.name,
    slot,
    first_page,
    num_pages: random.pick([pages, pages, 64, 1, 0]),
    pages: [0, 1, 2],
  });
};

const manualProtect: Move = (world, vm) =>
  world.add('enable_cap', { fd: vm.name, cap: 168, args: [world.random.pick([0, 1, 1, 3, 2, 7])] });

export const DIRTY_LOG_MOVES = { get, clear, manualProtect } as const;
