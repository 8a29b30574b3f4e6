import type { Json } from '../../conformance/json.js';
import type { Move, World } from './world.js';

const REGISTERS = ['rax', 'rbx', 'rcx', 'rsi', 'r8', 'r15'] as const;
const MSRS = [0x10, 0x1b, 0x3b, 0x9e, 0x174, 0x175, 0x176, 0x1a0, 0x277, 0x2ff, 0x6e0, 0xc0000080, 0xc0000081] as const;
const MORE_MSRS = [
  0xc0000082, 0xc0000083, 0xc0000084, 0xc0000100, 0xc0000101, 0xc0000102, 0xc0000103, 0x79, 0x8b, 0xc0010015, 0x12345,
] as const;

const create: Move = (world, vm) => {
  const { random } = world;
  const id = world.mistaken ? random.pick([4095, 4096, -1, '0x100000000']) : random.below(4);
  const name = world.name('c');
  world.add('create_vcpu', { vm: vm.name, id, as: name });
  if (typeof id === 'number' && id >= 0 && id < 4096 && !vm.vcpus.has(id)) vm.vcpus.set(id, name);
};

const close: Move = (world, vm) => {
  const vcpu = world.vcpu(vm);
  if (vcpu === null || vm.vcpus.size - vm.closed.size < 2) return;
  world.add('close', { fd: vcpu });
  vm.closed.add(vcpu);
  world.add('get_mp_state', { vcpu });
};

const onVcpu =
  (body: (world: World, vcpu: string) => void): Move =>
  (world, vm) => {
    const vcpu = world.vcpu(vm);
    if (vcpu !== null) body(world, vcpu);
  };

const wide = (value: bigint): string => `0x${value.toString(16)}`;

const registers = onVcpu((world, vcpu) => {
  const { random } = world;
  const set = { [random.pick(REGISTERS)]: wide(random.u64()), rflags: random.pick([0, 2, 0x202, 0x46]) };
  world.add('set_regs', { vcpu, set });
  world.add('get_regs', { vcpu });
});

const mpState = onVcpu((world, vcpu) => {
  world.add('set_mp_state', { vcpu, mp_state: world.random.pick([0, 0, 1, 3, 5, 6]) });
  world.add('get_mp_state', { vcpu });
  world.add('set_mp_state', { vcpu, mp_state: 0 });
});

const specialRegisters = onVcpu((world, vcpu) => {
  const { random } = world;
  const set: Record<string, Json> = {
    cr8: random.pick([0, 3, 15]),
    cr2: wide(random.u64()),
    'cs.selector': random.pick([0, 0x1000]),
    'ds.base': random.pick([0, 0x10000]),
  };
  world.add('set_sregs', { vcpu, set });
  world.add('get_sregs', { vcpu, fields: ['cr2', 'cr8', 'cs', 'ds', 'efer'] });
});

const modelSpecific = onVcpu((world, vcpu) => {
  const { random } = world;
  const index = random.pick(random.chance(0.5) ? MSRS : MORE_MSRS);
  const data = random.pick([0, 1, 0x1000, wide(random.u64()), 0xfee00900]);
  world.add('set_msrs', { vcpu, msrs: [{ index, data }, ...(world.mistaken ? [{ index: 0x12345, data: 0 }] : [])] });
  world.add('get_msrs', { vcpu, indices: [index === 0x10 ? 0x277 : index] });
});

const events = onVcpu((world, vcpu) => {
  const { random } = world;
  const changes = random.pick<Record<string, Json>>([
    { exc_injected: 1, exc_nr: random.below(40) },
    { int_injected: 1, int_nr: random.below(256) },
    { nmi_pending: 1, flags: random.below(4) },
    { nmi_masked: 1 },
    { int_shadow: random.below(4), flags: 4 },
    { sipi_vector: 3, flags: 2 },
    { flags: random.pick([0x10, 0x20, 0x40]) },
    { exc_pending: 1, exc_nr: 3 },
  ]);
  world.add('set_vcpu_events', { vcpu, zero: 1, ...changes });
  world.add('get_vcpu_events', { vcpu });
  world.add('set_vcpu_events', { vcpu, zero: 1, flags: 7 });
});

const debugRegisters = onVcpu((world, vcpu) => {
  const { random } = world;
  const value = random.pick([0, 0x400, 0x401, 0xffff0ff0, wide(random.u64())]);
  world.add('set_debugregs', { vcpu, [random.pick(['db0', 'dr6', 'dr7', 'flags'])]: value });
  world.add('get_debugregs', { vcpu });
  world.add('set_debugregs', { vcpu, db0: 0, dr6: 0xffff0ff0, dr7: 0x400 });
});

const floatingPoint = onVcpu((world, vcpu) => {
  const { random } = world;
  world.add('set_fpu', {
    vcpu,
    xmm0: random.u64().toString(16).padStart(16, '0').repeat(2),
    fcw: random.pick([0x37f, 0x27f]),
    mxcsr: 0x1f80,
  });
  world.add('get_fpu', { vcpu });
});

const extendedControl = onVcpu((world, vcpu) => {
  const { random } = world;
  world.add('set_xcrs', {
    vcpu,
    xcr: random.pick([0, 0, 1]),
    value: random.pick([1, 3, 2, 7, 0, 0x4]),
    flags: random.pick([0, 0, 1]),
  });
  world.add('get_xcrs', { vcpu });
});

const translate = onVcpu((world, vcpu) =>
  world.add('translate', { vcpu, linear: world.random.pick([0, 0x1234, 0x20000, '0x100000000', '0x800000000000']) }),
);

const interrupt = onVcpu((world, vcpu) => {
  world.add('interrupt', { vcpu, irq: world.random.pick([0x20, 255, 256, 0xffffffff]) });
  world.add('get_vcpu_events', { vcpu });
  world.add('set_vcpu_events', { vcpu, zero: 1, flags: 7 });
});

const cpuid = onVcpu((world, vcpu) => {
  const { random } = world;
  const entries = [
    { function: 0, eax: 1 },
    { function: 0x40000000, eax: 0x40000001 },
  ].slice(0, 1 + random.below(2));
  world.add('set_cpuid2', { vcpu, entries, ...(world.mistaken ? { nent: random.pick([257, 0]) } : {}) });
});

export const VCPU_MOVES = {
  create,
  close,
  registers,
  mpState,
  specialRegisters,
  modelSpecific,
  events,
  debugRegisters,
  floatingPoint,
  extendedControl,
  translate,
  interrupt,
  cpuid,
} as const;
