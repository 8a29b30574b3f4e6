import { beforeEach, describe, expect, it } from 'vitest';
import type { CpuExit, Intercepts } from '../../../../server/hardware/cpu/types.js';
import type { MemoryKey } from '../../../../server/hardware/dram.js';
import {
  createMachine,
  enterLongMode,
  flatSegment,
  identityPageTables,
  longMode,
  type Machine,
  protectedMode,
} from './machine.js';

const CATCH_ALL: Intercepts = {
  exceptions: -1,
  pause: false,
  rdtsc: false,
  cr8Write: false,
  writeTraps: false,
  singleStep: false,
  nonAutomatic: 'exit',
};

const LOAD = '8b042500500000 f4'; // mov eax,[0x5000]; hlt
const STORE = '89042500500000 f4'; // mov [0x5000],eax; hlt

let machine: Machine;
const run = (): CpuExit => machine.cpu.run(100);
const rax = (): bigint => machine.cpu.state.register(0);

beforeEach(() => {
  machine = createMachine();
  machine.cpu.setIntercepts(CATCH_ALL);
});

/** 4 KiB mappings: page table at 0x23000 for the first 2 MiB, all identity but what a test changes. */
function smallPages(code: string): void {
  longMode(machine, code);
  const { memory } = machine;
  memory.write64(0x22000, 0x23007n);
  for (let page = 0; page < 64; page++) memory.write64(0x23000 + 8 * page, BigInt(page * 4096) | 7n);
  memory.write(0x6000, '78563412');
  memory.write(0x5000, 'efbeadde');
}

const entryOf5000 = 0x23000 + 8 * 5;
const setEntry = (value: bigint): void => machine.memory.write64(entryOf5000, value);
const fault = (errorCode: number): CpuExit => ({ kind: 'exception', vector: 14, errorCode });

describe('four-level paging', () => {
  it('translates through 4 KiB, 2 MiB and 1 GiB pages', () => {
    smallPages(LOAD);
    setEntry(0x6007n);
    expect(run()).toEqual({ kind: 'hlt' });
    expect(rax()).toBe(0x12345678n);
    machine.memory.write64(0x21000, 0x87n);
    machine.cpu.flushTlb();
    machine.cpu.state.rip = 0x1000n;
    expect(run()).toEqual({ kind: 'hlt' });
    expect(rax()).toBe(0xdeadbeefn);
  });

  it('sets accessed bits on the way and the dirty bit on a write only', () => {
    smallPages(LOAD);
    expect(run()).toEqual({ kind: 'hlt' });
    expect(machine.memory.read64(entryOf5000)).toBe(0x5027n);
    expect(machine.memory.read64(0x20000)).toBe(0x21027n);
    machine.memory.write(0x1000, STORE);
    machine.cpu.state.rip = 0x1000n;
    run();
    expect(machine.memory.read64(entryOf5000)).toBe(0x5067n);
  });

  it('reports page faults with CR2 and the error code', () => {
    smallPages(LOAD);
    setEntry(0n);
    expect(run()).toEqual(fault(0));
    expect(machine.cpu.state.cr2).toBe(0x5000n);
    expect(machine.cpu.state.rip).toBe(0x1000n);
    smallPages(STORE);
    setEntry(0n);
    expect(run()).toEqual(fault(2));
    setEntry(0x5005n);
    expect(run()).toEqual(fault(3));
    setEntry(0x8005n | (1n << 50n));
    expect(run()).toEqual(fault(8 | 3));
  });

  it('lets the supervisor write to read-only pages without CR0.WP', () => {
    smallPages(STORE);
    setEntry(0x5005n);
    machine.cpu.state.cr0 = 0x80000011n;
    expect(run()).toEqual({ kind: 'hlt' });
  });

  it('executes nothing from a no-execute page, and knows no such bit without EFER.NXE', () => {
    smallPages('e9fb3f0000'); // jmp 0x5000
    setEntry(0x5007n | (1n << 63n));
    expect(run()).toEqual(fault(0x11));
    expect(machine.cpu.state.rip).toBe(0x5000n);
    smallPages(LOAD);
    setEntry(0x5007n | (1n << 63n));
    machine.cpu.state.efer = 0x501n;
    expect(run()).toEqual(fault(9));
  });

  it('faults on addresses that are not canonical: #GP, #SS for the stack', () => {
    smallPages('48b80000000000000080 488b18'); // mov rbx,[0x8000000000000000]
    expect(run()).toEqual({ kind: 'exception', vector: 13, errorCode: 0 });
    smallPages('48bc0000000000000080 50'); // push rax there
    expect(run()).toEqual({ kind: 'exception', vector: 12, errorCode: 0 });
  });

  it('writes over a page border only when both pages take it', () => {
    smallPages('c70425fe4f000011223344 f4'); // mov dword [0x4ffe],0x44332211
    setEntry(0n);
    expect(run()).toEqual(fault(2));
    expect(machine.cpu.state.cr2).toBe(0x5000n);
    expect(machine.memory.read(0x4ffe, 2)).toBe('0000');
    setEntry(0x6007n);
    expect(run()).toEqual({ kind: 'hlt' });
    expect(machine.memory.read(0x4ffe, 2) + machine.memory.read(0x6000, 2)).toBe('11223344');
  });

  it('serves KVM_TRANSLATE without touching anything', () => {
    smallPages(LOAD);
    setEntry(0x6005n);
    expect(machine.cpu.translate(0x5123n)).toEqual({ gpa: 0x6123, writable: false, user: true });
    expect(machine.cpu.translate(0x4000_0000_0000n)).toBeNull();
    expect(machine.memory.read64(entryOf5000)).toBe(0x6005n);
  });
});

