import type { Move } from './world.js';

const CAPABILITIES = [0, 3, 10, 16, 25, 32, 36, 54, 66, 81, 100, 105, 122, 128, 136, 168, 192, 231, 232, 234, 999] as const;
const ENABLED = [188, 164, 182, 201, 204, 128, 116, 5, 999, 206, 213] as const;
const REQUESTS = ['KVM_RUN', 'KVM_GET_REGS', 'KVM_SET_USER_MEMORY_REGION', 'KVM_IOEVENTFD', 'KVM_GET_API_VERSION'] as const;
const MORE_REQUESTS = [
  'KVM_CREATE_VCPU',
  'KVM_IRQFD',
  'KVM_GET_DIRTY_LOG',
  'KVM_SET_SREGS',
  'KVM_CREATE_VM',
  'KVM_GET_MSRS',
] as const;
const VM_TYPE_NONE = 77;

const capability: Move = (world, vm) => {
  const { random } = world;
  if (random.chance(0.5))
    return world.add('check_extension', { fd: random.pick([vm.name, 'sys']), cap: random.pick(CAPABILITIES) });
  const args = [random.pick([0, 1, 2, 3, 7, 4096, 0xffffffff])];
  world.add('enable_cap', { fd: vm.name, cap: random.pick(ENABLED), args, flags: world.mistaken ? 1 : 0 });
};

const misplaced: Move = (world, vm) => {
  const { random } = world;
  const fds = [vm.name, 'sys', ...vm.vcpus.values(), ...world.eventfds, ...vm.guestMemfds];
  const req = random.pick<string | number>([0xaeff, 0x5401, 0xae01, random.pick(REQUESTS), random.pick(MORE_REQUESTS)]);
  // What makes a descriptor, and what never ends, are calls of their own.
  const fd = random.pick(fds);
  const makes = (req === 'KVM_CREATE_VCPU' && fd === vm.name) || ((req === 'KVM_CREATE_VM' || req === 0xae01) && fd === 'sys');
  const runs = req === 'KVM_RUN' && typeof fd === 'string' && fd.startsWith('c');
  if (!makes && !runs) world.add('ioctl_raw', { fd, req, arg: random.pick([0, '0xffff800000000000']) });
};

const createVm: Move = (world) => {
  const { random } = world;
  if (world.mistaken)
    world.add('create_vm', { sys: random.pick(['sys', 'nothing']), type: random.pick([VM_TYPE_NONE, -1]), as: world.name('vm') });
  else if (world.vms.length < 3) world.createVm();
};

const platform: Move = (world, vm) => {
  const { random } = world;
  switch (random.below(5)) {
    case 0:
      return world.add('set_identity_map_addr', { vm: vm.name, addr: random.pick([0xfffbc000, 0, 0x1001]) });
    case 1:
      return world.add('set_tss_addr', { vm: vm.name, addr: random.pick([0xfffbd000, '0xfffffffffffff000', 0x1001]) });
    case 2:
      return world.add('create_device', {
        vm: vm.name,
        type: random.pick([4, 77, 1]),
        flags: random.pick([0, 1, 2]),
        as: world.name('d'),
      });
    case 3:
      return world.add('set_nr_mmu_pages', { vm: vm.name, n: random.pick([0, 10, 64, 1000]) });
    default:
      return world.add('set_msr_filter', {
        vm: vm.name,
        flags: random.pick([0, 1, 2]),
        ranges: [{ flags: random.pick([1, 3, 4]), nmsrs: random.pick([0, 8, 4096]), base: 0xc0000080, fill: 255 }],
      });
  }
};

/** Calls on a descriptor that has been closed, duplicated or taken into a child. */
const descriptors: Move = (world, vm) => {
  const { random } = world;
  const vcpu = world.vcpu(vm);
  switch (random.below(4)) {
    case 0: {
      const copy = world.name('x');
      world.add('dup', { fd: vm.name, as: copy });
      world.add('check_extension', { fd: copy, cap: 10 });
      return world.add('close', { fd: copy });
    }
    case 1:
      return world.add('fork', {
        ops: [
          { op: 'check_extension', fd: vm.name, cap: 10 },
          { op: 'get_api_version', sys: 'sys' },
        ],
      });
    case 2:
      return vcpu === null ? undefined : world.add('fork', { ops: [{ op: 'get_regs', vcpu, fields: ['rip'] }] });
    default:
      return world.add('mmap_fd', {
        fd: vcpu ?? vm.name,
        size: random.pick([0x1000, 0x3000, 0x4000]),
        off: random.pick([0, 0x1000, 0x4000]),
        touch: 0,
      });
  }
};

export const OTHER_MOVES = { capability, misplaced, createVm, platform, descriptors } as const;
