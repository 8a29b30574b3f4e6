import { Attr } from '../cpu/registers.js';
import type { CpuState } from '../cpu/state.js';
import type { GeneralRegisters, SegmentName } from '../cpu/types.js';
import type { Field } from './byte-layout.js';
import { SEV_FEATURE, VMSA, type VmsaSegment } from './vmsa.js';

/**
 * What VMRUN loads from the save area of an encrypted vCPU and VMEXIT puts there (APM volume 2, 15.35.2 and table B-4):
 * all of the CPU's registers, so that the hypervisor neither sees nor supplies any.
 */

/** EFER.SVME: set in every save area, though the guest cannot see it. VMRUN refuses one without it. */
const EFER_SVME = 1n << 12n;
/** EFER bits that VMRUN accepts: SCE, LME, LMA, NXE, SVME, LMSLE, FFXSR, TCE. */
const EFER_VALID = 0x1n | 0x100n | 0x400n | 0x800n | EFER_SVME | 0x2000n | 0x4000n | 0x8000n;
const ATTRIBUTES = 0xfff;
const X87_REGISTER = 10;
const X87_SLOT = 16;

/** Registers whose name in the save area is that in `GeneralRegisters`. */
const GENERAL = [
  ...(['rax', 'rbx', 'rcx', 'rdx', 'rsi', 'rdi', 'rsp', 'rbp'] as const),
  ...(['r8', 'r9', 'r10', 'r11', 'r12', 'r13', 'r14', 'r15', 'rip', 'rflags'] as const),
] satisfies readonly (keyof GeneralRegisters & keyof typeof VMSA)[];

const SEGMENTS: readonly (readonly [SegmentName, Field<VmsaSegment>])[] = [
  ['es', VMSA.es],
  ['cs', VMSA.cs],
  ['ss', VMSA.ss],
  ['ds', VMSA.ds],
  ['fs', VMSA.fs],
  ['gs', VMSA.gs],
  ['tr', VMSA.tr],
  ['ldt', VMSA.ldtr],
];

/** MSRs that the CPU holds itself, by index. */
const MSRS: readonly (readonly [number, Field<bigint>])[] = [
  [0xc000_0081, VMSA.star],
  [0xc000_0082, VMSA.lstar],
  [0xc000_0083, VMSA.cstar],
  [0xc000_0084, VMSA.sfmask],
  [0xc000_0102, VMSA.kernelGsBase],
  [0x0000_0174, VMSA.sysenterCs],
  [0x0000_0175, VMSA.sysenterEsp],
  [0x0000_0176, VMSA.sysenterEip],
];
const MSR_TSC_AUX = 0xc000_0103;

const DEBUG_STATUS_AND_CONTROL: readonly (readonly [number, Field<bigint>])[] = [
  [6, VMSA.dr6],
  [7, VMSA.dr7],
];
const DEBUG: readonly (readonly [number, Field<bigint>])[] = [
  [0, VMSA.dr0],
  [1, VMSA.dr1],
  [2, VMSA.dr2],
  [3, VMSA.dr3],
  ...DEBUG_STATUS_AND_CONTROL,
];

/** DR0 to DR3 are swapped only with DebugSwap (APM volume 2, table B-3): without, the guest sees and changes the host's. */
const swappedDebugRegisters = (page: Uint8Array): typeof DEBUG =>
  (VMSA.sevFeatures.get(page) & SEV_FEATURE.DEBUG_SWAP) === 0n ? DEBUG_STATUS_AND_CONTROL : DEBUG;

/** Writes the CPU's registers into a save area as the CPU sees it, and leaves all its other fields. */
export function storeSaveArea(state: CpuState, page: Uint8Array): void {
  const registers = state.getRegisters();
  for (const name of GENERAL) VMSA[name].set(page, registers[name]);
  for (const [name, field] of SEGMENTS) {
    const { selector, limit, base } = state.segment(name);
    field.set(page, { selector, limit, base, attributes: packAttributes(state, name) });
  }
  const gdt = state.table('gdt');
  const idt = state.table('idt');
  VMSA.gdtr.set(page, { selector: 0, attributes: 0, ...gdt });
  VMSA.idtr.set(page, { selector: 0, attributes: 0, ...idt });
  VMSA.cpl.set(page, state.cpl);
  VMSA.efer.set(page, state.efer | EFER_SVME);
  VMSA.cr0.set(page, state.cr0);
  VMSA.cr2.set(page, state.cr2);
  VMSA.cr3.set(page, state.cr3);
  VMSA.cr4.set(page, state.cr4);
  VMSA.vintrCtrl.set(page, state.cr8);
  VMSA.xcr0.set(page, state.xcr0Value);
  for (const [index, field] of swappedDebugRegisters(page)) field.set(page, state.debugRegister(index));
  for (const [index, field] of MSRS) field.set(page, state.readMsr(index) ?? 0n);
  VMSA.tscAux.set(page, Number((state.readMsr(MSR_TSC_AUX) ?? 0n) & 0xffff_ffffn));
  storeFpu(state, page);
}

