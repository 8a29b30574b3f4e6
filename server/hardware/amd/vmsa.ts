import { PAGE_SIZE } from '../units.js';
import { blob, type Field, struct, u8, u16, u32, u64 } from './byte-layout.js';

/**
 * The virtual machine save area of an SEV-ES or SEV-SNP guest's vCPU: one page, encrypted with the guest's key, in which the CPU
 * keeps all registers between entries (APM volume 2, table B-4; `struct sev_es_save_area`).
 */

/** A segment register as the save area packs it; `attributes` has the 12 bits of a descriptor without its limit. */
export interface VmsaSegment {
  readonly selector: number;
  readonly attributes: number;
  readonly limit: number;
  readonly base: bigint;
}

const SEGMENT = struct(16, { selector: u16(0), attributes: u16(2), limit: u32(4), base: u64(8) });

const segment = (offset: number): Field<VmsaSegment> => ({
  offset,
  size: SEGMENT.size,
  get: (page) => {
    const bytes = page.subarray(offset, offset + SEGMENT.size);
    return {
      selector: SEGMENT.selector.get(bytes),
      attributes: SEGMENT.attributes.get(bytes),
      limit: SEGMENT.limit.get(bytes),
      base: SEGMENT.base.get(bytes),
    };
  },
  set: (page, value) => {
    const bytes = page.subarray(offset, offset + SEGMENT.size);
    SEGMENT.selector.set(bytes, value.selector);
    SEGMENT.attributes.set(bytes, value.attributes);
    SEGMENT.limit.set(bytes, value.limit);
    SEGMENT.base.set(bytes, value.base);
  },
});

export const VMSA = struct(PAGE_SIZE, {
  es: segment(0x000),
  cs: segment(0x010),
  ss: segment(0x020),
  ds: segment(0x030),
  fs: segment(0x040),
  gs: segment(0x050),
  gdtr: segment(0x060),
  ldtr: segment(0x070),
  idtr: segment(0x080),
  tr: segment(0x090),
  vmpl: u8(0x0ca),
  cpl: u8(0x0cb),
  efer: u64(0x0d0),
  xss: u64(0x140),
  cr4: u64(0x148),
  cr3: u64(0x150),
  cr0: u64(0x158),
  dr7: u64(0x160),
  dr6: u64(0x168),
  rflags: u64(0x170),
  rip: u64(0x178),
  dr0: u64(0x180),
  dr1: u64(0x188),
  dr2: u64(0x190),
  dr3: u64(0x198),
  rsp: u64(0x1d8),
  rax: u64(0x1f8),
  star: u64(0x200),
  lstar: u64(0x208),
  cstar: u64(0x210),
  sfmask: u64(0x218),
  kernelGsBase: u64(0x220),
  sysenterCs: u64(0x228),
  sysenterEsp: u64(0x230),
  sysenterEip: u64(0x238),
  cr2: u64(0x240),
  gPat: u64(0x268),
  dbgctl: u64(0x270),
  pkru: u32(0x2e8),
  tscAux: u32(0x2ec),
  tscScale: u64(0x2f0),
  tscOffset: u64(0x2f8),
  rcx: u64(0x308),
  rdx: u64(0x310),
  rbx: u64(0x318),
  rbp: u64(0x328),
  rsi: u64(0x330),
  rdi: u64(0x338),
  r8: u64(0x340),
  r9: u64(0x348),
  r10: u64(0x350),
  r11: u64(0x358),
  r12: u64(0x360),
  r13: u64(0x368),
  r14: u64(0x370),
  r15: u64(0x378),
  guestExitInfo1: u64(0x390),
  guestExitInfo2: u64(0x398),
  guestExitIntInfo: u64(0x3a0),
  guestNrip: u64(0x3a8),
  sevFeatures: u64(0x3b0),
  vintrCtrl: u64(0x3b8),
  guestExitCode: u64(0x3c0),
  virtualTom: u64(0x3c8),
  eventInj: u64(0x3e0),
  xcr0: u64(0x3e8),
  x87Dp: u64(0x400),
  mxcsr: u32(0x408),
  x87Ftw: u16(0x40c),
  x87Fsw: u16(0x40e),
  x87Fcw: u16(0x410),
  x87Fop: u16(0x412),
  x87Ds: u16(0x414),
  x87Cs: u16(0x416),
  x87Rip: u64(0x418),
  x87Registers: blob(0x420, 80),
  xmm: blob(0x470, 256),
  ymm: blob(0x570, 256),
});

/** Bits of `sevFeatures`, which KVM calls VMSA features. */
export const SEV_FEATURE = {
  SNP_ACTIVE: 1n << 0n,
  RESTRICTED_INJECTION: 1n << 3n,
  ALTERNATE_INJECTION: 1n << 4n,
  DEBUG_SWAP: 1n << 5n,
  SECURE_TSC: 1n << 9n,
} as const;
