import type { KvmFpu, KvmRegs, KvmSegment, KvmSregs } from '../../index.js';

const PAGE = 4096;
/** EFER.SVME: hardware wants it in every save area. */
const EFER_SVME = 0x1000n;
/** Values after reset of what userspace cannot set. */
const RESET = { DR6: 0xffff_0ff0n, DR7: 0x400n, PAT: 0x0007_0406_0007_0406n, XCR0: 1n, MXCSR: 0x1f80 };

/** Offsets of the save area (APM volume 2, table B-4). */
const SEGMENTS = [
  ...([
    ['es', 0x000],
    ['cs', 0x010],
    ['ss', 0x020],
    ['ds', 0x030],
  ] as const),
  ...([
    ['fs', 0x040],
    ['gs', 0x050],
    ['ldt', 0x070],
    ['tr', 0x090],
  ] as const),
] as const;
const TABLES = [
  ['gdt', 0x060],
  ['idt', 0x080],
] as const;
const CONTROL = [
  ['cr4', 0x148],
  ['cr3', 0x150],
  ['cr0', 0x158],
  ['cr2', 0x240],
] as const;
const EFER = 0x0d0;
const GENERAL = [
  ...([
    ['rflags', 0x170],
    ['rip', 0x178],
    ['rsp', 0x1d8],
    ['rax', 0x1f8],
    ['rcx', 0x308],
    ['rdx', 0x310],
  ] as const),
  ...([
    ['rbx', 0x318],
    ['rbp', 0x328],
    ['rsi', 0x330],
    ['rdi', 0x338],
    ['r8', 0x340],
    ['r9', 0x348],
  ] as const),
  ...([
    ['r10', 0x350],
    ['r11', 0x358],
    ['r12', 0x360],
    ['r13', 0x368],
    ['r14', 0x370],
    ['r15', 0x378],
  ] as const),
] as const;

/**
 * The save area that the kernel makes of the registers of a vCPU before it is measured (`sev_es_sync_vmsa`): what a guest's
 * owner computes to know which launch digest to expect. All that is not given is as after reset.
 */
export const expectedSaveArea = (regs: KvmRegs, sregs: KvmSregs, fpu: KvmFpu): Uint8Array => {
  const page = new Uint8Array(PAGE);
  const view = new DataView(page.buffer);
  const u64 = (offset: number, value: bigint): void => view.setBigUint64(offset, value, true);
  const segment = (offset: number, value: KvmSegment): void => {
    view.setUint16(offset, value.selector, true);
    view.setUint16(offset + 2, attributes(value), true);
    view.setUint32(offset + 4, value.limit, true);
    u64(offset + 8, value.base);
  };
  for (const [name, offset] of SEGMENTS) {
    const value = sregs[name];
    if (value !== null) segment(offset, value);
  }
  for (const [name, offset] of TABLES) {
    view.setUint32(offset + 4, sregs[name]?.limit ?? 0, true);
    u64(offset + 8, sregs[name]?.base ?? 0n);
  }
  u64(EFER, sregs.efer | EFER_SVME);
  for (const [name, offset] of CONTROL) u64(offset, sregs[name]);
  for (const [name, offset] of GENERAL) u64(offset, regs[name]);
  u64(0x160, RESET.DR7);
  u64(0x168, RESET.DR6);
  u64(0x268, RESET.PAT);
  u64(0x3e8, RESET.XCR0);
  // KVM_GET_FPU does not report it.
  view.setUint32(0x408, RESET.MXCSR, true);
  view.setUint16(0x410, fpu.fcw, true);
  return page;
};

const attributes = ({ type, s, dpl, present, unusable, avl, l, db, g }: KvmSegment): number =>
  type | (s << 4) | (dpl << 5) | ((unusable === 1 ? 0 : present) << 7) | (avl << 8) | (l << 9) | (db << 10) | (g << 11);
