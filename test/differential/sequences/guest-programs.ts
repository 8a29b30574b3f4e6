import { type Move, RAM_BYTES, type VmModel, type World } from './world.js';

const CODE_AT = 0x1000;
const DATA_AT = 0x8000;
const STACK_AT = 0x7000;
const RUNS_MAX = 10;
const REAL_MODE_END = 0xffff0;
/** Last offset in a segment at which an access of 4 bytes does not reach its end. */
const OFFSET_MAX = 0xfff0;
const HLT = 0xf4;
const PLACES = [DATA_AT, 0x9ffe, 0xf8000, 0xf8004, 0xf9000, 0xfa000, 0x20000, 0x7fffe] as const;
const VALUES = [0x11, 0x1122, 0x44332211, 0, 0xffffffff] as const;

type Width = 1 | 2 | 4;

const littleEndian = (value: number, width: number): number[] =>
  Array.from({ length: width }, (_, index) => Math.floor(value / 2 ** (8 * index)) % 256);

const operandSize = (width: Width): number[] => (width === 4 ? [0x66] : []);
const opcode = (width: Width, byte: number): number[] => [...operandSize(width), width === 1 ? byte : byte + 1];

/** mov ax, segment; mov ds, ax: makes `address` reachable, and gives its offset. */
const reach = (address: number): { readonly code: number[]; readonly offset: number } => {
  const segment = (Math.min(address, REAL_MODE_END) >> 4) & 0xf000;
  const offset = Math.min(address, REAL_MODE_END) - segment * 16;
  return { code: [0xb8, ...littleEndian(segment, 2), 0x8e, 0xd8], offset: Math.min(offset, OFFSET_MAX) };
};

const store = (address: number, value: number, width: Width): number[] => {
  const { code, offset } = reach(address);
  return [...code, ...opcode(width, 0xc6), 0x06, ...littleEndian(offset, 2), ...littleEndian(value, width)];
};

const load = (address: number, width: Width): number[] => {
  const { code, offset } = reach(address);
  return [...code, ...opcode(width, 0xa0), ...littleEndian(offset, 2)];
};

/** mov eax, value; mov dx, port; out dx, eax. */
const out = (port: number, value: number, width: Width): number[] => [
  ...[0x66, 0xb8, ...littleEndian(value, 4), 0xba, ...littleEndian(port, 2)],
  ...opcode(width, 0xee),
];

const inImmediate = (port: number, width: Width): number[] => [...opcode(width, 0xe4), port];

/** mov si, DATA_AT; mov cx, count; mov dx, port; rep outs or rep ins. */
const string = (port: number, count: number, width: Width, byte: 0x6c | 0x6e): number[] => [
  ...[0xbe, ...littleEndian(DATA_AT, 2), 0xbf, ...littleEndian(DATA_AT, 2), 0xb9, ...littleEndian(count, 2)],
  ...[0xba, ...littleEndian(port, 2), 0xf3, ...opcode(width, byte)],
];

/** An address at the begin, in the middle or near the end of a slot. */
const inSlot = ({ random }: World, vm: VmModel): number | null => {
  if (vm.slots.size === 0) return null;
  const { gpa, size } = random.pick([...vm.slots.values()]);
  return gpa + random.pick([0, 1, 4, 0x10, size - 2, size - 4, size]);
};

/** A piece of a program, and how many exits it may have. */
const piece = (world: World, vm: VmModel): { readonly code: number[]; readonly exits: number } => {
  const { random } = world;
  const width = random.pick<Width>([1, 2, 4]);
  const aim = vm.ioeventfds.length > 0 && random.chance(0.35) ? random.pick(vm.ioeventfds) : null;
  if (aim !== null) {
    const exact: Width = aim.len === 1 || aim.len === 2 || aim.len === 4 ? aim.len : width;
    if ((aim.flags & 2) !== 0) return { code: out(aim.addr, aim.datamatch, exact), exits: 1 };
    return { code: store(aim.addr, aim.datamatch, exact), exits: 2 };
  }
  const place = (random.chance(0.6) ? inSlot(world, vm) : null) ?? random.pick(PLACES);
  switch (random.below(10)) {
    case 0:
    case 1:
    case 2:
    case 3:
      return { code: store(place, random.pick(VALUES), width), exits: 2 };
    case 4:
    case 5:
      return { code: load(place, width), exits: 2 };
    case 6:
    case 7:
      return { code: out(random.pick([0x80, 0x90, 0x70]), random.pick(VALUES), width), exits: 1 };
    case 8:
      return { code: inImmediate(random.pick([0x80, 0x71]), width), exits: 1 };
    default: {
      const count = 1 + random.below(3);
      return { code: string(random.pick([0x80, 0x71]), count, width, random.pick([0x6c, 0x6e])), exits: count };
    }
  }
};

/** Puts a program at CODE_AT and lets a vCPU run it to its end, unless it wants more exits than are granted. */
const program: Move = (world, vm) => {
  const { random } = world;
  const vcpu = world.vcpu(vm);
  if (vcpu === null || vm.irqchip !== 'user') return;
  const code: number[] = [];
  let exits = 1;
  for (let count = 1 + random.below(6); count > 0; count--) {
    const next = piece(world, vm);
    code.push(...next.code);
    exits += next.exits;
  }
  const data = Buffer.from([...code, ...Array<number>(24).fill(HLT)]).toString('hex');
  world.add('write_mem', { map: vm.map, off: CODE_AT, data });
  const flat = Object.fromEntries(
    ['cs', 'ds', 'es', 'ss'].flatMap((name) => [
      [`${name}.base`, 0],
      [`${name}.selector`, 0],
    ]),
  );
  world.add('set_sregs', { vcpu, set: flat });
  world.add('set_regs', { vcpu, set: { rip: CODE_AT, rflags: 2, rsp: STACK_AT, rax: 0 } });
  for (let run = 0; run < Math.min(exits, RUNS_MAX); run++) {
    const io_in = random.u32().toString(16).padStart(8, '0');
    world.add('run', { vcpu, io_in, mmio_in: random.u64().toString(16).padStart(16, '0'), timeout_ms: 1000 });
  }
  world.add('run', { vcpu, immediate_exit: 1, io_in: '00000000', mmio_in: '00'.repeat(8) });
  world.add('get_regs', { vcpu, fields: ['rax', 'rsp'] });
  world.add('read_mem', { map: vm.map, off: DATA_AT, len: 16 });
  if (world.eventfds.length > 0) world.add('eventfd_read', { fd: random.pick(world.eventfds) });
};

/** What the guest's writes have left in the memory behind the slots. */
const readBacking: Move = (world, vm) =>
  world.add('read_mem', { map: vm.map, off: RAM_BYTES + world.random.below(184) * 0x1000, len: 64 });

export const GUEST_PROGRAM_MOVES = { program, readBacking } as const;
