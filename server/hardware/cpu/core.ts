import { NarrowAlu } from './alu.js';
import { Alu64 } from './alu64.js';
import type { Flags } from './flags.js';
import { LinearMemory } from './memory.js';
import { Attr, Cr4, Gpr, Seg, Vector } from './registers.js';
import { CpuState } from './state.js';
import { ExitTrap, GuestFault } from './traps.js';
import type { CpuExit, CpuFeatures, Intercepts, MemoryEncryption, PhysicalMemory, ReverseMap } from './types.js';

const RSP = 2 * Gpr.RSP;

/** What a CPU is built from. */
export interface CpuOptions {
  readonly memory: PhysicalMemory;
  readonly features: CpuFeatures;
  /** The guest's time-stamp counter, for RDTSC without an intercept. */
  readTsc(): bigint;
}

const NO_INTERCEPTS: Intercepts = {
  exceptions: 0,
  pause: false,
  rdtsc: false,
  cr8Write: false,
  writeTraps: false,
  singleStep: false,
  nonAutomatic: 'exit',
};

/** The limit of a segment without end. */
const WHOLE_4_GIB = 0xffffffff;

/**
 * The machine that compiled instructions work on: state, memory, what follows from the mode, the stack, and the few
 * words through which an instruction speaks to the run loop.
 */
export class Core {
  readonly state = new CpuState();
  readonly gpr: Int32Array = this.state.gpr;
  readonly flags: Flags = this.state.flags;
  /** By operand size in bytes. */
  readonly alu: Readonly<Record<1 | 2 | 4, NarrowAlu>> = {
    1: new NarrowAlu(this.flags, 1),
    2: new NarrowAlu(this.flags, 2),
    4: new NarrowAlu(this.flags, 4),
  };
  readonly alu64 = new Alu64(this.flags);
  readonly memory: LinearMemory;
  features: CpuFeatures;
  readonly readTsc: () => bigint;
  intercepts: Intercepts = NO_INTERCEPTS;

  /** High half of a 64-bit value that a function has just returned. */
  hi = 0;

  // What follows from control registers and segments; `deriveMode` keeps it.
  protectedMode = false;
  code64 = false;
  codeSize: 16 | 32 | 64 = 16;
  stackSize: 16 | 32 | 64 = 16;
  cpl = 0;
  /** Last offset that may be read (written) in a segment; -1 sends every access through `checkSegment`. */
  readonly readLimit = new Float64Array(6);
  readonly writeLimit = new Float64Array(6);

  /** Changed whenever a translated block may no longer be the one that RIP means. */
  epoch = 1;
  /** Instructions of the running block after which the loop looks up; zero stops it behind the current one. */
  end = 0;
  /** The run loop has something to look at before the next block: see `Cpu`. */
  attention = false;
  /** An exit that is due once the current instruction has been retired. */
  exitAfter: CpuExit | null = null;
  /** What a repeated string instruction may still do before others get their turn. */
  repeatLimit = 0;

  constructor(options: CpuOptions) {
    this.features = options.features;
    this.readTsc = options.readTsc;
    const stopBlock = (): void => {
      this.end = 0;
    };
    this.memory = new LinearMemory(this.state, options.memory, () => this.features, stopBlock);
    this.deriveMode();
  }

  setEncryption(encryption: MemoryEncryption): void {
    this.memory.walker.setEncryption(encryption);
    this.flushNested();
  }

  setReverseMap(reverseMap: ReverseMap): void {
    this.memory.physical.reverseMap = reverseMap;
    this.flushNested();
  }

  /** Nested translations have changed, too, or what the reverse map says of them. */
  flushNested(): void {
    this.memory.flushTlb();
    this.epoch++;
  }

  setIntercepts(intercepts: Intercepts): void {
    this.intercepts = intercepts;
    this.memory.mmioRaisesVc = intercepts.nonAutomatic === 'vc';
    this.attention = true;
  }

  /** Translations have changed: none may be used without another page walk. `nonGlobal`: but for those of global pages. */
  flushTranslations(nonGlobal = false): void {
    if (nonGlobal) this.memory.flushNonGlobal();
    else this.memory.flushLinear();
    this.epoch++;
  }

