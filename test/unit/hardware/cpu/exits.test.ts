import { beforeEach, describe, expect, it } from 'vitest';
import type { CpuExit, Intercepts } from '../../../../server/hardware/cpu/types.js';
import { createMachine, flatSegment, longMode, type Machine, realMode } from './machine.js';

const PLAIN: Intercepts = {
  exceptions: 0,
  pause: false,
  rdtsc: false,
  cr8Write: false,
  writeTraps: false,
  singleStep: false,
  nonAutomatic: 'exit',
};

let machine: Machine;
const run = (budget = 100): CpuExit => machine.cpu.run(budget);

beforeEach(() => {
  machine = createMachine();
});

describe('budget', () => {
  it('stops after exactly as many instructions', () => {
    realMode(machine, '40 40 40 40 40 40 ebf8'); // inc ax ...; jmp back
    for (const budget of [1, 2, 3, 5, 100]) {
      const before = machine.cpu.state.register(0);
      machine.cpu.state.rip = 0x1000n;
      expect(run(budget)).toEqual({ kind: 'budget' });
      expect(machine.cpu.state.register(0) - before).toBe(BigInt(budget - Math.floor(budget / 7)));
    }
  });
});

describe('port I/O', () => {
  it('exits for IN and OUT, and completes an IN', () => {
    realMode(machine, 'e460 e780 66ed f4'); // in al,0x60; out 0x80,ax; in eax,dx
    const io = { kind: 'io', string: false };
    const { cpu } = machine;
    cpu.state.setRegister(0, 0x11223344n);
    cpu.state.setRegister(2, 0x3f8n);
    expect(run()).toEqual({ ...io, direction: 'in', port: 0x60, size: 1, value: 0 });
    expect(cpu.state.rip).toBe(0x1000n);
    cpu.completeIn(1, 0xab);
    expect(run()).toEqual({ ...io, direction: 'out', port: 0x80, size: 2, value: 0x33ab });
    cpu.skipInstruction();
    expect(run()).toEqual({ ...io, direction: 'in', port: 0x3f8, size: 4, value: 0 });
    cpu.completeIn(4, 0xffffffff);
    expect(cpu.state.register(0)).toBe(0xffffffffn);
    expect(run()).toEqual({ kind: 'hlt' });
  });

  it('says that a string form has to be emulated', () => {
    realMode(machine, 'f36e f4');
    machine.cpu.state.setRegister(1, 2n);
    machine.cpu.state.setRegister(2, 0x80n);
    expect(run()).toEqual({ kind: 'io', direction: 'out', port: 0x80, size: 1, string: true, value: 0 });
  });

  it('asks the permission bitmap of the TSS in ring 3', () => {
    longMode(machine, 'e460 e680');
    const { state } = machine.cpu;
    state.setSegment('cs', flatSegment(0x33, 11, { l: 1, dpl: 3 }));
    state.setSegment('ss', flatSegment(0x2b, 3, { db: 1, dpl: 3 }));
    state.setSegment('tr', { ...flatSegment(0x40, 11, {}), base: 0x12000n, limit: 0x100, s: 0, g: 0 });
    machine.memory.write(0x12064, '00006800');
    machine.memory.write(0x12068, `${'00'.repeat(16)}01`);
    machine.cpu.setIntercepts({ ...PLAIN, exceptions: -1 });
    expect(run()).toMatchObject({ kind: 'io', port: 0x60 });
    machine.cpu.completeIn(1, 0);
    expect(run()).toEqual({ kind: 'exception', vector: 13, errorCode: 0 });
  });
});

