import { Cpu } from '../../../../server/hardware/cpu/cpu.js';
import type {
  CpuFeatures,
  MappedPage,
  MemoryAccess,
  NestedFault,
  PhysicalMemory,
  Segment,
} from '../../../../server/hardware/cpu/types.js';
import { Dram, type Frame, type MemoryKey } from '../../../../server/hardware/dram.js';
import { type Gpa, gpaToGfn } from '../../../../server/hardware/units.js';

export const FEATURES: CpuFeatures = {
  physicalAddressBits: 48,
  cr4Reserved: 0xff000000 | 0,
  gigabytePages: true,
  noExecute: true,
};

/** Guest memory without a kernel: RAM from 0, everything above is MMIO. */
class FlatMemory implements PhysicalMemory {
  readonly dram = new Dram(0x100, 0x10000);
  readonly frames: Frame[] = [];
  /** Guest frames that answer with a nested fault that is no MMIO. */
  readonly missing = new Set<number>();
  readonly readOnly = new Set<number>();
  /** Key of encrypted accesses. */
  key: MemoryKey | null = null;
  readonly log: { readonly gpa: number; readonly access: MemoryAccess; readonly encrypted: boolean }[] = [];

  constructor(bytes: number) {
    for (let at = 0; at < bytes; at += 4096) {
      const frame = this.dram.allocate();
      if (frame === null) throw new Error('test memory is exhausted');
      this.frames.push(frame);
    }
  }

  map(address: Gpa, access: MemoryAccess, encrypted: boolean): MappedPage | NestedFault {
    this.log.push({ gpa: address, access, encrypted });
    const gfn = gpaToGfn(address);
    if (this.missing.has(gfn)) return { kind: 'nested-fault', mmio: false };
    const frame = this.frames[gfn];
    if (frame === undefined || (access === 'write' && this.readOnly.has(gfn))) return { kind: 'nested-fault', mmio: true };
    return { kind: 'mapped', frame, key: encrypted ? this.key : null, writable: !this.readOnly.has(gfn) };
  }

  write(address: number, data: Uint8Array | string, key: MemoryKey | null = null): void {
    const bytes = typeof data === 'string' ? Uint8Array.from(Buffer.from(data.replaceAll(' ', ''), 'hex')) : data;
    bytes.forEach((byte, index) => {
      const at = address + index;
      this.frames[Math.floor(at / 4096)].viewForWrite(key)[at % 4096] = byte;
    });
  }

  read(address: number, length: number, key: MemoryKey | null = null): string {
    let hex = '';
    for (let at = address; at < address + length; at++) {
      hex += this.frames[Math.floor(at / 4096)].view(key)[at % 4096].toString(16).padStart(2, '0');
    }
    return hex;
  }

  write64(address: number, value: bigint, key: MemoryKey | null = null): void {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, value, true);
    this.write(address, bytes, key);
  }

  read64(address: number): bigint {
    return Buffer.from(this.read(address, 8), 'hex').readBigUInt64LE();
  }
}

export interface Machine {
  readonly cpu: Cpu;
  readonly memory: FlatMemory;
}

export function createMachine(bytes = 0x40000): Machine {
  const memory = new FlatMemory(bytes);
  let tsc = 0n;
  const cpu = new Cpu({ memory, features: FEATURES, readTsc: () => ++tsc });
  return { cpu, memory };
}

export const flatSegment = (
  selector: number,
  type: number,
  mode: { readonly db?: number; readonly l?: number; readonly dpl?: number },
): Segment => ({
  base: 0n,
  limit: 0xffffffff,
  selector,
  type,
  present: 1,
  dpl: mode.dpl ?? 0,
  db: mode.db ?? 0,
  s: 1,
  l: mode.l ?? 0,
  g: 1,
  avl: 0,
  unusable: 0,
});

const CODE_AT = 0x1000;
const STACK_AT = 0x8000;

/** Real mode with CS 0: code at 0x1000, stack below 0x8000. */
export function realMode(machine: Machine, code: string): void {
  const { cpu, memory } = machine;
  memory.write(CODE_AT, code);
  cpu.state.setSegment('cs', { ...cpu.state.segment('cs'), base: 0n, selector: 0 });
  cpu.state.rip = BigInt(CODE_AT);
  cpu.state.setRegister(4, BigInt(STACK_AT));
}

/** 32-bit protected mode, flat, without paging. */
export function protectedMode(machine: Machine, code: string): void {
  const { cpu, memory } = machine;
  memory.write(CODE_AT, code);
  const { state } = cpu;
  state.setSegment('cs', flatSegment(8, 11, { db: 1 }));
  for (const name of ['ds', 'es', 'ss', 'fs', 'gs'] as const) state.setSegment(name, flatSegment(16, 3, { db: 1 }));
  state.cr0 = 0x11n;
  state.rip = BigInt(CODE_AT);
  state.setRegister(4, BigInt(STACK_AT));
}

/** Page tables of long mode at 0x20000: 2 MiB pages, the first identity-mapped, `cBit` in every entry. */
export function identityPageTables(memory: FlatMemory, cBit = 0n, key: MemoryKey | null = null): void {
  memory.write64(0x20000, 0x21007n | cBit, key);
  memory.write64(0x21000, 0x22007n | cBit, key);
  memory.write64(0x22000, 0x87n | cBit, key);
}

/** 64-bit mode with the first 2 MiB identity-mapped; page tables at 0x20000. */
export function longMode(machine: Machine, code: string): void {
  const { cpu, memory } = machine;
  memory.write(CODE_AT, code);
  identityPageTables(memory);
  enterLongMode(cpu);
}

export function enterLongMode(cpu: Cpu): void {
  const { state } = cpu;
  state.setSegment('cs', flatSegment(8, 11, { l: 1 }));
  for (const name of ['ds', 'es', 'ss', 'fs', 'gs'] as const) state.setSegment(name, flatSegment(16, 3, { db: 1 }));
  state.cr3 = 0x20000n;
  state.cr4 = 0x620n;
  state.efer = 0xd01n;
  state.cr0 = 0x80050033n;
  state.rip = BigInt(CODE_AT);
  state.setRegister(4, BigInt(STACK_AT));
}