describe('the translation cache', () => {
  const TWICE = '8b042500500000 c704252830020007600000 0f013c2500500000 8b1c2500500000 f4';
  const WITHOUT_INVLPG = TWICE.replace('0f013c2500500000', '');

  it('keeps a translation until INVLPG', () => {
    smallPages(WITHOUT_INVLPG);
    expect(run()).toEqual({ kind: 'hlt' });
    expect(machine.cpu.state.register(3)).toBe(0xdeadbeefn);
    smallPages(TWICE);
    machine.cpu.flushTlb();
    expect(run()).toEqual({ kind: 'hlt' });
    expect(machine.cpu.state.register(3)).toBe(0x12345678n);
  });

  it('keeps global pages over MOV CR3, and drops the others', () => {
    for (const [global, expected] of [
      [0x100n, 0xdeadbeefn],
      [0n, 0x12345678n],
    ] as const) {
      smallPages('8b042500500000 c704252830020007600000 0f20d8 0f22d8 8b1c2500500000 f4');
      setEntry(0x5007n | global);
      machine.cpu.state.cr4 = 0x6a0n;
      machine.cpu.flushTlb();
      expect(run()).toEqual({ kind: 'hlt' });
      expect(machine.cpu.state.register(3)).toBe(expected);
    }
  });
});

describe('five-level paging', () => {
  it('walks one level more and has longer canonical addresses', () => {
    longMode(machine, '48b800000000000001008b18f4'); // mov rax,1<<48; mov ebx,[rax]
    const { memory, cpu } = machine;
    memory.write64(0x24000, 0x20007n);
    memory.write64(0x24008, 0x20007n);
    cpu.state.cr3 = 0x24000n;
    cpu.state.cr4 = 0x1620n;
    memory.write(0, '44332211');
    expect(run()).toEqual({ kind: 'hlt' });
    expect(cpu.state.register(3)).toBe(0x11223344n);
  });
});

