import { Cpu } from '../../server/hardware/cpu/cpu.js';
import type { MappedPage, NestedFault, PhysicalMemory, Segment } from '../../server/hardware/cpu/types.js';
import { Dram, type Frame } from '../../server/hardware/dram.js';
import { type Gpa, gpaToGfn } from '../../server/hardware/units.js';
import type { Figure } from './figure.js';

const CODE_AT = 0x1000;
const PAGE_TABLES_AT = 0x20000;
const RAM_BYTES = 0x40000;
const SLICE = 100_000;
/** Instructions a second in a register loop, on one core. */
const TARGET = 20_000_000;
/** Each loop runs once to be compiled and once to be measured. */
const ROUNDS = 2;

class Ram implements PhysicalMemory {
  private readonly frames: Frame[];

  constructor() {
    const dram = new Dram(0x100, RAM_BYTES / 4096);
    this.frames = Array.from({ length: RAM_BYTES / 4096 }, () => {
      const frame = dram.allocate();
      if (frame === null) throw new Error('no memory for the benchmark');
      return frame;
    });
  }

  map(address: Gpa): MappedPage | NestedFault {
    const frame = this.frames[gpaToGfn(address)];
    return frame === undefined ? { kind: 'nested-fault', mmio: true } : { kind: 'mapped', frame, key: null, writable: true };
  }

  write(address: number, hex: string): void {
    Buffer.from(hex.replaceAll(' ', ''), 'hex').forEach((byte, index) => {
      const at = address + index;
      this.frames[Math.floor(at / 4096)].viewForWrite(null)[at % 4096] = byte;
    });
  }
}

const segment = (selector: number, type: number, l: number, db: number): Segment => ({
  ...{ base: 0n, limit: 0xffffffff, selector, type, present: 1, dpl: 0, db, s: 1, l, g: 1, avl: 0, unusable: 0 },
});

function createGuest(bits: 16 | 32 | 64, code: string): Cpu {
  const memory = new Ram();
  const features = { physicalAddressBits: 48, cr4Reserved: 0, gigabytePages: true, noExecute: true };
  const cpu = new Cpu({ memory, features, readTsc: () => 0n });
  const { state } = cpu;
  memory.write(CODE_AT, code);
  memory.write(PAGE_TABLES_AT, '0710020000000000');
  memory.write(PAGE_TABLES_AT + 0x1000, '0720020000000000');
  memory.write(PAGE_TABLES_AT + 0x2000, '8700000000000000');
  if (bits === 16) {
    state.setSegment('cs', { ...state.segment('cs'), base: 0n, selector: 0 });
  } else {
    state.setSegment('cs', segment(8, 11, bits === 64 ? 1 : 0, bits === 32 ? 1 : 0));
    for (const name of ['ds', 'es', 'ss'] as const) state.setSegment(name, segment(16, 3, 0, 1));
    state.cr3 = BigInt(PAGE_TABLES_AT);
    state.cr4 = 0x620n;
    state.efer = bits === 64 ? 0x500n : 0n;
    state.cr0 = bits === 64 ? 0x80000011n : 0x11n;
  }
  state.rip = BigInt(CODE_AT);
  state.setRegister(4, 0x8000n);
  return cpu;
}

interface Loop {
  readonly name: string;
  readonly bits: 16 | 32 | 64;
  readonly code: string;
}

const LOOPS: readonly Loop[] = [
  // mov rcx,10^7; 1: add rax,rbx; xor rdx,rax; inc rsi; dec rcx; jnz 1b; hlt
  { name: 'registers, 64 bit', bits: 64, code: '48c7c180969800 4801d8 4831c2 48ffc6 48ffc9 75f2 f4' },
  { name: 'registers, 32 bit', bits: 32, code: 'b980969800 01d8 31c2 46 49 75f8 f4' },
  { name: 'registers, 16 bit', bits: 16, code: '66b980969800 01d8 31c2 46 6649 75f7 f4' },
  // mov ecx,10^7; 1: mov eax,[0x5000]; inc eax; mov [0x5000],eax; dec ecx; jnz 1b; hlt
  { name: 'loads and stores', bits: 32, code: 'b980969800 a100500000 40 a300500000 49 75f2 f4' },
  // mov rcx,5*10^6; 1: call 2f; dec rcx; jnz 1b; hlt; 2: push rbp; mov rbp,rsp; mov rax,[rbp+8]; pop rbp; ret
  { name: 'calls', bits: 64, code: '48c7c1404b4c00 e806000000 48ffc9 75f6 f4 55 4889e5 488b4508 5d c3' },
];

function measure(loop: Loop): number {
  const cpu = createGuest(loop.bits, loop.code);
  let slices = 0;
  const start = process.cpuUsage();
  let exit = cpu.run(SLICE);
  for (; exit.kind === 'budget'; exit = cpu.run(SLICE)) slices++;
  if (exit.kind !== 'hlt') throw new Error(`${loop.name} ended with ${exit.kind}`);
  const { user, system } = process.cpuUsage(start);
  return (slices * SLICE) / ((user + system) / 1e6);
}

/** Guest instructions a second of one core's time. */
export const measureCpu = (): Figure[] =>
  LOOPS.map((loop) => {
    let perSecond = 0;
    for (let round = 0; round < ROUNDS; round++) perSecond = measure(loop);
    return {
      name: `guest instructions, ${loop.name}`,
      ours: `${(perSecond / 1e6).toFixed(1)} million/s`,
      baseline: `target ${TARGET / 1e6} million/s`,
      ratio: perSecond / TARGET,
      target: 'at least 1 for registers',
    };
  });
