import { Flags } from './flags.js';
import { Attr, Cr0, Cr4, Efer, Gpr, Msr, Seg } from './registers.js';
import type { DescriptorTable, GeneralRegisters, Segment, SegmentName } from './types.js';

const SEGMENT_INDEX: Readonly<Record<SegmentName, number>> = { es: 0, cs: 1, ss: 2, ds: 3, fs: 4, gs: 5, tr: 6, ldt: 7 };

/** In the order of their numbers in instructions. */
export const GENERAL_REGISTERS = [
  'rax',
  'rcx',
  'rdx',
  'rbx',
  'rsp',
  'rbp',
  'rsi',
  'rdi',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
] as const;

const low = (value: bigint): number => Number(BigInt.asIntN(32, value));
const high = (value: bigint): number => Number(BigInt.asIntN(32, value >> 32n));
const join = (lo: number, hi: number): bigint => (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);

/**
 * The architectural state of one CPU. 64-bit values are pairs of int32 for the interpreter; accessors of type bigint
 * serve everybody else. Whoever changes control registers, segments, tables or RFLAGS from outside does so through
 * the accessors, which advance `revision`, so that the CPU notices.
 */
export class CpuState {
  /** Low half of register n at 2n, high half at 2n + 1. */
  readonly gpr = new Int32Array(32);
  readonly gpr16 = new Uint16Array(this.gpr.buffer);
  readonly gpr8 = new Uint8Array(this.gpr.buffer);
  private readonly gpr64 = new BigUint64Array(this.gpr.buffer);
  ripLo = 0;
  ripHi = 0;
  readonly flags = new Flags();

  /** Indexed by `Seg`; ES..GS, TR, LDTR. */
  readonly selector = new Int32Array(8);
  readonly baseLo = new Int32Array(8);
  readonly baseHi = new Int32Array(8);
  readonly limit = new Float64Array(8);
  readonly attributes = new Int32Array(8);

  gdtBaseLo = 0;
  gdtBaseHi = 0;
  gdtLimit = 0;
  idtBaseLo = 0;
  idtBaseHi = 0;
  idtLimit = 0;

  cr0Lo = 0;
  cr2Lo = 0;
  cr2Hi = 0;
  cr3Lo = 0;
  cr3Hi = 0;
  cr4Lo = 0;
  cr8Lo = 0;
  eferLo = 0;
  eferHi = 0;
  /** DR0..DR3, DR6, DR7 as pairs; DR4 and DR5 are aliases. */
  readonly dr = new Int32Array(16);
  readonly xcr0 = new Int32Array(2);

  /** XMM0..XMM15, 16 bytes each. */
  readonly xmmBytes = new Uint8Array(256);
  readonly xmm = new Int32Array(this.xmmBytes.buffer);
  mxcsr = 0x1f80;
  /** x87: ST0..ST7 as FXSAVE stores them (16 bytes each), and the environment. Nothing here computes with them. */
  readonly st = new Uint8Array(128);
  fcw = 0x37f;
  fsw = 0;
  /** Abridged tag word: bit n is set where physical register n is not empty. */
  ftw = 0;
  fop = 0;
  fip = 0n;
  fdp = 0n;

  /** STAR, LSTAR, CSTAR, SYSCALL_MASK, KERNEL_GS_BASE, SYSENTER_CS/ESP/EIP, TSC_AUX, GHCB, SEV_STATUS as pairs. */
  private readonly msrs = new Int32Array(22);

  /** Interrupts are held off until the next instruction has been done (after STI or MOV SS). */
  interruptShadow: 'none' | 'sti' | 'mov-ss' = 'none';
  /** An NMI's handler has not executed IRET yet. */
  nmiBlocked = false;

  /** Advanced by every change from outside that the CPU has derived something from. */
  revision = 0;

  constructor() {
    this.reset();
  }