/**
 * Loads the CPU's registers from a save area as the CPU sees it.
 * @returns false, with the CPU unchanged, if VMRUN's checks refuse what is there (APM volume 2, 15.5.1): that is what a
 * page looks like which is decrypted with another key than it was encrypted with
 */
export function loadSaveArea(state: CpuState, page: Uint8Array): boolean {
  if (!isConsistent(page)) return false;
  const registers = state.getRegisters();
  for (const name of GENERAL) registers[name] = VMSA[name].get(page);
  state.setRegisters(registers);
  for (const [name, field] of SEGMENTS) unpackSegment(state, name, field.get(page));
  const gdt = VMSA.gdtr.get(page);
  const idt = VMSA.idtr.get(page);
  state.setTable('gdt', { base: gdt.base, limit: gdt.limit });
  state.setTable('idt', { base: idt.base, limit: idt.limit });
  state.efer = VMSA.efer.get(page) & ~EFER_SVME;
  state.cr0 = VMSA.cr0.get(page);
  state.cr2 = VMSA.cr2.get(page);
  state.cr3 = VMSA.cr3.get(page);
  state.cr4 = VMSA.cr4.get(page);
  state.cr8 = VMSA.vintrCtrl.get(page);
  state.xcr0Value = VMSA.xcr0.get(page);
  for (const [index, field] of swappedDebugRegisters(page)) state.setDebugRegister(index, field.get(page));
  for (const [index, field] of MSRS) state.writeMsr(index, field.get(page));
  state.writeMsr(MSR_TSC_AUX, BigInt(VMSA.tscAux.get(page)));
  loadFpu(state, page);
  return true;
}

/** The consistency checks of VMRUN on guest state. */
function isConsistent(page: Uint8Array): boolean {
  const efer = VMSA.efer.get(page);
  const upper = (value: bigint): boolean => value >> 32n !== 0n;
  return (
    (efer & EFER_SVME) !== 0n &&
    (efer & ~EFER_VALID) === 0n &&
    !upper(VMSA.cr0.get(page)) &&
    !upper(VMSA.cr4.get(page)) &&
    !upper(VMSA.dr6.get(page)) &&
    !upper(VMSA.dr7.get(page))
  );
}

const packAttributes = (state: CpuState, name: SegmentName): number => {
  const { type, s, dpl, present, avl, l, db, g, unusable } = state.segment(name);
  const p = unusable === 1 ? 0 : present;
  return type | (s << 4) | (dpl << Attr.DPL_SHIFT) | (p << 7) | (avl << 8) | (l << 9) | (db << 10) | (g << 11);
};

function unpackSegment(state: CpuState, name: SegmentName, { selector, attributes, limit, base }: VmsaSegment): void {
  const bits = attributes & ATTRIBUTES;
  state.setSegment(name, {
    base,
    limit,
    selector,
    type: bits & Attr.TYPE,
    s: (bits >> 4) & 1,
    dpl: (bits >> Attr.DPL_SHIFT) & 3,
    present: (bits >> 7) & 1,
    avl: (bits >> 8) & 1,
    l: (bits >> 9) & 1,
    db: (bits >> 10) & 1,
    g: (bits >> 11) & 1,
    unusable: (bits & Attr.P) === 0 ? 1 : 0,
  });
}

function storeFpu(state: CpuState, page: Uint8Array): void {
  VMSA.mxcsr.set(page, state.mxcsr);
  VMSA.x87Fcw.set(page, state.fcw);
  VMSA.x87Fsw.set(page, state.fsw);
  VMSA.x87Ftw.set(page, state.ftw);
  VMSA.x87Fop.set(page, state.fop);
  VMSA.x87Rip.set(page, state.fip);
  VMSA.x87Dp.set(page, state.fdp);
  for (let index = 0; index < 8; index++) {
    const slot = state.st.subarray(index * X87_SLOT, index * X87_SLOT + X87_REGISTER);
    page.set(slot, VMSA.x87Registers.offset + index * X87_REGISTER);
  }
  page.set(state.xmmBytes, VMSA.xmm.offset);
}

function loadFpu(state: CpuState, page: Uint8Array): void {
  state.mxcsr = VMSA.mxcsr.get(page);
  state.fcw = VMSA.x87Fcw.get(page);
  state.fsw = VMSA.x87Fsw.get(page);
  state.ftw = VMSA.x87Ftw.get(page);
  state.fop = VMSA.x87Fop.get(page);
  state.fip = VMSA.x87Rip.get(page);
  state.fdp = VMSA.x87Dp.get(page);
  for (let index = 0; index < 8; index++) {
    const offset = VMSA.x87Registers.offset + index * X87_REGISTER;
    state.st.set(page.subarray(offset, offset + X87_REGISTER), index * X87_SLOT);
  }
  state.xmmBytes.set(page.subarray(VMSA.xmm.offset, VMSA.xmm.offset + VMSA.xmm.size));
}
