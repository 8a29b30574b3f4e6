import { beforeEach, describe, expect, it } from 'vitest';
import type { EmulationBus, EmulationResult } from '../../../../server/hardware/cpu/types.js';
import { createMachine, longMode, type Machine, protectedMode, realMode } from './machine.js';

/** A bus that answers loads from a queue and writes down everything. */
class TestBus implements EmulationBus {
  readonly log: string[] = [];

  constructor(
    private readonly mmio: string[] = [],
    private readonly ports: string[] = [],
  ) {}

  readMmio(address: number, size: number): Uint8Array | null {
    this.log.push(`read ${address.toString(16)}+${size}`);
    const data = this.mmio.shift();
    return data === undefined ? null : Uint8Array.from(Buffer.from(data, 'hex'));
  }

  writeMmio(address: number, bytes: Uint8Array): void {
    this.log.push(`write ${address.toString(16)} ${Buffer.from(bytes).toString('hex')}`);
  }

  readPort(port: number, size: 1 | 2 | 4, count: number, all: boolean): Uint8Array | null {
    this.log.push(`in ${port.toString(16)} ${size}x${all ? count : 1}`);
    const data = this.ports.shift();
    return data === undefined ? null : Uint8Array.from(Buffer.from(data, 'hex'));
  }

  writePort(port: number, size: 1 | 2 | 4, bytes: Uint8Array): void {
    this.log.push(`out ${port.toString(16)} ${size} ${Buffer.from(bytes).toString('hex')}`);
  }
}

let machine: Machine;

beforeEach(() => {
  machine = createMachine();
});

const emulate = (bus: TestBus): EmulationResult => machine.cpu.emulate(bus);

