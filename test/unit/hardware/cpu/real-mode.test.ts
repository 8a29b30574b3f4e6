import { describe, expect, it } from 'vitest';
import { createMachine, realMode } from './machine.js';

const hex = (value: bigint): string => `0x${value.toString(16)}`;

describe('reset', () => {
  it('starts at the reset vector with the architectural values', () => {
    const { state } = createMachine().cpu;
    expect(state.rip).toBe(0xfff0n);
    expect(state.segment('cs')).toMatchObject({ base: 0xffff0000n, selector: 0xf000, limit: 0xffff, type: 11, s: 1, present: 1 });
    expect(state.segment('ss')).toMatchObject({ base: 0n, selector: 0, limit: 0xffff, type: 3 });
    expect(state.segment('tr')).toMatchObject({ type: 11, s: 0, present: 1 });
    expect(state.segment('ldt')).toMatchObject({ type: 2, s: 0, present: 1 });
    expect(hex(state.cr0)).toBe('0x60000010');
    expect(state.rflags).toBe(2n);
    expect(state.register(2)).toBe(0x600n);
    expect(state.table('idt')).toEqual({ base: 0n, limit: 0xffff });
    expect(hex(state.debugRegister(6))).toBe('0xffff0ff0');
    expect(hex(state.debugRegister(7))).toBe('0x400');
  });

  it('fetches from the top of the first 4 GiB', () => {
    const { cpu, memory } = createMachine();
    expect(cpu.run(10)).toMatchObject({ kind: 'nested-fault', gpa: 0xfffffff0, access: 'execute' });
    expect(memory.log[0].gpa).toBe(0xfffffff0);
  });

  it('keeps the caching bits of CR0 over an INIT, and starts at the vector of a SIPI', () => {
    const { cpu } = createMachine();
    cpu.state.cr0 = 0x11n;
    cpu.init();
    expect(cpu.state.cr0).toBe(0x10n);
    cpu.state.startup(0x9a);
    expect(cpu.state.segment('cs')).toMatchObject({ base: 0x9a000n, selector: 0x9a00 });
    expect(cpu.state.rip).toBe(0n);
  });
});

describe('interrupts and exceptions through the IVT', () => {
  it('pushes FLAGS, CS and IP, clears IF, and IRET comes back', () => {
    const machine = createMachine();
    realMode(machine, 'cd21 41 f4'); // int 0x21; inc cx; hlt
    machine.memory.write(0x21 * 4, '0005 0001'); // 0x100:0x500
    machine.memory.write(0x1500, '42cf'); // inc dx; iret
    const { cpu, memory } = machine;
    cpu.state.rflags = 0x202n;
    expect(cpu.run(1)).toEqual({ kind: 'budget' });
    expect(cpu.state.segment('cs').selector).toBe(0x100);
    expect(cpu.state.rip).toBe(0x500n);
    expect(cpu.state.rflags & 0x200n).toBe(0n);
    expect(memory.read(0x7ffa, 6)).toBe('021000000202');
    expect(cpu.run(10)).toEqual({ kind: 'hlt' });
    expect([cpu.state.register(1), cpu.state.register(2)]).toEqual([1n, 0x601n]);
    expect(cpu.state.rflags & 0x200n).toBe(0x200n);
    expect(cpu.state.register(4)).toBe(0x8000n);
  });

  it('returns to the faulting instruction after #DE', () => {
    const machine = createMachine();
    realMode(machine, 'b83412 89c3 f6f7 f4'); // AX / 0x12 does not fit in AL
    machine.memory.write(0, '0005 0001');
    machine.memory.write(0x1500, 'f4');
    expect(machine.cpu.run(10)).toEqual({ kind: 'hlt' });
    expect(machine.memory.read(0x7ffa, 4)).toBe('05100000');
  });

  it('shuts down when the IVT has no room for the double fault', () => {
    const machine = createMachine();
    realMode(machine, '0f0b');
    machine.cpu.state.setTable('idt', { base: 0n, limit: 0 });
    expect(machine.cpu.run(10)).toEqual({ kind: 'shutdown' });
  });

  it('raises #GP for an access beyond the segment and #SS for one beyond the stack', () => {
    const machine = createMachine();
    realMode(machine, '66a1ffff f4'); // mov eax,[0xffff]
    machine.cpu.setIntercepts(interceptAll);
    expect(machine.cpu.run(10)).toEqual({ kind: 'exception', vector: 13, errorCode: 0 });
    realMode(machine, '58'); // pop ax at SP 0xffff
    machine.cpu.state.setRegister(4, 0xffffn);
    expect(machine.cpu.run(10)).toEqual({ kind: 'exception', vector: 12, errorCode: 0 });
  });

  it('delivers an injected interrupt before the next instruction and an NMI once until IRET', () => {
    const machine = createMachine();
    const { cpu, memory } = machine;
    realMode(machine, '90 f4');
    memory.write(0x40 * 4, '0005 0001');
    memory.write(8, '0006 0001');
    memory.write(0x1500, '42cf');
    memory.write(0x1600, '46cf');
    cpu.state.rflags = 0x202n;
    expect(cpu.canTakeInterrupt).toBe(true);
    cpu.injectInterrupt(0x40);
    expect(cpu.canTakeInterrupt).toBe(false);
    expect(cpu.run(10)).toEqual({ kind: 'hlt' });
    expect(cpu.state.register(2)).toBe(0x601n);
    cpu.injectNmi();
    expect(cpu.run(1)).toEqual({ kind: 'budget' });
    expect(cpu.canTakeNmi).toBe(false);
    cpu.run(1);
    expect(cpu.canTakeNmi).toBe(true);
    expect(cpu.state.register(6)).toBe(1n);
  });
});

