import { beforeEach, describe, expect, it } from 'vitest';
import { GuestReverseMap } from '../../../../server/hardware/amd/reverse-map.js';
import { Rmp, type RmpUpdate } from '../../../../server/hardware/amd/rmp.js';
import { Gpr, Vector } from '../../../../server/hardware/cpu/registers.js';
import { SvmExitCode } from '../../../../server/hardware/cpu/types.js';
import { type Asid, asid, gpa } from '../../../../server/hardware/units.js';
import { createMachine, identityPageTables, longMode, type Machine, protectedMode } from './machine.js';

/** Without paging every access is private. */
const CODE = 0x1000;
const DATA = 0x5000;
const OWNER = asid(1);

let machine: Machine;
let rmp: Rmp;
let control: { snpEnabled: boolean; asid: Asid; vmpl: number };

const assign = (address: number, update: Partial<RmpUpdate> = {}): void => {
  const page = machine.memory.frames[address / 4096].pfn;
  rmp.rmpupdate(page, { assigned: true, size: '4k', immutable: false, asid: OWNER, gpa: gpa(address), ...update });
};
const validate = (address: number): void => {
  rmp.pvalidate(machine.memory.frames[address / 4096].pfn, OWNER, gpa(address), '4k', true);
};
const run = () => machine.cpu.run(100);
const eax = (): number => Number(machine.cpu.state.register(Gpr.RAX) & 0xffff_ffffn);
/** What the last CF-reading SETC left in BL. */
const bl = (): number => Number(machine.cpu.state.register(Gpr.RBX) & 0xffn);

/** `mov eax, DATA; xor ecx, ecx; mov edx, state` */
const operands = (state: number): string => `b8 00500000 31c9 ba ${state.toString(16).padStart(2, '0')}000000`;
const PVALIDATE = 'f20f01ff';
const RMPADJUST = 'f30f01fe';
const SETC_BL_HLT = '0f92c3 f4';

/** A guest in 32-bit mode whose code page is validated. */
const guest = (code: string): void => {
  protectedMode(machine, code);
  enterSnp();
};

/** A guest in 64-bit mode, where all that it can reach is private; RMPADJUST exists nowhere else. */
const longGuest = (code: string): void => {
  longMode(machine, code);
  identityPageTables(machine.memory, 1n << 51n);
  enterSnp();
  for (const table of [0x20000, 0x21000, 0x22000]) {
    assign(table);
    validate(table);
  }
};

const enterSnp = (): void => {
  machine.cpu.setEncryption({ kind: 'sev', cBit: 51 });
  machine.cpu.setReverseMap(new GuestReverseMap(rmp, control));
  machine.cpu.setIntercepts({
    ...{ exceptions: (1 << Vector.VC) | (1 << Vector.UD), pause: false, rdtsc: false, cr8Write: false },
    ...{ writeTraps: true, singleStep: false, nonAutomatic: 'vc' },
  });
  assign(CODE);
  validate(CODE);
};

beforeEach(() => {
  machine = createMachine();
  rmp = new Rmp();
  rmp.initialise([]);
  control = { snpEnabled: true, asid: OWNER, vmpl: 0 };
});

