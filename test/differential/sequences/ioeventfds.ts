import type { IoeventfdModel, Move, World } from './world.js';

const PIO = 2;
const DATAMATCH = 1;
const DEASSIGN = 4;

const newIoeventfd = (world: World): IoeventfdModel => {
  const { random } = world;
  const pio = random.chance(0.4);
  return {
    addr: pio ? random.pick([0x80, 0x90, 0x3f8]) : random.pick([0xf8000, 0xf8004, 0xf9000]),
    len: random.pick([0, 1, 1, 2, 2, 4, 4, 8]),
    datamatch: random.pick([0, 1, 0x11, 0x1122]),
    flags: (pio ? PIO : 0) | (random.chance(0.3) ? DATAMATCH : 0),
    eventfd: world.eventfd(),
  };
};

/** One that exists, perhaps with one property changed. */
const near = (world: World, known: IoeventfdModel): IoeventfdModel => {
  const { random } = world;
  switch (random.below(6)) {
    case 0:
      return { ...known, len: random.pick([0, 1, 2, 4, 8]) };
    case 1:
      return { ...known, datamatch: random.pick([0, 1, 0x11, 0x1122]) };
    case 2:
      return { ...known, eventfd: world.eventfd() };
    case 3:
      return { ...known, flags: known.flags ^ DATAMATCH };
    default:
      return known;
  }
};

const assign: Move = (world, vm) => {
  const { random } = world;
  const wanted = vm.ioeventfds.length > 0 && random.chance(0.4) ? near(world, random.pick(vm.ioeventfds)) : newIoeventfd(world);
  const deassign = random.chance(0.3) ? DEASSIGN : 0;
  const fields = { ...wanted, flags: wanted.flags | deassign };
  if (!world.mistaken) {
    vm.ioeventfds.push(wanted);
    return world.add('ioeventfd', { vm: vm.name, ...fields });
  }
  const mistakes = [
    { len: random.pick([3, 5, 16]) },
    { flags: fields.flags | random.pick([8, 0x10, 0x20]) },
    { eventfd: world.wrongDescriptor() },
    { addr: random.pick(['0xffffffffffffffff', '0xfffffffffffffff8']) },
    { datamatch: '0x100000011' },
  ];
  world.add('ioeventfd', { vm: vm.name, ...fields, ...random.pick(mistakes) });
};

const useEventfd: Move = (world) => {
  const { random } = world;
  if (world.eventfds.length === 0) return;
  const fd = random.pick(world.eventfds);
  switch (random.below(5)) {
    case 0:
      return world.add('poll', { fd });
    case 1:
      return world.add('eventfd_write', { fd, value: random.pick([1, 5, '0xfffffffffffffffe', '0xffffffffffffffff']) });
    default:
      return world.add('eventfd_read', { fd });
  }
};

const coalesce: Move = (world, vm) => {
  const { random } = world;
  const op = random.pick(['register_coalesced_mmio', 'register_coalesced_mmio', 'unregister_coalesced_mmio']);
  const zone = random.pick([
    { addr: 0xfa000, size: 0x100, pio: 0 },
    { addr: 0xfa000, size: 0x1000, pio: 0 },
    { addr: 0xf8000, size: 8, pio: 0 },
    { addr: 0x80, size: 1, pio: 1 },
    { addr: 0x90, size: 4, pio: 2 },
  ]);
  world.add(op, { vm: vm.name, ...zone });
};

const readCoalesced: Move = (world, vm) => {
  const vcpu = world.vcpu(vm);
  if (vcpu !== null) world.add('coalesced_read', { vcpu });
};

export const IOEVENTFD_MOVES = { assign, useEventfd, coalesce, readCoalesced } as const;