  /** Power-on reset: APM volume 2, table 14-1, with EDX as KVM gives it (family 6). Clears everything. */
  reset(): void {
    this.init();
    this.xmmBytes.fill(0);
    this.mxcsr = 0x1f80;
    this.st.fill(0);
    this.fcw = 0x37f;
    this.fsw = 0;
    this.ftw = 0;
    this.fop = 0;
    this.fip = 0n;
    this.fdp = 0n;
    this.xcr0[0] = 1;
    this.xcr0[1] = 0;
    this.msrs.fill(0);
    this.cr0Lo = Cr0.CD | Cr0.NW | Cr0.ET;
  }

  /** INIT: as a reset, but CR0.CD and NW, x87, SSE and MSRs stay (APM volume 2, 14.1.3). */
  init(): void {
    this.gpr.fill(0);
    this.gpr[2 * Gpr.RDX] = 0x600;
    this.ripLo = 0xfff0;
    this.ripHi = 0;
    this.flags.value = 0;
    this.selector.fill(0);
    this.baseLo.fill(0);
    this.baseHi.fill(0);
    this.limit.fill(0xffff);
    this.attributes.fill(Attr.P | Attr.S | Attr.WRITE | Attr.ACCESSED);
    this.selector[Seg.CS] = 0xf000;
    this.baseLo[Seg.CS] = 0xffff0000;
    this.attributes[Seg.CS] = Attr.P | Attr.S | Attr.CODE | Attr.WRITE | Attr.ACCESSED;
    this.attributes[Seg.TR] = Attr.P | 11;
    this.attributes[Seg.LDTR] = Attr.P | 2;
    this.setTable('gdt', { base: 0n, limit: 0xffff });
    this.setTable('idt', { base: 0n, limit: 0xffff });
    this.cr0Lo = (this.cr0Lo & (Cr0.CD | Cr0.NW)) | Cr0.ET;
    this.cr2 = 0n;
    this.cr3 = 0n;
    this.cr4Lo = 0;
    this.cr8Lo = 0;
    this.eferLo = 0;
    this.eferHi = 0;
    this.dr.fill(0);
    this.dr[12] = 0xffff0ff0;
    this.dr[14] = 0x400;
    this.interruptShadow = 'none';
    this.nmiBlocked = false;
    this.revision++;
  }

  /** Sets CS:IP as a SIPI does: the page number becomes the segment. */
  startup(vector: number): void {
    this.selector[Seg.CS] = vector << 8;
    this.baseLo[Seg.CS] = vector << 12;
    this.baseHi[Seg.CS] = 0;
    this.ripLo = 0;
    this.ripHi = 0;
    this.revision++;
  }

  register(index: number): bigint {
    return this.gpr64[index];
  }

  setRegister(index: number, value: bigint): void {
    this.gpr64[index] = value;
  }

  get rip(): bigint {
    return join(this.ripLo, this.ripHi);
  }
  set rip(value: bigint) {
    this.ripLo = low(value);
    this.ripHi = high(value);
  }

  get rflags(): bigint {
    return BigInt(this.flags.value >>> 0);
  }
  set rflags(value: bigint) {
    this.flags.value = low(value);
    this.revision++;
  }

  getRegisters(): GeneralRegisters {
    const { gpr64: gpr, rip, rflags } = this;
    const [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi] = [gpr[0], gpr[1], gpr[2], gpr[3], gpr[4], gpr[5], gpr[6], gpr[7]];
    const [r8, r9, r10, r11, r12, r13, r14, r15] = [gpr[8], gpr[9], gpr[10], gpr[11], gpr[12], gpr[13], gpr[14], gpr[15]];
    return { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags };
  }

  setRegisters(registers: GeneralRegisters): void {
    GENERAL_REGISTERS.forEach((name, index) => {
      this.setRegister(index, registers[name]);
    });
    this.rip = registers.rip;
    this.rflags = registers.rflags;
  }

  segment(name: SegmentName): Segment {
    const index = SEGMENT_INDEX[name];
    const attributes = this.attributes[index];
    return {
      base: join(this.baseLo[index], this.baseHi[index]),
      limit: this.limit[index],
      selector: this.selector[index],
      type: attributes & Attr.TYPE,
      present: (attributes >> 7) & 1,
      dpl: (attributes >> Attr.DPL_SHIFT) & 3,
      db: (attributes >> 10) & 1,
      s: (attributes >> 4) & 1,
      l: (attributes >> 9) & 1,
      g: (attributes >> 11) & 1,
      avl: (attributes >> 8) & 1,
      unusable: (attributes >> 16) & 1,
    };
  }

