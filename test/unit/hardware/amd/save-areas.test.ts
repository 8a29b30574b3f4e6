import { describe, expect, it } from 'vitest';
import { CPUID_8000001F_EAX, cpuid8000001f } from '../../../../server/hardware/amd/cpuid-8000001f.js';
import {
  clearGhcbFields,
  decodeGhcbMsrCpuid,
  GHCB,
  GHCB_MSR,
  ghcbMsr,
  ghcbMsrCode,
  ghcbMsrCpuidResponse,
  ghcbMsrData,
  ghcbMsrSevInfo,
  isGhcbFieldValid,
  setGhcbField,
} from '../../../../server/hardware/amd/ghcb.js';
import { VMSA, type VmsaSegment } from '../../../../server/hardware/amd/vmsa.js';
import { PAGE_SIZE } from '../../../../server/hardware/units.js';
import { hex, VECTORS_NEEDED, vector, vectorsAbsent } from './rig.js';

/** The save area of a vCPU at reset as QEMU left it to LAUNCH_UPDATE_VMSA when the pages were made: without MXCSR and FCW. */
function resetVmsa(eip: number, signature: bigint): Uint8Array {
  const page = new Uint8Array(PAGE_SIZE);
  const segment = (attributes: number, selector = 0, base = 0n): VmsaSegment => ({ selector, attributes, limit: 0xffff, base });
  for (const field of [VMSA.es, VMSA.ss, VMSA.ds, VMSA.fs, VMSA.gs]) field.set(page, segment(0x93));
  VMSA.cs.set(page, segment(0x9b, 0xf000, BigInt(eip & 0xffff0000) & 0xffffffffn));
  VMSA.gdtr.set(page, segment(0));
  VMSA.idtr.set(page, segment(0));
  VMSA.ldtr.set(page, segment(0x82));
  VMSA.tr.set(page, segment(0x8b));
  VMSA.efer.set(page, 0x1000n);
  VMSA.cr4.set(page, 0x40n);
  VMSA.cr0.set(page, 0x10n);
  VMSA.dr7.set(page, 0x400n);
  VMSA.dr6.set(page, 0xffff0ff0n);
  VMSA.rflags.set(page, 2n);
  VMSA.rip.set(page, BigInt(eip & 0xffff));
  VMSA.gPat.set(page, 0x0007040600070406n);
  VMSA.rdx.set(page, signature);
  VMSA.xcr0.set(page, 1n);
  return page;
}

describe('the save area of a vCPU', () => {
  it.skipIf(vectorsAbsent)(`has its fields where sevctl's published pages have them (${VECTORS_NEEDED})`, () => {
    for (const [name, other] of [
      ['sevctl/vmsa0.bin', 'sevctl/vmsa1.bin'],
      ['sevctl/vmsa1.bin', 'sevctl/vmsa0.bin'],
    ] as const) {
      const page = vector(name);
      const eip = Number(VMSA.cs.get(page).base) + Number(VMSA.rip.get(page));
      expect(hex(resetVmsa(eip, VMSA.rdx.get(page)))).toBe(hex(page));
      expect(hex(page)).not.toBe(hex(vector(other)));
    }
    expect(VMSA.rip.get(vector('sevctl/vmsa0.bin'))).toBe(0xfff0n);
  });

  it('has MXCSR and FCW where later kernels measure them', () => {
    expect([VMSA.mxcsr.offset, VMSA.x87Fcw.offset, VMSA.sevFeatures.offset]).toEqual([0x408, 0x410, 0x3b0]);
  });

  it('keeps every field apart from every other', () => {
    const page = new Uint8Array(PAGE_SIZE);
    VMSA.rax.set(page, 0xffff_ffff_ffff_ffffn);
    VMSA.r15.set(page, 1n);
    VMSA.cs.set(page, { selector: 8, attributes: 0xa9b, limit: 0xffffffff, base: 0x1234_5678_9abcn });
    VMSA.xmm.set(page, new Uint8Array(256).fill(3));
    expect(VMSA.rax.get(page)).toBe(0xffff_ffff_ffff_ffffn);
    expect(VMSA.rsp.get(page)).toBe(0n);
    expect(VMSA.cs.get(page)).toEqual({ selector: 8, attributes: 0xa9b, limit: 0xffffffff, base: 0x1234_5678_9abcn });
    expect(VMSA.ss.get(page).limit).toBe(0);
    expect(VMSA.ymm.get(page).every((byte) => byte === 0)).toBe(true);
  });
});

describe('the GHCB', () => {
  it('says which fields its writer has set', () => {
    const page = new Uint8Array(PAGE_SIZE);
    setGhcbField(page, GHCB.swExitCode, 0x7bn);
    setGhcbField(page, GHCB.rax, 1n);
    expect(isGhcbFieldValid(page, GHCB.swExitCode)).toBe(true);
    expect(isGhcbFieldValid(page, GHCB.rax)).toBe(true);
    expect(isGhcbFieldValid(page, GHCB.rbx)).toBe(false);
    // Quadword 0x390 / 8 = 114: byte 14, bit 2 of the bitmap at 0x3f0.
    expect(page[0x3f0 + 14]).toBe(1 << 2);
    clearGhcbFields(page);
    expect(isGhcbFieldValid(page, GHCB.rax)).toBe(false);
    expect(GHCB.rax.get(page)).toBe(1n);
  });

  it('speaks the protocol of its MSR', () => {
    expect(ghcbMsrSevInfo(51)).toBe((2n << 48n) | (1n << 32n) | (51n << 24n) | 1n);
    const request = (0x8000001fn << 32n) | (3n << 30n) | 4n;
    expect(ghcbMsrCode(request)).toBe(GHCB_MSR.CPUID_REQ);
    expect(decodeGhcbMsrCpuid(request)).toEqual({ function: 0x8000001f, register: 3 });
    expect(ghcbMsrCpuidResponse(3, -1)).toBe((0xffffffffn << 32n) | (3n << 30n) | 5n);
    const register = ghcbMsr(GHCB_MSR.REGISTER_GPA_REQ, 0x1234n);
    expect([ghcbMsrCode(register), ghcbMsrData(register)]).toEqual([0x012, 0x1234n]);
  });
});

describe('CPUID Fn8000_001F', () => {
  it('reports the C-bit and the ASIDs', () => {
    const { eax, ebx, ecx, edx } = cpuid8000001f({ count: 509, minSev: 100 });
    expect(ebx & 0x3f).toBe(51);
    expect([ecx, edx]).toEqual([509, 100]);
    expect((eax & CPUID_8000001F_EAX.SEV_ES) !== 0).toBe(true);
    expect((cpuid8000001f({ count: 16, minSev: 1 }).eax & CPUID_8000001F_EAX.SEV_ES) !== 0).toBe(false);
  });
});