describe('MMIO', () => {
  it('exits first, as the nested fault that the kernel sees', () => {
    longMode(machine, 'c7042500001000 44332211 f4');
    expect(machine.cpu.run(10)).toMatchObject({ kind: 'nested-fault', gpa: 0x100000, access: 'write', fault: { mmio: true } });
    expect(machine.cpu.state.rip).toBe(0x1000n);
  });

  it('loads a far pointer in one piece', () => {
    longMode(machine, '0fb42c2500001000 f4'); // lfs ebp, [0x100000]
    const bus = new TestBus(['785634120000']);
    expect(emulate(bus)).toMatchObject({ kind: 'retired' });
    expect(bus.log).toEqual(['read 100000+6']);
    expect(machine.cpu.state.register(5)).toBe(0x1234_5678n);
    expect(machine.cpu.state.segment('fs').selector).toBe(0);
  });

  it('collects a store and moves RIP past it', () => {
    longMode(machine, 'c7042500001000 44332211 f4');
    const bus = new TestBus();
    expect(emulate(bus)).toMatchObject({ kind: 'retired' });
    expect(bus.log).toEqual(['write 100000 44332211']);
    expect(machine.cpu.state.rip).toBe(0x100bn);
    expect(machine.cpu.run(10)).toEqual({ kind: 'hlt' });
  });

  it('leaves everything as it was while a load waits for its data', () => {
    longMode(machine, '4803042500001000 f4'); // add rax,[0x100000]
    machine.cpu.state.setRegister(0, 1n);
    const before = machine.cpu.state.getRegisters();
    expect(emulate(new TestBus())).toEqual({ kind: 'pending' });
    expect(machine.cpu.state.getRegisters()).toEqual(before);
    expect(emulate(new TestBus(['0200000000000000']))).toMatchObject({ kind: 'retired' });
    expect(machine.cpu.state.register(0)).toBe(3n);
    expect(machine.cpu.state.rip).toBe(0x1008n);
  });

  it('reads and then writes in a read-modify-write', () => {
    longMode(machine, '8304250000100005 f4'); // add dword [0x100000],5
    expect(emulate(new TestBus())).toEqual({ kind: 'pending' });
    const bus = new TestBus(['01000000']);
    expect(emulate(bus)).toMatchObject({ kind: 'retired' });
    expect(bus.log).toEqual(['read 100000+4', 'write 100000 06000000']);
  });

  it('splits 16 bytes into two fragments of 8', () => {
    longMode(machine, 'f30f6f042500001000 f30f7f042500011000 f4');
    const halves = ['0102030405060708', '1112131415161718'];
    const first = new TestBus(halves.slice(0, 1));
    expect(emulate(first)).toEqual({ kind: 'pending' });
    expect(first.log).toEqual(['read 100000+8', 'read 100008+8']);
    expect(emulate(new TestBus([...halves]))).toMatchObject({ kind: 'retired' });
    const bus = new TestBus();
    expect(emulate(bus)).toMatchObject({ kind: 'retired' });
    expect(bus.log).toEqual([`write 100100 ${halves[0]}`, `write 100108 ${halves[1]}`]);
  });

  it('does the RAM part of a store over the end of RAM', () => {
    longMode(machine, 'c70425feff0300 11223344 f4'); // at 0x3fffe
    const bus = new TestBus();
    expect(emulate(bus)).toMatchObject({ kind: 'retired' });
    expect(bus.log).toEqual(['write 40000 3344']);
    expect(machine.memory.read(0x3fffe, 2)).toBe('1122');
  });

  it('reads ROM and writes to the bus', () => {
    protectedMode(machine, '830500500000 01 f4'); // add dword [0x5000],1
    machine.memory.readOnly.add(5);
    machine.memory.write(0x5000, '41000000');
    expect(machine.cpu.run(10)).toMatchObject({ kind: 'nested-fault', access: 'write' });
    const bus = new TestBus();
    expect(emulate(bus)).toMatchObject({ kind: 'retired' });
    expect(bus.log).toEqual(['write 5000 42000000']);
  });

  it('reads before it calls through a pointer, and pushes the return address', () => {
    realMode(machine, 'b80070 8ed8 ff160000'); // mov ds,0x7000; call [0]
    machine.cpu.run(2);
    expect(emulate(new TestBus())).toEqual({ kind: 'pending' });
    expect(emulate(new TestBus(['0020']))).toMatchObject({ kind: 'retired' });
    expect(machine.cpu.state.rip).toBe(0x2000n);
    expect(machine.memory.read(0x7ffe, 2)).toBe('0910');
  });

  it('does one element of a repeated string instruction', () => {
    realMode(machine, 'f3a4 f4');
    const { state } = machine.cpu;
    for (const name of ['ds', 'es'] as const)
      state.setSegment(name, { ...state.segment(name), base: 0x70000n, selector: 0x7000 });
    state.setRegister(1, 2n);
    state.setRegister(7, 0x10n);
    expect(emulate(new TestBus())).toEqual({ kind: 'pending' });
    const bus = new TestBus(['77']);
    expect(emulate(bus)).toMatchObject({ kind: 'retired' });
    expect(bus.log).toEqual(['read 70000+1', 'write 70010 77']);
    expect([state.register(1), state.register(6), state.rip]).toEqual([1n, 1n, 0x1000n]);
    expect(emulate(new TestBus(['88']))).toMatchObject({ kind: 'retired' });
    expect([state.register(1), state.rip]).toEqual([0n, 0x1000n]);
    expect(machine.cpu.run(2)).toEqual({ kind: 'hlt' });
  });

  it('asks for memory that is not there yet instead of going to the bus', () => {
    longMode(machine, '8b042500500000');
    machine.memory.missing.add(5);
    expect(emulate(new TestBus())).toMatchObject({ kind: 'exit', exit: { kind: 'nested-fault', gpa: 0x5000 } });
  });

  it('leaves an exception to the next run', () => {
    longMode(machine, 'f7342500001000'); // div dword [0x100000]
    expect(emulate(new TestBus(['00000000']))).toEqual({ kind: 'exception', vector: 0 });
    expect(machine.cpu.pendingEvent).toEqual({ type: 'exception', vector: 0, errorCode: null });
    expect(machine.cpu.state.rip).toBe(0x1000n);
  });
});