  setSegment(name: SegmentName, segment: Segment): void {
    const index = SEGMENT_INDEX[name];
    this.selector[index] = segment.selector & 0xffff;
    this.baseLo[index] = low(segment.base);
    this.baseHi[index] = high(segment.base);
    this.limit[index] = segment.limit >>> 0;
    this.attributes[index] =
      (segment.type & 0xf) |
      ((segment.s & 1) << 4) |
      ((segment.dpl & 3) << 5) |
      ((segment.present & 1) << 7) |
      ((segment.avl & 1) << 8) |
      ((segment.l & 1) << 9) |
      ((segment.db & 1) << 10) |
      ((segment.g & 1) << 11) |
      ((segment.unusable & 1) << 16);
    this.revision++;
  }

  table(name: 'gdt' | 'idt'): DescriptorTable {
    return name === 'gdt'
      ? { base: join(this.gdtBaseLo, this.gdtBaseHi), limit: this.gdtLimit }
      : { base: join(this.idtBaseLo, this.idtBaseHi), limit: this.idtLimit };
  }

  setTable(name: 'gdt' | 'idt', table: DescriptorTable): void {
    if (name === 'gdt') {
      this.gdtBaseLo = low(table.base);
      this.gdtBaseHi = high(table.base);
      this.gdtLimit = table.limit & 0xffff;
    } else {
      this.idtBaseLo = low(table.base);
      this.idtBaseHi = high(table.base);
      this.idtLimit = table.limit & 0xffff;
    }
  }

  get cr0(): bigint {
    return BigInt(this.cr0Lo >>> 0);
  }
  set cr0(value: bigint) {
    this.cr0Lo = low(value);
    this.revision++;
  }
  get cr2(): bigint {
    return join(this.cr2Lo, this.cr2Hi);
  }
  set cr2(value: bigint) {
    this.cr2Lo = low(value);
    this.cr2Hi = high(value);
  }
  get cr3(): bigint {
    return join(this.cr3Lo, this.cr3Hi);
  }
  set cr3(value: bigint) {
    this.cr3Lo = low(value);
    this.cr3Hi = high(value);
    this.revision++;
  }
  get cr4(): bigint {
    return BigInt(this.cr4Lo >>> 0);
  }
  set cr4(value: bigint) {
    this.cr4Lo = low(value);
    this.revision++;
  }
  get cr8(): bigint {
    return BigInt(this.cr8Lo);
  }
  set cr8(value: bigint) {
    this.cr8Lo = low(value) & 0xf;
  }
  get efer(): bigint {
    return join(this.eferLo, this.eferHi);
  }
  set efer(value: bigint) {
    this.eferLo = low(value);
    this.eferHi = high(value);
    this.revision++;
  }

  /** DR0..DR3, DR6, DR7. */
  debugRegister(index: number): bigint {
    return join(this.dr[2 * index], this.dr[2 * index + 1]);
  }
  setDebugRegister(index: number, value: bigint): void {
    this.dr[2 * index] = low(value);
    this.dr[2 * index + 1] = high(value);
    this.revision++;
  }

  get xcr0Value(): bigint {
    return join(this.xcr0[0], this.xcr0[1]);
  }
  set xcr0Value(value: bigint) {
    this.xcr0[0] = low(value);
    this.xcr0[1] = high(value);
  }

  /** Guest physical address of the GHCB, or a request of the GHCB MSR protocol. */
  get ghcb(): bigint {
    return this.readMsr(Msr.SEV_ES_GHCB) ?? 0n;
  }
  set ghcb(value: bigint) {
    this.writeMsr(Msr.SEV_ES_GHCB, value);
  }

