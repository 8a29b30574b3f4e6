import type { GuestPhysicalMemory } from './guest-physical.js';
import { Cr0, Cr4, Efer } from './registers.js';
import type { CpuState } from './state.js';
import type { CpuFeatures, MemoryEncryption } from './types.js';

const TWO_32 = 0x1_0000_0000;

/** Bits of a page-table entry's low half. */
const Pte = {
  P: 1 << 0,
  RW: 1 << 1,
  US: 1 << 2,
  A: 1 << 5,
  D: 1 << 6,
  PS: 1 << 7,
  G: 1 << 8,
} as const;

/** Bits of a page fault's error code. */
const PageFault = { PRESENT: 1, WRITE: 2, USER: 4, RESERVED: 8, FETCH: 16 } as const;

/** `walk` found a translation. Everything else it returns is an error code. */
export const TRANSLATED = -1;

/**
 * The guest's own page walk: no paging, 32-bit, PAE, and long mode with four or five levels (APM volume 2, chapter 5).
 * The result of the last walk is in the fields.
 */
export class PageWalker {
  /** Guest physical address of the 4 KiB page. */
  page = 0;
  encrypted = false;
  writable = false;
  user = false;
  global = false;
  /** The entry maps more than 4 KiB. */
  large = false;

  private encryption: MemoryEncryption['kind'] = 'none';
  /** The C-bit or shared bit in the high half of an entry; both lie above bit 32. */
  private encryptionBitHi = 0;
  private readonly entryAddress = new Float64Array(5);
  private readonly entryLo = new Int32Array(5);
  private entries = 0;
  private allWritable = true;
  private allUser = true;
  private noExecute = false;

  constructor(
    private readonly state: CpuState,
    private readonly memory: GuestPhysicalMemory,
    private readonly features: () => CpuFeatures,
  ) {}

  setEncryption(encryption: MemoryEncryption): void {
    this.encryption = encryption.kind;
    if (encryption.kind === 'none') this.encryptionBitHi = 0;
    else this.encryptionBitHi = 1 << ((encryption.kind === 'sev' ? encryption.cBit : encryption.sharedBit) - 32);
  }

  /** Instruction fetches are private whatever the entry says. */
  get fetchesEncrypted(): boolean {
    return this.encryption !== 'none';
  }

  /**
   * @param commit set accessed and dirty bits
   * @returns `TRANSLATED`, or the error code of the page fault
   */
  walk(lo: number, hi: number, write: boolean, user: boolean, fetch: boolean, commit: boolean): number {
    const { state } = this;
    if ((state.cr0Lo & Cr0.PG) === 0) return this.identity(lo);
    this.entries = 0;
    this.allWritable = true;
    this.allUser = true;
    this.noExecute = false;
    const wide = (state.cr4Lo & Cr4.PAE) !== 0;
    const fault = wide ? this.walkWide(lo, hi) : this.walkLegacy(lo);
    const noExecuteOn = (state.eferLo & Efer.NXE) !== 0 && wide;
    const request =
      (write ? PageFault.WRITE : 0) |
      (user ? PageFault.USER : 0) |
      (fetch && (noExecuteOn || (state.cr4Lo & Cr4.SMEP) !== 0) ? PageFault.FETCH : 0);
    if (fault >= 0) return fault | request;
    if (!this.permits(write, user, fetch)) return PageFault.PRESENT | request;
    this.writable = this.allWritable;
    this.user = this.allUser;
    if (commit) this.setAccessed(write, wide);
    return TRANSLATED;
  }

  private identity(lo: number): number {
    this.page = (lo & ~0xfff) >>> 0;
    this.encrypted = this.encryption !== 'none';
    this.writable = true;
    this.user = true;
    this.global = false;
    this.large = false;
    return TRANSLATED;
  }

  private permits(write: boolean, user: boolean, fetch: boolean): boolean {
    const { cr4Lo, cr0Lo, flags } = this.state;
    if (user && !this.allUser) return false;
    if (write && !this.allWritable && (user || (cr0Lo & Cr0.WP) !== 0)) return false;
    if (fetch && this.noExecute) return false;
    if (!user && this.allUser) {
      if (fetch && (cr4Lo & Cr4.SMEP) !== 0) return false;
      if (!fetch && (cr4Lo & Cr4.SMAP) !== 0 && (flags.control & (1 << 18)) === 0) return false;
    }
    return true;
  }

  /** PAE and long mode: 8-byte entries. */
  private walkWide(lo: number, hi: number): number {
    const { state } = this;
    const long = (state.eferLo & Efer.LMA) !== 0;
    let level = long ? (state.fiveLevelPaging ? 5 : 4) : 3;
    let table = long ? this.addressOf(state.cr3Lo & ~0xfff, state.cr3Hi) : (state.cr3Lo & ~0x1f) >>> 0;
    for (; ; level--) {
      const entryAddress = this.withoutEncryption(table) + 8 * indexAt(level, lo, hi);
      const entryLo = this.memory.load64(entryAddress, this.tablesEncrypted());
      const entryHi = this.memory.dataHi;
      if ((entryLo & Pte.P) === 0) return 0;
      this.record(entryAddress, entryLo);
      const isPageDirectoryPointer = !long && level === 3;
      const leaf = level === 1 || ((entryLo & Pte.PS) !== 0 && !isPageDirectoryPointer);
      if (this.hasReservedBits(entryLo, entryHi, level, leaf, isPageDirectoryPointer)) {
        return PageFault.PRESENT | PageFault.RESERVED;
      }
      if (!isPageDirectoryPointer) {
        if ((entryLo & Pte.RW) === 0) this.allWritable = false;
        if ((entryLo & Pte.US) === 0) this.allUser = false;
        if (entryHi < 0) this.noExecute = true;
      }
      if (leaf) {
        this.finish(level, entryLo, entryHi, lo);
        return -1;
      }
      table = this.addressOf(entryLo & ~0xfff, entryHi);
    }
  }