describe('32-bit paging', () => {
  const setUp = (code: string, cr4: bigint): void => {
    protectedMode(machine, code);
    machine.cpu.state.cr3 = 0x20000n;
    machine.cpu.state.cr4 = cr4;
    machine.cpu.state.cr0 = 0x80010011n;
  };

  it('walks two levels of 4-byte entries', () => {
    setUp('a100500000 f4', 0n);
    const { memory } = machine;
    memory.write(0x20000, '07100200');
    for (let page = 0; page < 16; page++) memory.write(0x21000 + 4 * page, Uint8Array.of(7, page << 4, 0, 0));
    memory.write(0x21014, '07600000');
    memory.write(0x6000, '78563412');
    expect(run()).toEqual({ kind: 'hlt' });
    expect(rax()).toBe(0x12345678n);
    expect(memory.read(0x21014, 1)).toBe('27');
  });

  it('maps 4 MiB pages with CR4.PSE', () => {
    setUp('a100504000 f4', 0x10n); // [0x405000]
    machine.memory.write(0x20000, '87000000');
    machine.memory.write(0x20004, '87000000');
    machine.memory.write(0x5000, 'efbeadde');
    expect(run()).toEqual({ kind: 'hlt' });
    expect(rax()).toBe(0xdeadbeefn);
  });

  it('walks PAE tables from the four pointers', () => {
    setUp('a100504000 f4', 0x20n);
    const { memory } = machine;
    memory.write64(0x20000, 0x21001n);
    memory.write64(0x21000, 0x87n);
    memory.write64(0x21010, 0x87n);
    memory.write(0x5000, 'efbeadde');
    expect(run()).toEqual({ kind: 'hlt' });
    expect(rax()).toBe(0xdeadbeefn);
    expect(memory.read64(0x20000)).toBe(0x21001n);
    expect(memory.read64(0x21010)).toBe(0xa7n);
  });
});

describe('an access that wraps at 4 GiB', () => {
  const CODE = 'a1feffffff a3fdffffff f4'; // mov eax,[0xfffffffe]; mov [0xfffffffd],eax; hlt

  /** The last page of 4 GiB is the one at 0x6000, the first one itself. */
  const setUp = (code: string): void => {
    protectedMode(machine, code);
    const { memory, cpu } = machine;
    memory.write(0x20000, '87000000');
    memory.write(0x20ffc, '07100200');
    memory.write(0x21ffc, '07600000');
    memory.write(0x6ffe, 'efbe');
    memory.write(0, 'adde');
    cpu.state.cr3 = 0x20000n;
    cpu.state.cr4 = 0x10n;
    cpu.state.cr0 = 0x80010011n;
  };
  const setUpCompatibility = (code: string): void => {
    longMode(machine, code);
    const { memory, cpu } = machine;
    memory.write64(0x21018, 0x23007n);
    memory.write64(0x23ff8, 0x24007n);
    memory.write64(0x24ff8, 0x6007n);
    memory.write(0x6ffe, 'efbe');
    memory.write(0, 'adde');
    cpu.state.setSegment('cs', flatSegment(8, 11, { db: 1 }));
  };

  it.each([
    ['protected mode', setUp],
    ['compatibility mode', setUpCompatibility],
  ])('goes on at 0 in %s, where the segment has no end', (_mode, enter) => {
    enter(CODE);
    expect(run()).toEqual({ kind: 'hlt' });
    expect(rax()).toBe(0xdeadbeefn);
    expect(machine.memory.read(0x6ffd, 3)).toBe('efbead');
    expect(machine.memory.read(0, 1)).toBe('de');
  });

  it('is #GP in a segment that ends before', () => {
    setUp(CODE);
    machine.cpu.state.setSegment('ds', { ...flatSegment(16, 3, { db: 1 }), limit: 0xfffffffe });
    expect(run()).toEqual({ kind: 'exception', vector: 13, errorCode: 0 });
  });
});

/** Turns every byte around: enough to tell who looks through the key. */
function invert(_address: number, bytes: Uint8Array): void {
  for (let i = 0; i < bytes.length; i++) bytes[i] ^= 0xff;
}