  /** An MSR that the CPU holds itself, or null: EFER, the bases of FS and GS, SYSCALL and SYSENTER, TSC_AUX, the GHCB. */
  readMsr(index: number): bigint | null {
    if (index === Msr.EFER) return this.efer;
    if (index === Msr.FS_BASE) return join(this.baseLo[Seg.FS], this.baseHi[Seg.FS]);
    if (index === Msr.GS_BASE) return join(this.baseLo[Seg.GS], this.baseHi[Seg.GS]);
    const slot = msrSlot(index);
    return slot < 0 ? null : join(this.msrs[slot], this.msrs[slot + 1]);
  }

  /** Sets such an MSR without any check; false when the CPU does not hold it. */
  writeMsr(index: number, value: bigint): boolean {
    if (index === Msr.EFER) {
      this.efer = value;
    } else if (index === Msr.FS_BASE || index === Msr.GS_BASE) {
      const segment = index === Msr.FS_BASE ? Seg.FS : Seg.GS;
      this.baseLo[segment] = low(value);
      this.baseHi[segment] = high(value);
    } else {
      const slot = msrSlot(index);
      if (slot < 0) return false;
      this.msrs[slot] = low(value);
      this.msrs[slot + 1] = high(value);
    }
    return true;
  }

  get protectedMode(): boolean {
    return (this.cr0Lo & Cr0.PE) !== 0;
  }
  get longMode(): boolean {
    return (this.eferLo & Efer.LMA) !== 0;
  }
  get paging(): boolean {
    return (this.cr0Lo & Cr0.PG) !== 0;
  }
  get code64(): boolean {
    return this.longMode && (this.attributes[Seg.CS] & Attr.L) !== 0;
  }
  get fiveLevelPaging(): boolean {
    return (this.cr4Lo & Cr4.LA57) !== 0;
  }
  /** The VMCB takes CPL from SS.DPL, and so does this. */
  get cpl(): number {
    return this.protectedMode ? (this.attributes[Seg.SS] >> Attr.DPL_SHIFT) & 3 : 0;
  }

  /** What one instruction may have changed before it had to be given up: see `restore`. */
  snapshot(): CpuStateSnapshot {
    const flags = new Flags();
    flags.copyFrom(this.flags);
    return {
      gpr: this.gpr.slice(),
      xmm: this.xmm.slice(),
      flags,
      ripLo: this.ripLo,
      ripHi: this.ripHi,
      selector: this.selector.slice(),
      baseLo: this.baseLo.slice(),
      baseHi: this.baseHi.slice(),
      limit: this.limit.slice(),
      attributes: this.attributes.slice(),
    };
  }

  restore(snapshot: CpuStateSnapshot): void {
    this.gpr.set(snapshot.gpr);
    this.xmm.set(snapshot.xmm);
    this.flags.copyFrom(snapshot.flags);
    this.ripLo = snapshot.ripLo;
    this.ripHi = snapshot.ripHi;
    this.selector.set(snapshot.selector);
    this.baseLo.set(snapshot.baseLo);
    this.baseHi.set(snapshot.baseHi);
    this.limit.set(snapshot.limit);
    this.attributes.set(snapshot.attributes);
    this.revision++;
  }
}

/** General registers, XMM, RFLAGS, RIP and segments at one moment. */
export interface CpuStateSnapshot {
  readonly gpr: Int32Array;
  readonly xmm: Int32Array;
  readonly flags: Flags;
  readonly ripLo: number;
  readonly ripHi: number;
  readonly selector: Int32Array;
  readonly baseLo: Int32Array;
  readonly baseHi: Int32Array;
  readonly limit: Float64Array;
  readonly attributes: Int32Array;
}

const MSR_SLOTS: readonly number[] = [
  Msr.STAR,
  Msr.LSTAR,
  Msr.CSTAR,
  Msr.SYSCALL_MASK,
  Msr.KERNEL_GS_BASE,
  Msr.SYSENTER_CS,
  Msr.SYSENTER_ESP,
  Msr.SYSENTER_EIP,
  Msr.TSC_AUX,
  Msr.SEV_ES_GHCB,
  Msr.SEV_STATUS,
];

/** Index of the low half in `CpuState.msrs`, negative for an MSR that is not there. */
const msrSlot = (index: number): number => 2 * MSR_SLOTS.indexOf(index);