  /** Works out again what follows from control registers, segments and flags. */
  deriveMode(): void {
    const { state } = this;
    this.protectedMode = state.protectedMode;
    this.code64 = state.code64;
    this.codeSize = this.code64 ? 64 : (state.attributes[Seg.CS] & Attr.DB) !== 0 ? 32 : 16;
    this.stackSize = this.code64 ? 64 : (state.attributes[Seg.SS] & Attr.DB) !== 0 ? 32 : 16;
    this.cpl = state.cpl;
    this.memory.setUser(this.cpl === 3);
    for (let segment = 0; segment < 6; segment++) this.deriveLimits(segment);
    this.attention = true;
    const codeBase = state.baseLo[Seg.CS];
    const codeLimit = state.limit[Seg.CS];
    const mode = this.codeSize | (this.stackSize << 8) | (this.cpl << 16);
    if (mode === this.codeMode && codeBase === this.codeBase && codeLimit === this.codeLimit) return;
    this.codeMode = mode;
    this.codeBase = codeBase;
    this.codeLimit = codeLimit;
    this.epoch++;
  }

  // What the blocks that RIP means depended on when `epoch` was last changed.
  private codeMode = 0;
  private codeBase = 0;
  private codeLimit = 0;

  /**
   * Whether an access that wraps at the end of a segment of 4 GiB raises an exception is left to the processor (Intel SDM 3
   * 5.3). It raises none here, as in the kernel's instruction emulator (`__linearize`).
   */
  private deriveLimits(segment: number): void {
    const highest = this.state.limit[segment];
    const limit = highest === WHOLE_4_GIB ? Number.POSITIVE_INFINITY : highest;
    const attributes = this.state.attributes[segment];
    let readable = true;
    let writable = true;
    if (this.protectedMode) {
      const usable = (attributes & Attr.P) !== 0 && (attributes & Attr.UNUSABLE) === 0;
      const code = (attributes & Attr.CODE) !== 0;
      const simple = usable && (code || (attributes & Attr.EXPAND_DOWN) === 0);
      readable = simple && (!code || (attributes & Attr.WRITE) !== 0);
      writable = simple && !code && (attributes & Attr.WRITE) !== 0;
    }
    this.readLimit[segment] = readable ? limit : -1;
    this.writeLimit[segment] = writable ? limit : -1;
  }

  /** Linear address of an offset in a segment; its high half goes to `memory.hi`. Not for 64-bit code. */
  linear(segment: number, offset: number, size: number, write: boolean): number {
    const limit = write ? this.writeLimit[segment] : this.readLimit[segment];
    if ((offset >>> 0) + size - 1 > limit) this.checkSegment(segment, offset, size, write);
    this.memory.hi = 0;
    return (this.state.baseLo[segment] + offset) | 0;
  }

  /** The full check of an access that the limit words did not pass. */
  checkSegment(segment: number, offset: number, size: number, write: boolean): void {
    const attributes = this.state.attributes[segment];
    const limit = this.state.limit[segment];
    const last = (offset >>> 0) + size - 1;
    const expandDown =
      this.protectedMode &&
      (attributes & (Attr.CODE | Attr.EXPAND_DOWN | Attr.P | Attr.UNUSABLE)) === (Attr.EXPAND_DOWN | Attr.P);
    if (expandDown && (!write || (attributes & Attr.WRITE) !== 0)) {
      const top = (attributes & Attr.DB) !== 0 ? 0xffffffff : 0xffff;
      if (offset >>> 0 > limit && last <= top) return;
    }
    throw new GuestFault(segment === Seg.SS ? Vector.SS : Vector.GP, 0);
  }

  /** Linear address of a data access at (`lo`, `hi`) in any mode. */
  dataAddress(segment: number, lo: number, hi: number, size: number, write: boolean): number {
    if (!this.code64) return this.linear(segment, lo, size, write);
    if (segment !== Seg.FS && segment !== Seg.GS) {
      this.memory.hi = hi;
      return lo;
    }
    const { baseLo, baseHi } = this.state;
    const sum = (baseLo[segment] + lo) | 0;
    this.memory.hi = (baseHi[segment] + hi + (sum >>> 0 < lo >>> 0 ? 1 : 0)) | 0;
    return sum;
  }

  // ---- stack -------------------------------------------------------------------------------------------------

  /** Moves RSP by `delta` as far as the stack's size lets it. */
  addToStackPointer(delta: number): void {
    this.stackPointerAt(delta);
    this.setStackPointer(this.stackLo, this.stackHi);
  }

