import { beforeEach, describe, expect, it } from 'vitest';
import type { CpuExit } from '../../../../server/hardware/cpu/types.js';
import { createMachine, flatSegment, type Machine, protectedMode } from './machine.js';

const GDT = 0x10000;
const IDT = 0x11000;
const TSS = 0x12000;

const descriptor = (base: number, limit: number, access: number, flags: number): bigint =>
  BigInt(limit & 0xffff) |
  (BigInt(base & 0xffffff) << 16n) |
  (BigInt(access) << 40n) |
  (BigInt((limit >> 16) & 15) << 48n) |
  (BigInt(flags) << 52n) |
  (BigInt((base >>> 24) & 0xff) << 56n);

const interruptGate = (selector: number, offset: number, dpl: number, type = 14): bigint =>
  BigInt(offset & 0xffff) |
  (BigInt(selector) << 16n) |
  (BigInt(0x80 | (dpl << 5) | type) << 40n) |
  (BigInt(offset >>> 16) << 48n);

/** GDT: 8 kernel code, 16 kernel data, 0x18 user code, 0x20 user data, 0x28 TSS, 0x30 not present, 0x38 read-only, 0x40 LDT. */
function setUp(machine: Machine, code: string): void {
  const { cpu, memory } = machine;
  protectedMode(machine, code);
  const entries = [
    0n,
    descriptor(0, 0xfffff, 0x9a, 12),
    descriptor(0, 0xfffff, 0x92, 12),
    descriptor(0, 0xfffff, 0xfa, 12),
    descriptor(0, 0xfffff, 0xf2, 12),
    descriptor(TSS, 0x67, 0x89, 0),
    descriptor(0, 0xfffff, 0x12, 12),
    descriptor(0x3000, 0xff, 0x90, 4),
    descriptor(GDT, 0xff, 0x82, 0),
    interruptGate(8, 0x1900, 3, 12),
  ];
  entries.forEach((entry, index) => {
    memory.write64(GDT + 8 * index, entry);
  });
  cpu.state.setTable('gdt', { base: BigInt(GDT), limit: 0x7f });
  cpu.state.setTable('idt', { base: BigInt(IDT), limit: 0x7ff });
  memory.write64(IDT + 8 * 0x30, interruptGate(8, 0x1800, 3));
  cpu.state.setSegment('tr', { ...flatSegment(0x28, 11, {}), base: BigInt(TSS), limit: 0x67, s: 0, g: 0 });
  memory.write64(TSS + 4, 0x0010_0000_7800n);
  memory.write64(TSS + 8, 0x10n);
}

const handler = (machine: Machine, vector: number, offset: number, type = 14): void =>
  machine.memory.write64(IDT + 8 * vector, interruptGate(8, offset, 0, type));

let machine: Machine;
const run = (budget = 100): CpuExit => machine.cpu.run(budget);
const register = (index: number): bigint => machine.cpu.state.register(index);

beforeEach(() => {
  machine = createMachine();
});

describe('interrupts through the IDT', () => {
  it('pushes EFLAGS, CS and EIP on the same ring', () => {
    setUp(machine, 'cd30 f4');
    machine.memory.write(0x1800, '8b1c24 cf'); // mov ebx,[esp]; iretd
    machine.cpu.state.rflags = 0x202n;
    expect(run()).toEqual({ kind: 'hlt' });
    expect(register(3)).toBe(0x1002n);
    expect(machine.memory.read(0x7ff4, 12)).toBe('021000000800000002020000');
  });

  it('switches to the stack of the TSS from ring 3, and back', () => {
    setUp(machine, '6a23 6800700000 9c 6a1b 6800190000 cf'); // iretd to 0x1b:0x1900
    machine.memory.write(0x1900, '8cc8 cd30 90 f4'); // mov eax,cs; int 0x30; nop; hlt
    machine.memory.write(0x1800, '8cd3 cf'); // mov ebx,ss; iretd
    handler(machine, 13, 0x1a00);
    machine.memory.write(0x1a00, 'f4');
    expect(run(6)).toEqual({ kind: 'budget' });
    expect(machine.cpu.state.cpl).toBe(3);
    expect(run(2)).toEqual({ kind: 'budget' });
    expect(machine.cpu.state.cpl).toBe(0);
    expect(register(4)).toBe(0x77ecn);
    expect(machine.memory.read(0x77ec, 20)).toBe('041900001b000000020000000070000023000000');
    // HLT in ring 3 is #GP: its handler halts.
    expect(run()).toEqual({ kind: 'hlt' });
    expect(register(3)).toBe(0x10n);
    expect(register(0)).toBe(0x1bn);
    expect(machine.memory.read(0x77e8, 8)).toBe('0000000005190000');
  });

  it('checks the privilege of a software interrupt', () => {
    setUp(machine, 'cd31');
    machine.memory.write64(IDT + 8 * 0x31, interruptGate(8, 0x1800, 0));
    machine.cpu.state.setSegment('cs', flatSegment(0x1b, 11, { db: 1, dpl: 3 }));
    machine.cpu.state.setSegment('ss', flatSegment(0x23, 3, { db: 1, dpl: 3 }));
    handler(machine, 13, 0x1a00);
    machine.memory.write(0x1a00, '58 f4'); // pop eax
    expect(run()).toEqual({ kind: 'hlt' });
    expect(register(0)).toBe(BigInt(0x31 * 8 + 2));
  });

  it('leaves IF alone in a trap gate and clears it in an interrupt gate', () => {
    setUp(machine, '90');
    handler(machine, 0x40, 0x1800, 15);
    handler(machine, 0x41, 0x1800, 14);
    machine.memory.write(0x1800, '90f4');
    machine.cpu.state.rflags = 0x202n;
    machine.cpu.injectInterrupt(0x40);
    run(1);
    expect(machine.cpu.state.rflags & 0x200n).toBe(0x200n);
    machine.cpu.injectInterrupt(0x41);
    run(1);
    expect(machine.cpu.state.rflags & 0x200n).toBe(0n);
  });
});