describe('intercepted instructions', () => {
  const exitOf = (code: string, prepare?: () => void): CpuExit => {
    longMode(machine, code);
    machine.cpu.setIntercepts({ ...PLAIN, exceptions: -1 });
    prepare?.();
    return run();
  };

  it('exit with RIP on the instruction', () => {
    expect(exitOf('0fa2 f4')).toEqual({ kind: 'cpuid' });
    expect(machine.cpu.state.rip).toBe(0x1000n);
    machine.cpu.completeCpuid(1, 2, 3, 4);
    expect(run()).toEqual({ kind: 'hlt' });
    expect([0, 3, 1, 2].map((index) => machine.cpu.state.register(index))).toEqual([1n, 2n, 3n, 4n]);
    expect(exitOf('0f01d9')).toEqual({ kind: 'vmmcall', instruction: 'vmmcall' });
    expect(exitOf('0f01c1')).toEqual({ kind: 'vmmcall', instruction: 'vmcall' });
    expect(exitOf('0f09')).toEqual({ kind: 'wbinvd' });
    expect(exitOf('660f01cc')).toEqual({ kind: 'tdcall' });
  });

  it('give MSR accesses to the kernel, but for those the CPU holds', () => {
    expect(exitOf('0f32', () => machine.cpu.state.setRegister(1, 0x1bn))).toEqual({ kind: 'rdmsr', index: 0x1b });
    machine.cpu.completeRead(0x1_fee0_0900n);
    expect([machine.cpu.state.register(0), machine.cpu.state.register(2)]).toEqual([0xfee00900n, 1n]);
    expect(
      exitOf('0f30', () => {
        machine.cpu.state.setRegister(1, 0xc0000080n);
        machine.cpu.state.setRegister(0, 0xd01n);
        machine.cpu.state.setRegister(2, 0n);
      }),
    ).toEqual({ kind: 'wrmsr', index: 0xc0000080, value: 0xd01n });
    // mov ecx,LSTAR; mov eax,0x1900; xor edx,edx; wrmsr; syscall
    expect(exitOf('b9820000c0 b800190000 31d2 0f30 0f05', () => machine.memory.write(0x1900, '4889cb f4'))).toEqual({
      kind: 'hlt',
    });
    expect(machine.cpu.state.register(3)).toBe(0x1010n);
  });

  it('give the kernel also the MSRs that its permission map names', () => {
    longMode(machine, 'b9820000c0 0f32 0f30 f4'); // mov ecx,LSTAR; rdmsr; wrmsr
    machine.cpu.setIntercepts({ ...PLAIN, msr: (index, write) => index === 0xc0000082 && write });
    expect(run()).toEqual({ kind: 'wrmsr', index: 0xc0000082, value: 0n });
  });

  it('report what is outside the subset with its bytes', () => {
    expect(exitOf('d9e8 f4')).toEqual({ kind: 'unsupported', bytes: expect.any(Uint8Array) });
    const exit = run();
    expect(exit.kind === 'unsupported' && Buffer.from(exit.bytes.subarray(0, 3)).toString('hex')).toBe('d9e8f4');
  });

  it('refuse privileged instructions in ring 3', () => {
    for (const code of ['f4', '0f32', '0f20c0', '0f01d0', '0f09']) {
      const privileged = (): void => {
        machine.cpu.state.setSegment('cs', flatSegment(0x33, 11, { l: 1, dpl: 3 }));
        machine.cpu.state.setSegment('ss', flatSegment(0x2b, 3, { db: 1, dpl: 3 }));
      };
      expect(exitOf(code, privileged)).toMatchObject({ kind: 'exception', vector: code === '0f01d0' ? 6 : 13 });
    }
  });

  it('leave RDTSC to the guest or exit for it', () => {
    expect(exitOf('0f31 f4')).toEqual({ kind: 'hlt' });
    expect(machine.cpu.state.register(0)).toBe(1n);
    longMode(machine, '0f31 f4');
    machine.cpu.setIntercepts({ ...PLAIN, rdtsc: true });
    expect(run()).toEqual({ kind: 'rdtsc', withAux: false });
  });

  it('exit after CR8 has changed', () => {
    longMode(machine, '440f22c0 f4');
    machine.cpu.setIntercepts({ ...PLAIN, cr8Write: true });
    machine.cpu.state.setRegister(0, 5n);
    expect(run()).toEqual({ kind: 'cr8-write', previous: 0 });
    expect([machine.cpu.state.cr8, machine.cpu.state.rip]).toEqual([5n, 0x1004n]);
  });
});

describe('control registers', () => {
  it('refuse impossible combinations', () => {
    for (const [code, value] of [
      ['0f22c0', 0x80000000n],
      ['0f22c0', 0x20000001n],
      ['0f22c0', 0x1_0000_0001n],
      ['0f22c0', 0x11n],
      ['0f22e0', 0x600n],
      ['0f22d8', 1n << 50n],
    ] as const) {
      longMode(machine, code);
      machine.cpu.setIntercepts({ ...PLAIN, exceptions: -1 });
      machine.cpu.state.setRegister(0, value);
      expect(run()).toEqual({ kind: 'exception', vector: 13, errorCode: 0 });
    }
  });
});