  private stackLo = 0;
  private stackHi = 0;

  /** RSP plus a small `delta`, as an offset into the stack, in `stackLo` and `stackHi`. */
  private stackPointerAt(delta: number): void {
    const { gpr } = this;
    const lo = gpr[RSP];
    const sum = (lo + delta) | 0;
    if (this.stackSize === 64) {
      const carry = delta >= 0 ? (sum >>> 0 < lo >>> 0 ? 1 : 0) : sum >>> 0 > lo >>> 0 ? -1 : 0;
      this.stackHi = (gpr[RSP + 1] + carry) | 0;
      this.stackLo = sum;
    } else {
      this.stackHi = 0;
      this.stackLo = this.stackSize === 32 ? sum : sum & 0xffff;
    }
  }

  setStackPointer(lo: number, hi: number): void {
    if (this.stackSize === 16) {
      this.state.gpr16[4 * Gpr.RSP] = lo;
    } else {
      this.gpr[RSP] = lo;
      this.gpr[RSP + 1] = this.stackSize === 64 ? hi : 0;
    }
  }

  /** Linear address of RSP + `delta`. */
  stackAddress(delta: number, size: number, write: boolean): number {
    this.stackPointerAt(delta);
    if (this.stackSize !== 64) return this.linear(Seg.SS, this.stackLo, size, write);
    this.memory.hi = this.stackHi;
    return this.stackLo;
  }

  push16(value: number): void {
    const lo = this.stackAddress(-2, 2, true);
    this.memory.store16(lo, this.memory.hi, value);
    this.addToStackPointer(-2);
  }

  push32(value: number): void {
    const lo = this.stackAddress(-4, 4, true);
    this.memory.store32(lo, this.memory.hi, value);
    this.addToStackPointer(-4);
  }

  push64(lo: number, hi: number): void {
    const at = this.stackAddress(-8, 8, true);
    this.memory.store64(at, this.memory.hi, lo, hi);
    this.addToStackPointer(-8);
  }

  push(size: number, lo: number, hi: number): void {
    if (size === 8) this.push64(lo, hi);
    else if (size === 4) this.push32(lo);
    else this.push16(lo);
  }

  /** The value at RSP + `delta`, without moving RSP; a high half goes to `hi`. */
  peek(size: number, delta: number): number {
    const at = this.stackAddress(delta, size, false);
    const { memory } = this;
    this.hi = 0;
    if (size === 2) return memory.load16(at, memory.hi);
    if (size === 4) return memory.load32(at, memory.hi);
    const lo = memory.load64(at, memory.hi);
    this.hi = memory.dataHi;
    return lo;
  }

  /** A high half goes to `hi`. */
  pop(size: number): number {
    const lo = this.peek(size, 0);
    this.addToStackPointer(size);
    return lo;
  }

  // ---- control -----------------------------------------------------------------------------------------------

  /** A near branch: RIP within CS. */
  jump(lo: number, hi: number): void {
    if (this.code64) {
      if (!this.memory.isCanonical(lo, hi)) throw new GuestFault(Vector.GP, 0);
    } else if (lo >>> 0 > this.state.limit[Seg.CS]) {
      throw new GuestFault(Vector.GP, 0);
    }
    this.state.ripLo = lo;
    this.state.ripHi = hi;
  }

  /** #GP(0) unless CPL is 0. */
  requirePrivilege(): void {
    if (this.cpl !== 0) throw new GuestFault(Vector.GP, 0);
  }

  /** A non-automatic exit: to the hypervisor, or to the guest as #VC. */
  intercept(exitCode: number, exit: CpuExit): never {
    if (this.intercepts.nonAutomatic === 'vc') throw new GuestFault(Vector.VC, exitCode);
    throw new ExitTrap(exit);
  }

  /** Sets RFLAGS from an image; RF and VM stay out of it. The run loop looks at IF and TF. */
  setFlags(image: number, mask: number): void {
    const { flags } = this;
    const before = flags.value;
    const after = (before & ~mask) | (image & mask);
    flags.value = after;
    this.attention = true;
    if (((before ^ after) & (1 << 18)) !== 0 && (this.state.cr4Lo & Cr4.SMAP) !== 0) this.memory.flushSupervisorData();
  }
}