  /** Whether the high half of an entry or of CR3 has bits above MAXPHYADDR that are not the encryption bit. */
  hasReservedAddressBits(hi: number): boolean {
    const { physicalAddressBits } = this.features();
    const valid = physicalAddressBits >= 52 ? 0xfffff : (1 << (physicalAddressBits - 32)) - 1;
    return (hi & ~valid & ~this.encryptionBitHi) !== 0;
  }

  private hasReservedBits(lo: number, hi: number, level: number, leaf: boolean, pageDirectoryPointer: boolean): boolean {
    const { gigabytePages, noExecute } = this.features();
    if (this.hasReservedAddressBits(hi & 0xfffff)) return true;
    if (hi < 0 && (!noExecute || (this.state.eferLo & Efer.NXE) === 0)) return true;
    if (pageDirectoryPointer) return (lo & 0x1e6) !== 0 || (hi & 0x7ff00000) !== 0;
    if (!leaf) return level > 3 && (lo & Pte.PS) !== 0;
    if (level === 2) return (lo & 0x1fe000) !== 0;
    if (level === 3) return !gigabytePages || (lo & 0x3fffe000) !== 0;
    return level > 3;
  }

  private finish(level: number, lo: number, hi: number, linearLo: number): void {
    const offsetMask = level === 1 ? 0 : level === 2 ? 0x1ff000 : 0x3ffff000;
    this.page = this.withoutEncryption(this.addressOf((lo & ~0xfff & ~offsetMask) | (linearLo & offsetMask), hi));
    this.large = level > 1;
    this.global = (lo & Pte.G) !== 0;
    const bitSet = (hi & this.encryptionBitHi) !== 0;
    this.encrypted = this.encryption === 'tdx' ? !bitSet : bitSet;
  }

  /** 32-bit paging: 4-byte entries in two levels; they have no room for a C-bit, so everything is encrypted. */
  private walkLegacy(lo: number): number {
    const directoryAddress = ((this.state.cr3Lo & ~0xfff) >>> 0) + 4 * (lo >>> 22);
    const tables = this.tablesEncrypted();
    const directory = this.memory.load32(directoryAddress, tables);
    if ((directory & Pte.P) === 0) return 0;
    this.record(directoryAddress, directory);
    this.restrictLegacy(directory);
    this.encrypted = this.encryption !== 'none';
    if ((directory & Pte.PS) !== 0 && (this.state.cr4Lo & Cr4.PSE) !== 0) {
      if ((directory & (1 << 21)) !== 0) return PageFault.PRESENT | PageFault.RESERVED;
      const base = ((directory & 0xffc00000) | (lo & 0x3ff000)) >>> 0;
      this.page = ((directory >>> 13) & 0xff) * TWO_32 + base;
      this.large = true;
      this.global = (directory & Pte.G) !== 0;
      return -1;
    }
    const entryAddress = ((directory & ~0xfff) >>> 0) + 4 * ((lo >>> 12) & 0x3ff);
    const entry = this.memory.load32(entryAddress, tables);
    if ((entry & Pte.P) === 0) return 0;
    this.record(entryAddress, entry);
    this.restrictLegacy(entry);
    this.page = (entry & ~0xfff) >>> 0;
    this.large = false;
    this.global = (entry & Pte.G) !== 0;
    return -1;
  }

  private restrictLegacy(entry: number): void {
    if ((entry & Pte.RW) === 0) this.allWritable = false;
    if ((entry & Pte.US) === 0) this.allUser = false;
  }

  private record(address: number, lo: number): void {
    this.entryAddress[this.entries] = address;
    this.entryLo[this.entries] = lo;
    this.entries++;
  }

  private setAccessed(write: boolean, wide: boolean): void {
    const pointerTable = wide && (this.state.eferLo & Efer.LMA) === 0 ? 1 : 0;
    for (let i = pointerTable; i < this.entries; i++) {
      const wanted = Pte.A | (write && i === this.entries - 1 ? Pte.D : 0);
      const entry = this.entryLo[i];
      if ((entry & wanted) !== wanted) {
        this.memory.store32(this.entryAddress[i], this.tablesEncrypted(), entry | wanted);
      }
    }
  }

  /** Accesses to page tables are always private: APM volume 2, 15.34.5; TDX module specification, private paging. */
  private tablesEncrypted(): boolean {
    return this.encryption !== 'none';
  }

  /** Bits 51:12 of an entry (or any address in two halves) as a number. */
  private addressOf(lo: number, hi: number): number {
    return (hi & 0xfffff) * TWO_32 + (lo >>> 0);
  }

  private withoutEncryption(address: number): number {
    if (this.encryptionBitHi === 0) return address;
    return (Math.floor(address / TWO_32) & ~this.encryptionBitHi) * TWO_32 + (address % TWO_32);
  }
}

/** Index into the table of a level (1: page table, 2: directory, ...). */
function indexAt(level: number, lo: number, hi: number): number {
  if (level === 1) return (lo >>> 12) & 0x1ff;
  if (level === 2) return (lo >>> 21) & 0x1ff;
  if (level === 3) return ((lo >>> 30) | (hi << 2)) & 0x1ff;
  return (hi >>> (level === 4 ? 7 : 16)) & 0x1ff;
}