describe('faults', () => {
  it('makes a double fault of a missing handler, and a shutdown of that', () => {
    setUp(machine, '0f0b');
    handler(machine, 8, 0x1a00);
    machine.memory.write(0x1a00, '58f4');
    // #UD finds no gate: #NP is contributory, but #UD is not, so #NP follows; that has no gate either: #DF.
    expect(run()).toEqual({ kind: 'hlt' });
    expect(register(0)).toBe(0n);
    machine.memory.write64(IDT + 64, 0n);
    setUp(machine, '0f0b');
    expect(run()).toEqual({ kind: 'shutdown' });
  });

  it('says with its error code that an external event caused it', () => {
    setUp(machine, '90');
    handler(machine, 13, 0x1a00);
    machine.memory.write(0x1a00, '58f4');
    machine.cpu.injectInterrupt(0x50);
    expect(run()).toEqual({ kind: 'hlt' });
    expect(register(0)).toBe(BigInt(0x50 * 8 + 3));
  });

  it('tells the kernel which event was on its way when nested paging stops the delivery', () => {
    setUp(machine, '90');
    machine.memory.missing.add(IDT >> 12);
    machine.cpu.injectInterrupt(0x30);
    expect(run()).toMatchObject({
      kind: 'nested-fault',
      gpa: IDT + 0x30 * 8,
      delivering: { type: 'interrupt', vector: 0x30, errorCode: null },
    });
    expect(machine.cpu.state.rip).toBe(0x1000n);
    expect(machine.cpu.pendingEvent).toBeNull();
  });
});

