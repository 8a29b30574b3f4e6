import type { Frame } from '../dram.js';
import { type Gpa, gpa } from '../units.js';
import { GuestPhysicalMemory, type PhysicalAccess } from './guest-physical.js';
import { PageWalker, TRANSLATED } from './paging.js';
import { Vector } from './registers.js';
import type { CpuState } from './state.js';
import { Tlb, type TlbEntry } from './tlb.js';
import { DataPending, ExitTrap, GuestFault } from './traps.js';
import {
  type CpuFeatures,
  type EmulationBus,
  type MemoryAccess,
  type PhysicalMemory,
  SvmExitCode,
  type Translation,
} from './types.js';

const TWO_32 = 0x1_0000_0000;
const OFFSET = 0xfff;

/** What PVALIDATE and RMPADJUST work on. */
interface ReverseMappedPage {
  readonly page: Gpa;
  readonly frame: Frame;
  /** The guest maps it with the C-bit. */
  readonly encrypted: boolean;
}

/**
 * Memory as instructions see it: linear addresses, in two int32 halves. A load of 64 bits returns the low half and
 * leaves the high one in `dataHi`; code that computes an address leaves its high half in `hi`.
 *
 * The fast path of each access is a TLB hit inside one page; everything else (misses, page crossings, MMIO during
 * emulation) goes through `copyIn` and `copyOut`.
 */
export class LinearMemory {
  /** High half of the address that an operand's address function has just returned. */
  hi = 0;
  /** High half of the last 64-bit load. */
  dataHi = 0;

  readonly physical: GuestPhysicalMemory;
  readonly walker: PageWalker;
  /** Set while `Cpu.emulate` runs one instruction. */
  bus: EmulationBus | null = null;
  /** MMIO gives the guest #VC instead of an exit. */
  mmioRaisesVc = false;

  /** CPL 3. Change it through `setUser`. */
  private user = false;
  private readonly tlbs = {
    supervisor: { read: new Tlb(), write: new Tlb(), execute: new Tlb() },
    user: { read: new Tlb(), write: new Tlb(), execute: new Tlb() },
  };
  private readonly allTlbs = [...Object.values(this.tlbs.supervisor), ...Object.values(this.tlbs.user)];
  private readTlb = this.tlbs.supervisor.read;
  private writeTlb = this.tlbs.supervisor.write;
  private mmioAddress = 0;

  private readonly scratchBytes = new Uint8Array(16);
  private readonly scratch = new DataView(this.scratchBytes.buffer);

  /** @param onCodeWrite called when a write has hit a page with decoded instructions */
  constructor(
    private readonly state: CpuState,
    nested: PhysicalMemory,
    features: () => CpuFeatures,
    private readonly onCodeWrite: () => void,
  ) {
    this.physical = new GuestPhysicalMemory(nested, onCodeWrite);
    this.walker = new PageWalker(state, this.physical, features);
  }

  setUser(user: boolean): void {
    this.user = user;
    this.physical.user = user;
    const tlbs = user ? this.tlbs.user : this.tlbs.supervisor;
    this.readTlb = tlbs.read;
    this.writeTlb = tlbs.write;
  }

  // ---- loads -------------------------------------------------------------------------------------------------

  load8(lo: number, hi: number): number {
    const entry = this.readTlb.find(lo, hi);
    if (entry !== null) return entry.view.getUint8(lo & OFFSET);
    this.copyIn(lo, hi, 1, this.scratchBytes, 0, false);
    return this.scratch.getUint8(0);
  }

  load16(lo: number, hi: number): number {
    const entry = this.readTlb.find(lo, hi);
    if (entry !== null && (lo & OFFSET) <= 0xffe) return entry.view.getUint16(lo & OFFSET, true);
    this.copyIn(lo, hi, 2, this.scratchBytes, 0, false);
    return this.scratch.getUint16(0, true);
  }

  load32(lo: number, hi: number): number {
    const entry = this.readTlb.find(lo, hi);
    if (entry !== null && (lo & OFFSET) <= 0xffc) return entry.view.getInt32(lo & OFFSET, true);
    this.copyIn(lo, hi, 4, this.scratchBytes, 0, false);
    return this.scratch.getInt32(0, true);
  }

  load64(lo: number, hi: number): number {
    const entry = this.readTlb.find(lo, hi);
    if (entry !== null && (lo & OFFSET) <= 0xff8) {
      this.dataHi = entry.view.getInt32((lo & OFFSET) + 4, true);
      return entry.view.getInt32(lo & OFFSET, true);
    }
    this.copyIn(lo, hi, 8, this.scratchBytes, 0, false);
    this.dataHi = this.scratch.getInt32(4, true);
    return this.scratch.getInt32(0, true);
  }

