import { describe, expect, it } from 'vitest';
import { CpuState } from '../../../../server/hardware/cpu/state.js';
import type { GeneralRegisters, Segment, SegmentName } from '../../../../server/hardware/cpu/types.js';
import { createMachine, protectedMode } from './machine.js';

describe('architectural state', () => {
  it('gives back general registers as they were set, and RFLAGS with its fixed bit', () => {
    const state = new CpuState();
    const registers: GeneralRegisters = state.getRegisters();
    let value = 0x1122334455667788n;
    for (const name of Object.keys(registers)) {
      if (name === 'rflags') continue;
      Object.assign(registers, { [name]: value });
      value = BigInt.asUintN(64, value * 3n);
    }
    state.setRegisters({ ...registers, rflags: 0xffffffffn });
    expect(state.getRegisters()).toEqual({ ...registers, rflags: 0x3f7fd7n });
    state.rflags = 0n;
    expect(state.rflags).toBe(2n);
  });

  it('gives back every field of every segment', () => {
    const state = new CpuState();
    const names: readonly SegmentName[] = ['es', 'cs', 'ss', 'ds', 'fs', 'gs', 'tr', 'ldt'];
    const segment: Segment = {
      ...{ base: 0xffff800012345678n, limit: 0xfffffffe, selector: 0xabcd, type: 10, present: 1, dpl: 2 },
      ...{ db: 1, s: 1, l: 1, g: 1, avl: 1, unusable: 1 },
    };
    for (const name of names) {
      state.setSegment(name, segment);
      expect(state.segment(name)).toEqual(segment);
    }
  });

  it('keeps the MSRs that the CPU serves itself, and knows no others', () => {
    const state = new CpuState();
    expect(state.writeMsr(0xc0000082, 0xffffffff81000000n)).toBe(true);
    expect(state.readMsr(0xc0000082)).toBe(0xffffffff81000000n);
    expect(state.writeMsr(0xc0000101, 0x1000n)).toBe(true);
    expect(state.segment('gs').base).toBe(0x1000n);
    expect(state.writeMsr(0x1b, 1n)).toBe(false);
    expect(state.readMsr(0x1b)).toBeNull();
  });

  it('works out the mode', () => {
    const { cpu } = createMachine();
    expect([cpu.state.protectedMode, cpu.state.longMode, cpu.state.cpl]).toEqual([false, false, 0]);
    cpu.state.cr0 = 0x80000011n;
    cpu.state.efer = 0x500n;
    cpu.state.setSegment('ss', { ...cpu.state.segment('ss'), dpl: 3 });
    cpu.state.setSegment('cs', { ...cpu.state.segment('cs'), l: 1 });
    expect([cpu.state.protectedMode, cpu.state.longMode, cpu.state.code64, cpu.state.cpl]).toEqual([true, true, true, 3]);
  });
});

describe('the way into long mode', () => {
  it('goes through PAE, CR3, EFER and CR0.PG, and ends with a far jump', () => {
    const machine = createMachine();
    const { cpu, memory } = machine;
    // cr4 |= PAE; cr3 = 0x20000; rdmsr EFER; eax |= LME; wrmsr; cr0 |= PG; jmp 0x18:0x1900
    protectedMode(
      machine,
      '0f20e0 83c820 0f22e0 b800000200 0f22d8 b9800000c0 0f32 0d00010000 0f30 0f20c0 0d00000080 0f22c0 ea001900001800',
    );
    memory.write64(0x20000, 0x21007n);
    memory.write64(0x21000, 0x22007n);
    memory.write64(0x22000, 0x87n);
    memory.write64(0x10018, 0x00af9a000000ffffn);
    memory.write(0x1900, '48b8efcdab8967452301 f4'); // mov rax,0x0123456789abcdef
    cpu.state.setTable('gdt', { base: 0x10000n, limit: 0x1f });
    expect(cpu.run(100)).toEqual({ kind: 'wrmsr', index: 0xc0000080, value: 0x100n });
    cpu.state.writeMsr(0xc0000080, 0x100n);
    cpu.skipInstruction();
    expect(cpu.run(100)).toEqual({ kind: 'hlt' });
    expect(cpu.state.efer).toBe(0x500n);
    expect(cpu.state.code64).toBe(true);
    expect(cpu.state.register(0)).toBe(0x0123456789abcdefn);
  });
});