describe('string I/O', () => {
  const setUp = (code: string, count: bigint): void => {
    realMode(machine, code);
    machine.cpu.state.setRegister(1, count);
    machine.cpu.state.setRegister(2, 0x3f8n);
    machine.cpu.state.setRegister(6, 0x5000n);
    machine.cpu.state.setRegister(7, 0x3000n);
  };

  it('takes INS in batches of 1024 bytes', () => {
    setUp('f36c f4', 2000n);
    const waiting = new TestBus();
    expect(emulate(waiting)).toEqual({ kind: 'pending' });
    expect(waiting.log).toEqual(['in 3f8 1x1024']);
    expect(emulate(new TestBus([], ['5a'.repeat(1024)]))).toMatchObject({ kind: 'retired' });
    expect(machine.memory.read(0x33ff, 2)).toBe('5a00');
    expect([machine.cpu.state.register(1), machine.cpu.state.register(7)]).toEqual([976n, 0x3400n]);
    expect(machine.cpu.state.rip).toBe(0x1000n);
    const rest = new TestBus([], ['a5'.repeat(976)]);
    expect(emulate(rest)).toMatchObject({ kind: 'retired' });
    expect(rest.log).toEqual(['in 3f8 1x976']);
    expect([machine.cpu.state.register(1), machine.cpu.state.rip]).toEqual([0n, 0x1000n]);
    expect(machine.cpu.run(2)).toEqual({ kind: 'hlt' });
  });

  it('goes over a page border', () => {
    setUp('f36d f4', 4n);
    machine.cpu.state.setRegister(7, 0x3ffcn);
    expect(emulate(new TestBus([], ['1111222233334444']))).toMatchObject({ kind: 'retired', repeats: true });
    expect(machine.memory.read(0x3ffc, 8)).toBe('1111222233334444');
  });

  it('stores one element of INS at a time backwards', () => {
    setUp('fd f36c f4', 2n);
    machine.cpu.state.setRegister(7, 0x3004n);
    machine.cpu.run(1);
    const bus = new TestBus([], ['a1', 'a2']);
    expect(emulate(bus)).toMatchObject({ kind: 'retired', repeats: true });
    expect(machine.memory.read(0x3003, 2)).toBe('00a1');
    expect(machine.cpu.state.register(7)).toBe(0x3003n);
    expect(emulate(bus)).toMatchObject({ kind: 'retired', repeats: true });
    expect(machine.memory.read(0x3003, 2)).toBe('a2a1');
    expect(bus.log).toEqual(['in 3f8 1x1', 'in 3f8 1x1']);
    expect(machine.cpu.run(2)).toEqual({ kind: 'hlt' });
  });

  it('has RFLAGS.RF set between iterations, and clear behind the last', () => {
    setUp('f36c f4', 1n);
    const bus = new TestBus([], ['5a']);
    emulate(bus);
    expect(machine.cpu.state.rflags & 0x10000n).toBe(0x10000n);
    expect(emulate(bus)).toMatchObject({ kind: 'retired', repeats: false });
    expect(machine.cpu.state.rflags & 0x10000n).toBe(0n);
    expect(machine.cpu.state.rip).toBe(0x1002n);
  });

  it('puts OUTS out one by one', () => {
    setUp('f36e f4', 2n);
    machine.memory.write(0x5000, '4142');
    const bus = new TestBus();
    expect(emulate(bus)).toMatchObject({ kind: 'retired' });
    expect(emulate(bus)).toMatchObject({ kind: 'retired' });
    expect(bus.log).toEqual(['out 3f8 1 41', 'out 3f8 1 42']);
    expect(machine.cpu.run(2)).toEqual({ kind: 'hlt' });
  });
});