  // ---- the load of a read-modify-write: faults as a write does -----------------------------------------------

  modify8(lo: number, hi: number): number {
    const entry = this.writeTlb.find(lo, hi);
    if (entry !== null) return entry.view.getUint8(lo & OFFSET);
    this.copyIn(lo, hi, 1, this.scratchBytes, 0, true);
    return this.scratch.getUint8(0);
  }

  modify16(lo: number, hi: number): number {
    const entry = this.writeTlb.find(lo, hi);
    if (entry !== null && (lo & OFFSET) <= 0xffe) return entry.view.getUint16(lo & OFFSET, true);
    this.copyIn(lo, hi, 2, this.scratchBytes, 0, true);
    return this.scratch.getUint16(0, true);
  }

  modify32(lo: number, hi: number): number {
    const entry = this.writeTlb.find(lo, hi);
    if (entry !== null && (lo & OFFSET) <= 0xffc) return entry.view.getInt32(lo & OFFSET, true);
    this.copyIn(lo, hi, 4, this.scratchBytes, 0, true);
    return this.scratch.getInt32(0, true);
  }

  modify64(lo: number, hi: number): number {
    const entry = this.writeTlb.find(lo, hi);
    if (entry !== null && (lo & OFFSET) <= 0xff8) {
      this.dataHi = entry.view.getInt32((lo & OFFSET) + 4, true);
      return entry.view.getInt32(lo & OFFSET, true);
    }
    this.copyIn(lo, hi, 8, this.scratchBytes, 0, true);
    this.dataHi = this.scratch.getInt32(4, true);
    return this.scratch.getInt32(0, true);
  }

  // ---- stores ------------------------------------------------------------------------------------------------

  store8(lo: number, hi: number, value: number): void {
    const entry = this.writeTlb.find(lo, hi);
    if (entry?.admitWrite() === true) {
      entry.view.setUint8(lo & OFFSET, value);
      return;
    }
    this.scratch.setUint8(0, value);
    this.copyOut(lo, hi, 1, this.scratchBytes, 0);
  }

  store16(lo: number, hi: number, value: number): void {
    const entry = this.writeTlb.find(lo, hi);
    if (entry !== null && (lo & OFFSET) <= 0xffe && entry.admitWrite()) {
      entry.view.setUint16(lo & OFFSET, value, true);
      return;
    }
    this.scratch.setUint16(0, value, true);
    this.copyOut(lo, hi, 2, this.scratchBytes, 0);
  }

  store32(lo: number, hi: number, value: number): void {
    const entry = this.writeTlb.find(lo, hi);
    if (entry !== null && (lo & OFFSET) <= 0xffc && entry.admitWrite()) {
      entry.view.setInt32(lo & OFFSET, value, true);
      return;
    }
    this.scratch.setInt32(0, value, true);
    this.copyOut(lo, hi, 4, this.scratchBytes, 0);
  }

  store64(lo: number, hi: number, valueLo: number, valueHi: number): void {
    const entry = this.writeTlb.find(lo, hi);
    if (entry !== null && (lo & OFFSET) <= 0xff8 && entry.admitWrite()) {
      entry.view.setInt32(lo & OFFSET, valueLo, true);
      entry.view.setInt32((lo & OFFSET) + 4, valueHi, true);
      return;
    }
    this.scratch.setInt32(0, valueLo, true);
    this.scratch.setInt32(4, valueHi, true);
    this.copyOut(lo, hi, 8, this.scratchBytes, 0);
  }

  // ---- any length --------------------------------------------------------------------------------------------

  /** @param modify the bytes will be written back: fault as a write does */
  copyIn(lo: number, hi: number, size: number, into: Uint8Array, at: number, modify: boolean, user = this.user): void {
    // `emulator_read_write`: both pages of an access are translated before a device is asked for a byte of it.
    if (this.bus !== null && (lo & OFFSET) + size > 4096) {
      this.forEachPage(lo, hi, size, (pageLo, pageHi) => {
        this.entryFor(pageLo, pageHi, modify ? 'write' : 'read', user);
      });
    }
    this.forEachPage(lo, hi, size, (pageLo, pageHi, count, done) => {
      const entry = this.entryFor(pageLo, pageHi, modify ? 'write' : 'read', user) ?? (modify ? this.readOnlyEntry() : null);
      const offset = pageLo & OFFSET;
      if (entry !== null) into.set(entry.bytes.subarray(offset, offset + count), at + done);
      else this.busRead(count, into, at + done);
    });
  }