describe('segment loads', () => {
  const load = (selector: number): string => `66b8${(selector & 0xff).toString(16).padStart(2, '0')}00 8ed8 f4`; // mov ds,ax

  const faultOf = (selector: number): CpuExit => {
    machine = createMachine();
    setUp(machine, load(selector));
    machine.cpu.setIntercepts({
      exceptions: -1,
      pause: false,
      rdtsc: false,
      cr8Write: false,
      writeTraps: false,
      singleStep: false,
      nonAutomatic: 'exit',
    });
    return run();
  };

  it('fills the hidden part and sets the accessed bit', () => {
    setUp(machine, load(0x38));
    expect(run()).toEqual({ kind: 'hlt' });
    expect(machine.cpu.state.segment('ds')).toMatchObject({ base: 0x3000n, limit: 0xff, selector: 0x38, type: 1, db: 1 });
    expect(machine.memory.read(GDT + 0x38 + 5, 1)).toBe('91');
  });

  it('refuses what cannot be loaded', () => {
    expect(faultOf(0x30)).toEqual({ kind: 'exception', vector: 11, errorCode: 0x30 });
    expect(faultOf(0x28)).toEqual({ kind: 'exception', vector: 13, errorCode: 0x28 });
    expect(faultOf(0x80)).toEqual({ kind: 'exception', vector: 13, errorCode: 0x80 });
    expect(faultOf(0)).toEqual({ kind: 'hlt' });
  });

  it('lets nothing through a null segment, past a limit, or into a read-only one', () => {
    setUp(machine, `${load(0).replace('f4', '')} a100500000`);
    handler(machine, 13, 0x1a00);
    machine.memory.write(0x1a00, 'f4');
    expect(run()).toEqual({ kind: 'hlt' });
    expect(machine.cpu.state.rip).toBe(0x1a00n);
    for (const code of ['a1fd000000', 'a300000000']) {
      machine = createMachine();
      setUp(machine, `${load(0x38).replace('f4', '')} ${code} f4`);
      handler(machine, 13, 0x1a00);
      machine.memory.write(0x1a00, '90f4');
      expect(run(4)).toEqual({ kind: 'budget' });
      expect(machine.cpu.state.rip).toBe(0x1a01n);
    }
  });

  it('clears base and limit of a segment that a null selector is loaded into', () => {
    setUp(machine, load(0));
    machine.cpu.state.setSegment('ds', { ...flatSegment(16, 3, { db: 1 }), base: 0x1234_0000n });
    expect(run()).toEqual({ kind: 'hlt' });
    expect(machine.cpu.state.segment('ds')).toMatchObject({ selector: 0, base: 0n, limit: 0, unusable: 1 });
  });

  it('takes an expand-down segment above its limit only', () => {
    setUp(machine, 'a100500000 a1ff0f0000');
    machine.cpu.state.setSegment('ds', { ...flatSegment(16, 7, { db: 1 }), limit: 0x1fff });
    handler(machine, 13, 0x1a00);
    machine.memory.write(0x1a00, 'f4');
    expect(run(1)).toEqual({ kind: 'budget' });
    expect(machine.cpu.state.rip).toBe(0x1005n);
    expect(run()).toEqual({ kind: 'hlt' });
  });

  it('loads TR and LDTR and marks the TSS busy', () => {
    setUp(machine, '66b82800 0f00d8 66b84000 0f00d0 f4'); // ltr 0x28; lldt 0x40
    expect(run()).toEqual({ kind: 'hlt' });
    expect(machine.cpu.state.segment('tr')).toMatchObject({ selector: 0x28, base: BigInt(TSS), type: 11 });
    expect(machine.cpu.state.segment('ldt')).toMatchObject({ selector: 0x40, base: BigInt(GDT), type: 2 });
    expect(machine.memory.read(GDT + 0x28 + 5, 1)).toBe('8b');
  });

  it('answers VERR, VERW, LAR and LSL', () => {
    // mov ax,0x38; verr ax; setz bl; verw ax; setz bh; lsl ecx,eax; lar edx,eax
    setUp(machine, '66b83800 0f00e0 0f94c3 0f00e8 0f94c7 0f03c8 0f02d0 f4');
    expect(run()).toEqual({ kind: 'hlt' });
    expect(register(3)).toBe(1n);
    expect(register(1)).toBe(0xffn);
    expect(register(2)).toBe(0x409000n);
  });
});

describe('far transfers between rings', () => {
  it('calls through a gate onto the inner stack and returns', () => {
    setUp(machine, '9a000000004800 f4'); // lcall 0x48:0
    machine.cpu.state.setSegment('cs', flatSegment(0x1b, 11, { db: 1, dpl: 3 }));
    machine.cpu.state.setSegment('ss', flatSegment(0x23, 3, { db: 1, dpl: 3 }));
    machine.memory.write(0x1900, '8cd3 cb'); // mov ebx,ss; retf
    expect(run(1)).toEqual({ kind: 'budget' });
    expect(machine.cpu.state.cpl).toBe(0);
    expect(register(4)).toBe(0x77f0n);
    expect(machine.memory.read(0x77f0, 16)).toBe('071000001b0000000080000023000000');
    expect(run(2)).toEqual({ kind: 'budget' });
    expect(register(3)).toBe(0x10n);
    expect(machine.cpu.state.cpl).toBe(3);
    expect([register(4), machine.cpu.state.rip]).toEqual([0x8000n, 0x1007n]);
  });

  it('takes away inner data segments on the way out', () => {
    setUp(machine, '6a23 6800700000 9c 6a1b 6800190000 cf');
    machine.memory.write(0x1900, '90');
    run(6);
    expect(machine.cpu.state.segment('ds')).toMatchObject({ selector: 0, unusable: 1 });
    expect(machine.cpu.state.segment('ss')).toMatchObject({ selector: 0x23, dpl: 3 });
  });
});

describe('from real mode', () => {
  it('switches by CR0.PE and a far jump', () => {
    const { cpu, memory } = machine;
    setUp(machine, '');
    cpu.reset();
    memory.write(0x600, '7f0000000100');
    memory.write(0x1000, '0f01160006 0f20c0 0c01 0f22c0 ea00190800'); // lgdt [0x600]; cr0 |= 1; jmp 8:0x1900
    memory.write(0x1900, '66b81000 8ed8 8ed0 a100200100 f4');
    memory.write(0x12000, '78563412');
    cpu.state.setSegment('cs', { ...cpu.state.segment('cs'), base: 0n, selector: 0 });
    cpu.state.rip = 0x1000n;
    expect(run()).toEqual({ kind: 'hlt' });
    expect(register(0)).toBe(0x12345678n);
    expect(cpu.state.segment('cs')).toMatchObject({ selector: 8, limit: 0xffffffff, db: 1, g: 1 });
  });
});
