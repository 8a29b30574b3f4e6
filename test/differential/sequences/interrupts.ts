import type { Move } from './world.js';

const RESAMPLE = 2;
const GSIS = [3, 4, 5, 23, 24, 5000] as const;

const createIrqchip: Move = (world, vm) => {
  const { random } = world;
  if (random.chance(0.25)) {
    world.add('enable_cap', { fd: vm.name, cap: 121, args: [random.pick([24, 24, 0, 4096, 5000])] });
    if (vm.vcpus.size === 0 && vm.irqchip === 'user') vm.irqchip = 'split';
  } else {
    world.add('create_irqchip', { vm: vm.name });
    if (vm.vcpus.size === 0 && vm.irqchip === 'user') vm.irqchip = 'kernel';
  }
};

const irqfd: Move = (world, vm) => {
  const { random } = world;
  const flags = random.pick([0, 0, 0, 1, 1, RESAMPLE, 4]);
  world.add('irqfd', {
    vm: vm.name,
    eventfd: world.mistaken ? world.wrongDescriptor() : world.eventfd(),
    gsi: random.pick(GSIS),
    flags,
    resamplefd: flags === RESAMPLE && !world.mistaken ? world.eventfd() : -1,
  });
};

const raise: Move = (world, vm) => {
  const { random } = world;
  const irq = random.pick([0, 3, 4, 5, 23, 24, 4000]);
  world.add(random.pick(['irq_line', 'irq_line_status']), { vm: vm.name, irq, level: random.below(2) });
};

const signalMsi: Move = (world, vm) => {
  const { random } = world;
  const destination = random.pick([0xfee00000, 0xfee05000, 0xfee01000, 0xfeeff000]);
  world.add('signal_msi', {
    vm: vm.name,
    address_lo: destination,
    data: random.pick([0x31, 0x10, 0x431]),
    flags: random.pick([0, 0, 2]),
  });
};

const route: Move = (world, vm) => {
  const { random } = world;
  const entries = Array.from({ length: 1 + random.below(3) }, () => ({
    gsi: random.pick([0, 5, 30, 4095, 4096]),
    type: random.pick([1, 1, 2, 2, 0, 5]),
    irqchip: random.pick([0, 1, 2, 3]),
    pin: random.pick([0, 7, 8, 23, 24]),
    flags: random.pick([0, 0, 0, 0, 1]),
    address_lo: 0xfee00000,
    data: 0x31,
  }));
  world.add('set_gsi_routing', { vm: vm.name, entries, flags: random.pick([0, 0, 0, 1]) });
};

const timer: Move = (world, vm) => {
  const { random } = world;
  world.add('create_pit2', { vm: vm.name, flags: random.pick([0, 1, 2]) });
  world.add('get_pit2', { vm: vm.name });
};

const chips: Move = (world, vm) =>
  world.random.chance(0.8)
    ? world.add('get_irqchip', { vm: vm.name, chip_id: world.random.pick([0, 1, 2, 3]) })
    : world.add('set_boot_cpu_id', { vm: vm.name, id: world.random.pick([0, 1, 5000]) });

const localApic: Move = (world, vm) => {
  const vcpu = world.vcpu(vm);
  if (vcpu === null) return;
  world.add('get_lapic', { vcpu });
  if (world.random.chance(0.4)) world.add('set_lapic', { vcpu, spiv: world.random.pick([0xff, 0x1ff, 0x1f]) });
};

export const INTERRUPT_MOVES = { createIrqchip, irqfd, raise, signalMsi, route, timer, chips, localApic } as const;