  copyOut(lo: number, hi: number, size: number, from: Uint8Array, at: number, user = this.user): void {
    // Both pages of an access must be writable before a byte of it is written.
    if ((lo & OFFSET) + size > 4096) {
      this.forEachPage(lo, hi, size, (pageLo, pageHi) => {
        this.entryFor(pageLo, pageHi, 'write', user);
      });
    }
    this.forEachPage(lo, hi, size, (pageLo, pageHi, count, done) => {
      const entry = this.entryFor(pageLo, pageHi, 'write', user);
      const bytes = from.subarray(at + done, at + done + count);
      if (entry === null) this.busWrite(bytes);
      else this.writeFrame(entry, pageLo & OFFSET, bytes);
    });
  }

  /** Descriptor tables, task state segments and stacks of an inner ring are read with supervisor rights. */
  systemLoad32(lo: number, hi: number): number {
    this.copyIn(lo, hi, 4, this.scratchBytes, 0, false, false);
    return this.scratch.getInt32(0, true);
  }

  systemLoad64(lo: number, hi: number): number {
    this.copyIn(lo, hi, 8, this.scratchBytes, 0, false, false);
    this.dataHi = this.scratch.getInt32(4, true);
    return this.scratch.getInt32(0, true);
  }

  systemStore32(lo: number, hi: number, value: number): void {
    this.scratch.setInt32(0, value, true);
    this.copyOut(lo, hi, 4, this.scratchBytes, 0, false);
  }

  /** Checks that `size` bytes can be written, so that a sequence of stores cannot fault half way. */
  probeWrite(lo: number, hi: number, size: number): void {
    this.forEachPage(lo, hi, size, (pageLo, pageHi) => {
      this.entryFor(pageLo, pageHi, 'write', this.user);
    });
  }

  /** The page instructions are fetched from. */
  fetchPage(lo: number, hi: number): TlbEntry {
    const entry = this.entryFor(lo, hi, 'execute', this.user);
    if (entry === null) throw new Error('an instruction fetch went to the emulation bus');
    return entry;
  }

  private forEachPage(
    lo: number,
    hi: number,
    size: number,
    visit: (lo: number, hi: number, count: number, done: number) => void,
  ): void {
    let done = 0;
    while (done < size) {
      const pageLo = (lo + done) | 0;
      const count = Math.min(size - done, 4096 - (pageLo & OFFSET));
      visit(pageLo, this.highAfter(lo, hi, done), count, done);
      done += count;
    }
  }

  /**
   * High half of an address plus a small number. Outside 64-bit mode what instructions access wraps at 4 GiB; the tables of
   * long mode may lie above.
   */
  private highAfter(lo: number, hi: number, add: number): number {
    if ((lo >>> 0) + add < TWO_32) return hi;
    return hi === 0 && !this.state.code64 ? 0 : (hi + 1) | 0;
  }

  private writeFrame(entry: TlbEntry, offset: number, bytes: Uint8Array): void {
    if (entry.frame.codeCached) this.onCodeWrite();
    entry.frame.viewForWrite(entry.key).set(bytes, offset);
  }

  // ---- translation -------------------------------------------------------------------------------------------

  /** The TLB entry for an address, made if need be. Null: the access is MMIO, at `mmioAddress`, and goes to the bus. */
  private entryFor(lo: number, hi: number, access: MemoryAccess, user: boolean): TlbEntry | null {
    const tlb = (user ? this.tlbs.user : this.tlbs.supervisor)[access];
    const cached = tlb.find(lo, hi);
    if (cached !== null) return cached;
    this.checkCanonical(lo, hi);
    const { walker } = this;
    const error = walker.walk(lo, hi, access === 'write', user, access === 'execute', true);
    if (error !== TRANSLATED) throw this.pageFault(lo, hi, error);
    const encrypted = walker.encrypted || (access === 'execute' && walker.fetchesEncrypted);
    const address = walker.page + (lo & OFFSET);
    const made: PhysicalAccess = { address, access, encrypted, pageWalk: false, user };
    const mapping = this.physical.translate(address, access, encrypted);
    if (mapping.kind === 'nested-fault') {
      this.mmioAddress = address;
      if (mapping.mmio && access !== 'execute') {
        if (this.bus !== null) return null;
        if (this.mmioRaisesVc) throw new GuestFault(Vector.VC, SvmExitCode.NPF);
      }
      throw this.physical.nestedFault(made, mapping);
    }
    if (!this.physical.isValidated(mapping.frame, made)) throw this.notValidated(lo, hi);
    return tlb.insert(lo, hi, mapping, walker.global, walker.large);
  }