describe('a guest with encrypted state', () => {
  const IDT = 0x11000;

  beforeEach(() => {
    longMode(machine, '');
    const { memory, cpu } = machine;
    memory.write64(0x10008, 0x00af9a000000ffffn);
    cpu.state.setTable('gdt', { base: 0x10000n, limit: 0x1f });
    cpu.state.setTable('idt', { base: BigInt(IDT), limit: 0xfff });
    memory.write64(IDT + 29 * 16, 0x00008e0000081900n);
    memory.write(0x1900, '5b f4'); // pop rbx (the error code); hlt
    cpu.setIntercepts({ ...PLAIN, nonAutomatic: 'vc', writeTraps: true, rdtsc: true });
  });

  const codeOf = (code: string): bigint => {
    machine.memory.write(0x1000, code);
    machine.cpu.state.rip = 0x1000n;
    machine.cpu.state.setRegister(4, 0x8000n);
    expect(run()).toEqual({ kind: 'hlt' });
    return machine.cpu.state.register(3);
  };

  it('gets #VC with the exit code where the exit is non-automatic', () => {
    expect(codeOf('0fa2')).toBe(0x72n);
    expect(codeOf('e460')).toBe(0x7bn);
    expect(codeOf('b9 1b000000 0f32')).toBe(0x7cn);
    expect(codeOf('0f31')).toBe(0x6en);
    expect(codeOf('0f01d9')).toBe(0x81n);
    expect(codeOf('0f09')).toBe(0x89n);
    expect(codeOf('0f23f8')).toBe(0x37n);
    expect(codeOf('8b042500001000')).toBe(0x400n); // MMIO at 0x100000
  });

  it('exits for VMGEXIT with RIP past it, and reads its GHCB MSR by itself', () => {
    machine.memory.write(0x1000, 'b9300101c0 b800700000 31d2 0f30 f30f01d9 f4');
    expect(run()).toEqual({ kind: 'vmgexit' });
    expect(machine.cpu.state.ghcb).toBe(0x7000n);
    expect(machine.cpu.state.rip).toBe(0x1012n);
    expect(run()).toEqual({ kind: 'hlt' });
  });

  it('exits after writes of control registers and EFER', () => {
    machine.memory.write(0x1000, '0f20c0 0f22c0 b9800000c0 0f32 0f30 f4');
    expect(run()).toEqual({ kind: 'write-trap', register: 'cr0' });
    expect(machine.cpu.state.rip).toBe(0x1006n);
    expect(run()).toEqual({ kind: 'write-trap', register: 'efer' });
    expect(run()).toEqual({ kind: 'hlt' });
  });

  it('leaves other nested faults to the hypervisor', () => {
    machine.memory.missing.add(5);
    machine.memory.write(0x1000, '8b042500500000');
    expect(run()).toMatchObject({ kind: 'nested-fault', gpa: 0x5000, fault: { mmio: false } });
  });
});

describe('long-mode interrupts', () => {
  const IDT = 0x11000;
  const setUp = (ist: bigint): void => {
    longMode(machine, 'cd30 f4');
    const { memory, cpu } = machine;
    memory.write64(0x10008, 0x00af9a000000ffffn);
    memory.write64(0x10010, 0x00cf92000000ffffn);
    cpu.state.setTable('gdt', { base: 0x10000n, limit: 0x1f });
    cpu.state.setTable('idt', { base: BigInt(IDT), limit: 0xfff });
    memory.write64(IDT + 0x30 * 16, 0x0000ee0000081900n | (ist << 32n));
    memory.write(0x1900, '4889e3 48cf'); // mov rbx,rsp; iretq
    cpu.state.setSegment('tr', { ...flatSegment(0x40, 11, {}), base: 0x12000n, limit: 0x67, s: 0, g: 0 });
    memory.write64(0x12024, 0x7000n);
  };

  it('push SS:RSP always, on an aligned stack', () => {
    setUp(0n);
    machine.cpu.state.setRegister(4, 0x7ffdn);
    expect(run()).toEqual({ kind: 'hlt' });
    expect(machine.cpu.state.register(3)).toBe(0x7fc8n);
    expect(machine.memory.read64(0x7fe0)).toBe(0x7ffdn);
    expect(machine.cpu.state.register(4)).toBe(0x7ffdn);
  });

  it('switch to the stack of the interrupt stack table', () => {
    setUp(1n);
    expect(run()).toEqual({ kind: 'hlt' });
    expect(machine.cpu.state.register(3)).toBe(0x6fd8n);
    expect(machine.cpu.state.register(4)).toBe(0x8000n);
  });
});

describe('debugging', () => {
  it('single-steps for the kernel', () => {
    realMode(machine, '90 90 f4');
    machine.cpu.setIntercepts({ ...PLAIN, singleStep: true });
    expect(run()).toEqual({ kind: 'debug', dr6: 0xffff4ff0 | 0 });
    expect(machine.cpu.state.rip).toBe(0x1001n);
    run();
    expect(machine.cpu.state.rip).toBe(0x1002n);
  });

  it('traps after an instruction with TF', () => {
    realMode(machine, '90 90 f4');
    machine.memory.write(4, '0005 0001');
    machine.memory.write(0x1500, 'f4');
    machine.cpu.state.rflags = 0x102n;
    expect(run()).toEqual({ kind: 'hlt' });
    expect(machine.memory.read(0x7ffa, 6)).toBe('011000000201');
  });

  it('stops before an instruction with a breakpoint', () => {
    longMode(machine, '0f23c0 0f23fb 90 90 f4');
    machine.cpu.setIntercepts({ ...PLAIN, exceptions: 2 });
    machine.cpu.state.setRegister(0, 0x1007n);
    machine.cpu.state.setRegister(3, 0x402n);
    expect(run()).toEqual({ kind: 'debug', dr6: 0xffff0ff1 | 0 });
    expect(machine.cpu.state.rip).toBe(0x1007n);
  });
});