describe('a private access', () => {
  it('to a page that the guest has not validated is #VC with the reason', () => {
    guest('a1 00500000 f4');
    assign(DATA);
    expect(run()).toMatchObject({ kind: 'exception', vector: Vector.VC, errorCode: SvmExitCode.PAGE_NOT_VALIDATED });
    expect(machine.cpu.state.cr2).toBe(BigInt(DATA));
    validate(DATA);
    expect(run()).toEqual({ kind: 'hlt' });
  });

  it.each([
    ['nobody’s', () => {}],
    ['another guest’s', () => assign(DATA, { asid: asid(2) })],
    ['at another address', () => assign(DATA, { gpa: gpa(0x9000) })],
  ])('to a page that is %s is a nested page fault of the reverse map', (_, prepare) => {
    guest('a1 00500000 f4');
    prepare();
    expect(run()).toMatchObject({ kind: 'nested-fault', rmp: true, gpa: DATA, access: 'read', encrypted: true });
  });

  it('of the page walk is checked too', () => {
    longMode(machine, 'f4');
    identityPageTables(machine.memory, 1n << 51n);
    machine.cpu.setEncryption({ kind: 'sev', cBit: 51 });
    machine.cpu.setReverseMap(new GuestReverseMap(rmp, control));
    expect(run()).toMatchObject({ kind: 'nested-fault', rmp: true, pageWalk: true, encrypted: true });
  });

  it('needs the permission of its VMPL', () => {
    control.vmpl = 1;
    guest('f4');
    expect(run()).toMatchObject({ kind: 'nested-fault', rmp: true, access: 'execute' });
  });
});

describe('a guest that is no SNP guest', () => {
  beforeEach(() => {
    control.snpEnabled = false;
  });

  it('reads an assigned page and cannot write to it', () => {
    guest('a1 00500000 a3 00500000 f4');
    assign(DATA);
    expect(run()).toMatchObject({ kind: 'nested-fault', rmp: true, access: 'write' });
  });

  it.each([PVALIDATE, RMPADJUST])('has no %s', (instruction) => {
    longGuest(`${operands(1)} ${instruction} f4`);
    expect(run()).toMatchObject({ kind: 'exception', vector: Vector.UD });
  });
});

describe('PVALIDATE', () => {
  it('accepts a page once, and tells by CF when there was nothing to change', () => {
    guest(`${operands(1)} ${PVALIDATE} ${SETC_BL_HLT} ${operands(1)} ${PVALIDATE} ${SETC_BL_HLT}`);
    assign(DATA);
    expect(run()).toEqual({ kind: 'hlt' });
    expect([eax(), bl()]).toEqual([0, 0]);
    machine.cpu.skipInstruction();
    expect(run()).toEqual({ kind: 'hlt' });
    expect([eax(), bl()]).toEqual([0, 1]);
  });

  it('takes a page back at once: the next access is #VC', () => {
    guest(`a1 00500000 ${operands(0)} ${PVALIDATE} a1 00500000 f4`);
    assign(DATA);
    validate(DATA);
    expect(run()).toMatchObject({ kind: 'exception', vector: Vector.VC });
  });

  it('of a size that the entry does not have is FAIL_SIZEMISMATCH', () => {
    guest(`b8 00500000 b9 01000000 ba 01000000 ${PVALIDATE} f4`);
    assign(DATA);
    expect(run()).toEqual({ kind: 'hlt' });
    expect(eax()).toBe(6);
  });

  it('faults as a load does where the nested page tables have nothing', () => {
    guest(`${operands(1)} ${PVALIDATE} f4`);
    machine.memory.missing.add(DATA / 4096);
    expect(run()).toMatchObject({ kind: 'nested-fault', rmp: false, gpa: DATA, encrypted: true });
  });
});

describe('RMPADJUST', () => {
  it('makes a save area, which the guest cannot write any more', () => {
    longGuest(`b8 00500000 31c9 ba 01000100 ${RMPADJUST} 89c3 89042500500000 f4`);
    assign(DATA);
    validate(DATA);
    expect(run()).toMatchObject({ kind: 'nested-fault', rmp: true, access: 'write' });
    expect(bl()).toBe(0);
    expect(rmp.checkVmsa(machine.memory.frames[DATA / 4096].pfn, OWNER)).toBe(null);
  });

  it('does not change what its own VMPL may do', () => {
    longGuest(`${operands(0)} ${RMPADJUST} f4`);
    assign(DATA);
    validate(DATA);
    expect(run()).toEqual({ kind: 'hlt' });
    expect(eax()).toBe(2);
  });
});