  /** A page that can be read but not written (ROM), for the load of an emulated read-modify-write. */
  private readOnlyEntry(): TlbEntry | null {
    const mapping = this.physical.translate(this.mmioAddress, 'read', this.walker.encrypted);
    return mapping.kind === 'mapped' ? Tlb.entry(mapping, false, false) : null;
  }

  /** #VC; the address is in CR2, as for a page fault [M]. */
  private notValidated(lo: number, hi: number): GuestFault {
    this.state.cr2Lo = lo;
    this.state.cr2Hi = hi;
    return new GuestFault(Vector.VC, SvmExitCode.PAGE_NOT_VALIDATED);
  }

  /** The page behind a linear address, whatever its entry of the reverse map says: PVALIDATE and RMPADJUST change that. */
  reverseMappedPage(lo: number, hi: number): ReverseMappedPage {
    this.checkCanonical(lo, hi);
    const { walker } = this;
    const error = walker.walk(lo, hi, false, this.user, false, true);
    if (error !== TRANSLATED) throw this.pageFault(lo, hi, error);
    const { page, encrypted } = walker;
    const mapping = this.physical.translate(page, 'read', encrypted);
    if (mapping.kind === 'nested-fault') {
      const made: PhysicalAccess = { address: page, access: 'read', encrypted, pageWalk: false, user: this.user };
      throw this.physical.nestedFault(made, mapping);
    }
    return { page: gpa(page), frame: mapping.frame, encrypted };
  }

  private pageFault(lo: number, hi: number, error: number): GuestFault {
    this.state.cr2Lo = lo;
    this.state.cr2Hi = hi;
    return new GuestFault(Vector.PF, error);
  }

  private checkCanonical(lo: number, hi: number): void {
    if (!this.isCanonical(lo, hi)) throw new GuestFault(Vector.GP, 0, true);
  }

  isCanonical(_lo: number, hi: number): boolean {
    if (!this.state.longMode) return true;
    const sign = this.state.fiveLevelPaging ? hi >> 24 : hi >> 15;
    return sign === 0 || sign === -1;
  }

  /** KVM_TRANSLATE: a walk that changes nothing. Null: no translation. */
  translate(lo: number, hi: number): Translation | null {
    const { walker } = this;
    if (!this.isCanonical(lo, hi)) return null;
    try {
      if (walker.walk(lo, hi, false, false, false, false) !== TRANSLATED) return null;
    } catch (trap) {
      if (trap instanceof ExitTrap) return null;
      throw trap;
    }
    return { gpa: gpa(walker.page + (lo & OFFSET)), writable: walker.writable, user: walker.user };
  }

  // ---- emulation ---------------------------------------------------------------------------------------------

  private busRead(count: number, into: Uint8Array, at: number): void {
    if (this.bus === null) throw new Error('MMIO load without a bus');
    const address = this.mmioAddress;
    for (let done = 0; done < count; done += 8) {
      const data = this.bus.readMmio(gpa(address + done), Math.min(8, count - done));
      if (data === null) throw new DataPending();
      into.set(data, at + done);
    }
  }

  private busWrite(bytes: Uint8Array): void {
    if (this.bus === null) throw new Error('MMIO store without a bus');
    const address = this.mmioAddress;
    for (let done = 0; done < bytes.length; done += 8) {
      this.bus.writeMmio(gpa(address + done), bytes.slice(done, done + 8));
    }
  }

  // ---- TLB maintenance ---------------------------------------------------------------------------------------

  /** Forgets everything, nested translations included. */
  flushTlb(): void {
    this.physical.flush();
    this.flushLinear();
  }

  /** MOV CR0, CR4, or CR3 without global pages. */
  flushLinear(): void {
    for (const tlb of this.allTlbs) tlb.flush();
  }

  /** MOV CR3 with CR4.PGE. */
  flushNonGlobal(): void {
    for (const tlb of this.allTlbs) tlb.flushNonGlobal();
  }

  /** INVLPG. */
  invalidatePage(lo: number, hi: number): void {
    for (const tlb of this.allTlbs) tlb.invalidate(lo, hi);
  }

  /** RFLAGS.AC has changed under SMAP. */
  flushSupervisorData(): void {
    this.tlbs.supervisor.read.flush();
    this.tlbs.supervisor.write.flush();
  }
}
