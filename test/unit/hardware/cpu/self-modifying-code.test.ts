import { beforeEach, describe, expect, it } from 'vitest';
import { Cpu } from '../../../../server/hardware/cpu/cpu.js';
import { createMachine, FEATURES, longMode, type Machine, protectedMode, realMode } from './machine.js';

let machine: Machine;
const run = (): unknown => machine.cpu.run(1000);
const rax = (): bigint => machine.cpu.state.register(0);

beforeEach(() => {
  machine = createMachine();
});

describe('code that is written to', () => {
  it('executes what has been stored right behind the store', () => {
    protectedMode(machine, 'c60508100000 42 90 40 f4'); // mov byte [0x1008],0x42 (inc edx); nop; inc eax; hlt
    expect(run()).toEqual({ kind: 'hlt' });
    expect([rax(), machine.cpu.state.register(2)]).toEqual([0n, 0x601n]);
  });

  it('executes what a string instruction has put before itself', () => {
    realMode(machine, 'be0050 bf0b10 b90300 f3a4 40 40 f4'); // mov si,0x5000; mov di,0x100b; mov cx,3; rep movsb; inc ax ...
    machine.memory.write(0x5000, '42 42 f4');
    expect(run()).toEqual({ kind: 'hlt' });
    expect([rax(), machine.cpu.state.register(2)]).toEqual([0n, 0x602n]);
  });

  it('sees what the host has written between two runs', () => {
    longMode(machine, 'b801000000 f4');
    run();
    expect(rax()).toBe(1n);
    machine.memory.write(0x1001, '02');
    machine.cpu.state.rip = 0x1000n;
    run();
    expect(rax()).toBe(2n);
  });

  it('sees that what was no instruction has become one in its later bytes', () => {
    realMode(machine, '660fc3c0 f4'); // MOVNTI takes no operand-size prefix and no register
    machine.memory.write(4 * 6, '00300000'); // #UD: 0:3000
    machine.memory.write(0x3000, 'f4');
    expect(run()).toEqual({ kind: 'hlt' });
    expect(machine.cpu.state.rip).toBe(0x3000n);
    machine.memory.write(0x1001, '40 f4'); // inc eax; hlt
    machine.cpu.state.rip = 0x1000n;
    expect(run()).toEqual({ kind: 'hlt' });
    expect([rax(), machine.cpu.state.rip]).toEqual([1n, 0x1002n]);
  });

  it('sees what another CPU has written', () => {
    longMode(machine, 'b801000000 f4');
    run();
    const writer = new Cpu({ memory: machine.memory, features: FEATURES, readTsc: () => 0n });
    writer.state.setSegment('cs', { ...writer.state.segment('cs'), base: 0n, selector: 0 });
    machine.memory.write(0x4000, 'c606011009 f4'); // mov byte [0x1001],9
    writer.state.rip = 0x4000n;
    expect(writer.run(10)).toEqual({ kind: 'hlt' });
    machine.cpu.state.rip = 0x1000n;
    run();
    expect(rax()).toBe(9n);
  });

  it('keeps running where data lies beside the code', () => {
    // loop: inc dword [0x1100]; dec ecx; jnz loop
    protectedMode(machine, 'b9f4010000 ff0500110000 49 75f7 f4');
    while (machine.cpu.run(1000).kind === 'budget');
    expect(machine.memory.read(0x1100, 4)).toBe('f4010000');
  });

  it('executes what a page has been mapped to, not what it was', () => {
    longMode(machine, 'e8fb3f0000 f4'); // call 0x5000
    const { memory, cpu } = machine;
    memory.write64(0x22000, 0x23007n);
    for (let page = 0; page < 64; page++) memory.write64(0x23000 + 8 * page, BigInt(page * 4096) | 7n);
    memory.write(0x5000, 'b801000000c3');
    memory.write(0x6000, 'b802000000c3');
    run();
    expect(rax()).toBe(1n);
    memory.write64(0x23028, 0x6007n);
    cpu.flushTlb();
    cpu.state.rip = 0x1000n;
    run();
    expect(rax()).toBe(2n);
  });

  it('executes an instruction that lies across two pages, also after its second half has changed', () => {
    longMode(machine, 'e9f91f0000'); // jmp 0x2ffe
    machine.memory.write(0x2ffe, 'b811');
    machine.memory.write(0x3000, '000000 f4');
    run();
    expect(rax()).toBe(0x11n);
    machine.memory.write(0x3000, '220000 f4');
    machine.cpu.state.rip = 0x2ffen;
    run();
    expect(rax()).toBe(0x2211n);
  });
});
