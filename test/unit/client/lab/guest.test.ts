import { Register } from 'iced-x86';
import { describe, expect, it } from 'vitest';
import { Assembler } from '../../../../client/lab/guest/assembler.js';
import { pagesOf } from '../../../../client/lab/guest/image.js';
import { GPA, LOW_MEMORY_END } from '../../../../client/lab/guest/layout.js';
import { sevEsGuest } from '../../../../client/lab/guest/sev-es-guest.js';
import { sevGuest } from '../../../../client/lab/guest/sev-guest.js';

const hex = (code: Uint8Array): string => Buffer.from(code).toString('hex');

describe('the assembler', () => {
  it('encodes for its mode, and branches find their labels in both directions', () => {
    const a = new Assembler(32);
    const end = a.label();
    const again = a.here();
    a.hlt().je(end).jmp(again);
    a.bind(end).iret();
    expect(hex(a.encode(0x4000))).toBe('f4' + '7402' + 'ebfb' + 'cf');
  });

  it('stores through a pointer with displacements of both widths', () => {
    const a = new Assembler(64);
    a.store32(Register.RDI, 0, Register.EAX).store64(Register.RSP, 8, Register.RAX).store64(Register.R15, 0x390, Register.RBX);
    expect(hex(a.encode(0))).toBe('8907' + '4889442408' + '49899f90030000');
  });
});

describe('a guest image', () => {
  it('is whole pages, and leaves the shared ones out of what is measured', () => {
    const code = { gpa: 0x1800, bytes: Uint8Array.of(1, 2, 3) };
    const runs = pagesOf([code], 0x1000, 0x5000, [0x3000]);
    expect(runs.map(({ gpa, bytes }) => [gpa, bytes.length])).toEqual([
      [0x1000, 0x2000],
      [0x4000, 0x1000],
    ]);
    expect([...(runs[0]?.bytes.subarray(0x800, 0x803) ?? [])]).toEqual([1, 2, 3]);
  });

  it('does not fit beyond the low memory', () => {
    expect(() => pagesOf([], 0, LOW_MEMORY_END + 0x1000, [])).toThrow(RangeError);
  });

  it('of SEV-ES measures everything but the GHCBs', () => {
    const measured = (gpa: number): boolean =>
      sevEsGuest().segments.some(({ gpa: from, bytes }) => gpa >= from && gpa < from + bytes.length);
    expect([GPA.GHCB, GPA.AP_GHCB].map(measured)).toEqual([false, false]);
    expect([GPA.ENTRY, GPA.VC_HANDLER, GPA.PML4, GPA.LOW_PAGE_TABLE].map(measured)).toEqual([true, true, true, true]);
  });

  it('is the same each time it is assembled: its digest can be known beforehand', () => {
    expect(sevGuest().segments).toEqual(sevGuest().segments);
    expect(sevEsGuest().segments).toEqual(sevEsGuest().segments);
  });
});
