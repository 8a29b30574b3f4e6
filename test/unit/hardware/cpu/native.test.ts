import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { createMachine, enterLongMode, identityPageTables, type Machine } from './machine.js';

const CODE_AT = 0x39000;
const DATA_AT = 0x30000;
const DATA_BYTES = 0x400;
const STACK_AT = 0x37f80;
const STACK_BYTES = 256;
const FLAGS = 0xcd5;
const XMM = [0, 1, 2, 9] as const;

interface Form {
  readonly code: string;
  readonly undefinedFlags: number;
  readonly assembly: string;
  readonly results: readonly string[];
}

function readForms(): Form[] {
  const forms: { code: string; undefinedFlags: number; assembly: string; results: string[] }[] = [];
  for (const line of readFileSync(new URL('native-results.txt', import.meta.url), 'utf8').split('\n')) {
    if (line === '' || line.startsWith('#')) continue;
    if (line.startsWith(' ')) {
      forms.at(-1)?.results.push(line.trim());
    } else {
      const [code, mask, ...assembly] = line.split('|');
      forms.push({ code, undefinedFlags: Number(mask), assembly: assembly.join('|'), results: [] });
    }
  }
  return forms;
}

/** The recorder's generator: xorshift64, and values that arithmetic finds interesting. */
class Inputs {
  constructor(private state: bigint) {}

  random(): bigint {
    this.state ^= BigInt.asUintN(64, this.state << 13n);
    this.state ^= this.state >> 7n;
    this.state ^= BigInt.asUintN(64, this.state << 17n);
    return this.state;
  }

  value(): bigint {
    const value = this.random();
    switch (this.random() % 12n) {
      case 0n:
        return 0n;
      case 1n:
        return BigInt.asUintN(64, -1n);
      case 2n:
        return value & 0xffn;
      case 3n:
        return value & 0xffffn;
      case 4n:
        return BigInt.asUintN(64, BigInt.asIntN(8, value));
      case 5n:
        return value & 0xffffffffn;
      case 6n:
        return BigInt.asUintN(64, 1n << (value & 63n));
      case 7n:
        return BigInt.asUintN(64, (1n << (value & 63n)) - 1n);
      case 8n:
        return 0x8080808080808080n;
      default:
        return value;
    }
  }
}

const pattern = (length: number): Uint8Array => Uint8Array.from({ length }, (_, i) => (i * i * 7 + (i >> 3) * 29 + 11) & 0xff);

interface Before {
  readonly registers: readonly bigint[];
  readonly xmm: readonly string[];
}

function prepare(machine: Machine, form: Form, seed: number): Before {
  const { cpu, memory } = machine;
  const inputs = new Inputs(BigInt.asUintN(64, BigInt(seed + 1) * 0x9e3779b97f4a7c15n));
  cpu.reset();
  enterLongMode(cpu);
  memory.write(DATA_AT, pattern(DATA_BYTES));
  memory.write(STACK_AT, pattern(STACK_BYTES));
  memory.write(CODE_AT, `${form.code}f4`);
  const registers = Array.from({ length: 16 }, () => inputs.value());
  registers[3] = 0x30300n;
  registers[6] = 0x30100n;
  registers[7] = 0x30200n;
  registers[4] = 0x38000n;
  registers.forEach((value, index) => {
    cpu.state.setRegister(index, value);
  });
  cpu.state.rflags = (inputs.random() & 0x8d5n) | 0x202n;
  cpu.state.rip = BigInt(CODE_AT);
  const view = new DataView(cpu.state.xmmBytes.buffer);
  for (const register of XMM) {
    view.setBigUint64(16 * register, inputs.value(), true);
    view.setBigUint64(16 * register + 8, inputs.value(), true);
  }
  return { registers, xmm: XMM.map((register) => xmmOf(machine, register)) };
}

const xmmOf = (machine: Machine, register: number): string =>
  Buffer.from(machine.cpu.state.xmmBytes.subarray(16 * register, 16 * register + 16)).toString('hex');

/** What the recorder would have written, with the flags that count. */
function observe(machine: Machine, before: Before, undefinedFlags: number): string {
  const { state } = machine.cpu;
  const changes = [flagsOf(Number(state.rflags), undefinedFlags)];
  before.registers.forEach((value, index) => {
    if (state.register(index) !== value) changes.push(`${index}=${state.register(index).toString(16)}`);
  });
  XMM.forEach((register, index) => {
    if (xmmOf(machine, register) !== before.xmm[index]) changes.push(`x${register}=${xmmOf(machine, register)}`);
  });
  changes.push(...memoryChanges(machine, DATA_AT, DATA_BYTES), ...memoryChanges(machine, STACK_AT, STACK_BYTES));
  return changes.join(' ');
}

const flagsOf = (value: number, undefinedFlags: number): string => (value & FLAGS & ~undefinedFlags).toString(16);

/** Runs of changed bytes; one that is unchanged between two changed ones belongs to the run. */
function memoryChanges(machine: Machine, address: number, length: number): string[] {
  const old = pattern(length);
  const now = Buffer.from(machine.memory.read(address, length), 'hex');
  const differs = (index: number): boolean => index < length && now[index] !== old[index];
  const changes: string[] = [];
  for (let i = 0; i < length; i++) {
    if (!differs(i)) continue;
    let last = i;
    while (differs(last + 1) || differs(last + 2)) last++;
    changes.push(`@${(address + i).toString(16)}=${now.subarray(i, last + 1).toString('hex')}`);
    i = last;
  }
  return changes;
}

const maskFlags = (result: string, undefinedFlags: number): string => {
  const [flags, ...rest] = result.split(' ');
  return [flagsOf(Number.parseInt(flags, 16), undefinedFlags), ...rest].join(' ');
};

const INTERCEPT_EXCEPTIONS = {
  exceptions: -1,
  pause: false,
  rdtsc: false,
  cr8Write: false,
  writeTraps: false,
  singleStep: false,
  nonAutomatic: 'exit',
} as const;

describe('results of a real processor', () => {
  const forms = readForms();
  const machine = createMachine();
  identityPageTables(machine.memory);
  machine.cpu.setIntercepts(INTERCEPT_EXCEPTIONS);

  it('were recorded', () => {
    expect(forms.length).toBeGreaterThan(1500);
  });

  const mnemonicOf = (form: Form): string => form.assembly.split(/[ ;]/)[0];
  it.each([...new Set(forms.map(mnemonicOf))])('%s', (mnemonic) => {
    forms.forEach((form, number) => {
      if (mnemonicOf(form) !== mnemonic) return;
      form.results.forEach((result, index) => {
        const before = prepare(machine, form, number * 16 + index);
        const exit = machine.cpu.run(2000);
        const context = `${form.assembly}, case ${index}`;
        if (result.startsWith('signal')) {
          expect(exit.kind, context).toBe('exception');
        } else {
          expect(exit, context).toEqual({ kind: 'hlt' });
          const expected = maskFlags(result, form.undefinedFlags);
          expect(`${context}: ${observe(machine, before, form.undefinedFlags)}`).toBe(`${context}: ${expected}`);
        }
      });
    });
  });
});