const KEY: MemoryKey = { name: 'test key', sealPage: invert, openPage: invert };

describe('memory encryption', () => {
  const C_BIT = 1n << 51n;

  function encryptedGuest(code: string): void {
    const { memory, cpu } = machine;
    memory.key = KEY;
    cpu.setEncryption({ kind: 'sev', cBit: 51 });
    for (let at = 0x20000; at < 0x24000; at += 8) memory.write64(at, 0n, KEY);
    identityPageTables(memory, C_BIT, KEY);
    memory.write64(0x22000, 0x23007n | C_BIT, KEY);
    for (let page = 0; page < 64; page++) memory.write64(0x23000 + 8 * page, BigInt(page * 4096) | 7n | C_BIT, KEY);
    memory.write(0x1000, Uint8Array.from(Buffer.from(code.replaceAll(' ', ''), 'hex')), KEY);
    enterLongMode(cpu);
    cpu.state.cr3 = 0x20000n | C_BIT;
  }

  it('reads tables and code through the key, and data as the C-bit says', () => {
    encryptedGuest('8b042500500000 8b1c2500600000 f4');
    machine.memory.write64(0x23030, 0x6007n, KEY);
    machine.memory.write(0x5000, '11111111', KEY);
    machine.memory.write(0x6000, '22222222');
    expect(run()).toEqual({ kind: 'hlt' });
    expect([rax(), machine.cpu.state.register(3)]).toEqual([0x11111111n, 0x22222222n]);
    const accesses = machine.memory.log.map((entry) => `${entry.gpa.toString(16)}${entry.encrypted ? '+' : '-'}`);
    expect(accesses).toContain('5000+');
    expect(accesses).toContain('6000-');
  });

  it('shows a host that looks without the key nothing else than ciphertext', () => {
    encryptedGuest('c704250050000044332211 8b042500500000 f4');
    expect(run()).toEqual({ kind: 'hlt' });
    expect(machine.memory.read(0x5000, 4)).toBe('bbccddee');
    expect(machine.memory.frames[5].dirtyUnder).toBe(KEY);
    // The host's look has turned the frame around; the guest still sees its own bytes.
    machine.cpu.state.rip = 0x100bn;
    expect(run()).toEqual({ kind: 'hlt' });
    expect(rax()).toBe(0x11223344n);
  });

  it('fetches garbage where the code is not encrypted', () => {
    encryptedGuest('f4');
    machine.memory.write(0x1000, 'f4');
    expect(run()).not.toEqual({ kind: 'hlt' });
  });

  it('takes the bit for reserved in a guest without encryption', () => {
    smallPages(LOAD);
    setEntry(0x5007n | C_BIT);
    expect(run()).toEqual(fault(9));
  });

  it('has everything encrypted while paging is off', () => {
    machine.memory.key = KEY;
    protectedMode(machine, '');
    machine.cpu.setEncryption({ kind: 'sev', cBit: 51 });
    machine.memory.write(0x1000, Uint8Array.of(0xa1, 0, 0x50, 0, 0, 0xf4), KEY);
    machine.memory.write(0x5000, '11111111', KEY);
    expect(run()).toEqual({ kind: 'hlt' });
    expect(rax()).toBe(0x11111111n);
    expect(machine.memory.log.every((entry) => entry.encrypted)).toBe(true);
  });

  it('turns encryption off where the shared bit is set (TDX)', () => {
    smallPages(LOAD);
    machine.cpu.setEncryption({ kind: 'tdx', sharedBit: 47 });
    setEntry(0x6007n | (1n << 47n));
    expect(run()).toEqual({ kind: 'hlt' });
    expect(machine.memory.log).toContainEqual({ gpa: 0x6000, access: 'read', encrypted: false });
    expect(machine.memory.log).toContainEqual({ gpa: 0x1000, access: 'execute', encrypted: true });
  });
});