const interceptAll = {
  exceptions: -1,
  pause: true,
  rdtsc: true,
  cr8Write: true,
  writeTraps: false,
  singleStep: false,
  nonAutomatic: 'exit',
} as const;

describe('interrupt shadow and windows', () => {
  it('holds interrupts off for one instruction after STI', () => {
    const machine = createMachine();
    const { cpu } = machine;
    realMode(machine, 'fb 90 90 f4');
    cpu.requestWindow({ interrupt: true });
    cpu.run(1);
    expect(cpu.state.interruptShadow).toBe('sti');
    expect(cpu.canTakeInterrupt).toBe(false);
    expect(cpu.run(10)).toEqual({ kind: 'interrupt-window' });
    expect(cpu.state.rip).toBe(0x1002n);
    cpu.requestWindow({ interrupt: false });
    expect(cpu.run(10)).toEqual({ kind: 'hlt' });
  });

  it('holds them off after MOV SS', () => {
    const machine = createMachine();
    realMode(machine, '8ed0 90 90 f4');
    machine.cpu.state.rflags = 0x202n;
    machine.cpu.run(1);
    expect(machine.cpu.state.interruptShadow).toBe('mov-ss');
    machine.cpu.run(1);
    expect(machine.cpu.state.interruptShadow).toBe('none');
  });

  it('ends the shadow when an exit in it is stepped over', () => {
    const machine = createMachine();
    realMode(machine, 'fb f4 f4');
    expect(machine.cpu.run(10)).toEqual({ kind: 'hlt' });
    expect(machine.cpu.state.interruptShadow).toBe('sti');
    machine.cpu.skipInstruction();
    expect(machine.cpu.state.rip).toBe(0x1002n);
    expect(machine.cpu.canTakeInterrupt).toBe(true);
  });
});

describe('far transfers', () => {
  it('loads selector and base, and RETF goes back', () => {
    const machine = createMachine();
    realMode(machine, 'ea10000002'); // jmp 0x200:0x10
    machine.memory.write(0x2010, '9a00200001 f4'); // call 0x100:0x2000; hlt
    machine.memory.write(0x3000, 'cb'); // retf
    expect(machine.cpu.run(10)).toEqual({ kind: 'hlt' });
    expect(machine.cpu.state.segment('cs')).toMatchObject({ selector: 0x200, base: 0x2000n });
    expect(machine.cpu.state.rip).toBe(0x15n);
    expect(machine.memory.read(0x7ffc, 4)).toBe('15000002');
  });

  it('pushes nothing for a call beyond the segment', () => {
    const machine = createMachine();
    realMode(machine, '669a 00000100 0000'); // call far 0:10000h
    machine.memory.write(4 * 13, '00300000');
    machine.memory.write(0x3000, 'f4');
    expect(machine.cpu.run(10)).toEqual({ kind: 'hlt' });
    expect(machine.cpu.state.register(4)).toBe(0x8000n - 6n);
    expect(machine.memory.read(0x7ffa, 2)).toBe('0010');
  });

  it('wraps offsets at 64 KiB and addresses at the base', () => {
    const machine = createMachine();
    realMode(machine, 'be0200 8a84feff f4'); // mov si,2; mov al,[si-2]
    machine.memory.write(0x20000, '77');
    machine.cpu.state.setSegment('ds', { ...machine.cpu.state.segment('ds'), base: 0x20000n, selector: 0x2000 });
    machine.cpu.run(10);
    expect(machine.cpu.state.register(0)).toBe(0x77n);
  });
});

describe('string instructions', () => {
  it('copies with CX, and stays on the instruction when a fault comes between elements', () => {
    const machine = createMachine();
    const { cpu, memory } = machine;
    realMode(machine, 'f3a4 f4');
    memory.write(0x4ffe, '0102030405');
    memory.missing.add(7);
    const { state } = cpu;
    state.setRegister(6, 0x4ffen);
    state.setRegister(7, 0x6ffen);
    state.setRegister(1, 5n);
    expect(cpu.run(10)).toMatchObject({ kind: 'nested-fault', gpa: 0x7000, access: 'write' });
    expect([state.register(1), state.register(6), state.register(7), state.rip]).toEqual([3n, 0x5000n, 0x7000n, 0x1000n]);
    memory.missing.clear();
    expect(cpu.run(10)).toEqual({ kind: 'hlt' });
    expect(memory.read(0x6ffe, 5)).toBe('0102030405');
  });

  it('does nothing for a count of zero', () => {
    const machine = createMachine();
    realMode(machine, 'f3a4 f4');
    expect(machine.cpu.run(10)).toEqual({ kind: 'hlt' });
    expect(machine.cpu.state.register(6)).toBe(0n);
  });

  it('gives others their turn in a long repetition', () => {
    const machine = createMachine();
    realMode(machine, 'f3ae f4'); // repe scasb over 64 KiB of zeros
    const { cpu } = machine;
    cpu.state.setRegister(1, 0xffffn);
    expect(cpu.run(1)).toEqual({ kind: 'budget' });
    expect(cpu.state.rip).toBe(0x1000n);
    expect(cpu.state.register(1)).toBeLessThan(0xffffn);
  });
});

describe('decimal adjustment', () => {
  it('corrects packed and unpacked digits', () => {
    const machine = createMachine();
    realMode(machine, 'b079 0435 27 f4'); // mov al,0x79; add al,0x35; daa
    machine.cpu.run(10);
    expect(machine.cpu.state.register(0)).toBe(0x14n);
    expect(machine.cpu.state.rflags & 1n).toBe(1n);
    realMode(machine, 'b84300 d40a f4'); // mov ax,67; aam
    machine.cpu.run(10);
    expect(machine.cpu.state.register(0)).toBe(0x607n);
  });
});
