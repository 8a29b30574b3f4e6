import type { Frame, MemoryKey } from '../dram.js';
import { gpa } from '../units.js';
import { Vector } from './registers.js';
import { ExitTrap, GuestFault } from './traps.js';
import {
  type EventInfo,
  type MappedPage,
  type MemoryAccess,
  type NestedFault,
  type PhysicalMemory,
  type ReverseMap,
  SvmExitCode,
} from './types.js';

const PAGE = 4096;
/** Pages of the guest's page tables whose nested translation is kept. */
const TABLE_PAGES = 256;

/** The nested page tables had nothing against an access; the reverse map has. */
const REVERSE_MAP_FAULT: NestedFault = { kind: 'nested-fault', mmio: false };

/** An access to guest-physical memory, as the exit of a nested page fault tells it. */
export interface PhysicalAccess {
  readonly address: number;
  readonly access: MemoryAccess;
  readonly encrypted: boolean;
  /** The guest's own page walk makes it. */
  readonly pageWalk: boolean;
  /** At CPL 3. */
  readonly user: boolean;
}

/** A page of the guest's page tables. */
interface TablePage {
  readonly frame: Frame;
  readonly key: MemoryKey | null;
  readonly writable: boolean;
}

/**
 * Guest-physical memory: what the nested page tables show of it and the reverse map allows. The guest's page walk reads its
 * tables here; everything else comes from a linear address.
 */
export class GuestPhysicalMemory {
  /** Null on a host without SEV-SNP. */
  reverseMap: ReverseMap | null = null;
  /** The event that is being delivered, for the exit of a fault inside. */
  delivering: EventInfo | null = null;
  /** CPL 3, for the exit of a fault in a page walk. */
  user = false;
  /** High half of the last 64-bit load. */
  dataHi = 0;
  private readonly tables = new Map<number, TablePage>();

  /** @param onCodeWrite called when a write has hit a page with decoded instructions */
  constructor(
    private readonly nested: PhysicalMemory,
    private readonly onCodeWrite: () => void,
  ) {}

  /** What the nested page tables have for an access, before the reverse map is asked. */
  translate(address: number, access: MemoryAccess, encrypted: boolean): MappedPage | NestedFault {
    return this.nested.map(gpa(address), access, encrypted);
  }

  /**
   * Asks the reverse map. False: the guest has not validated the page, which is #VC. Throws the exit if the page is none for it.
   */
  isValidated(frame: Frame, made: PhysicalAccess): boolean {
    if (this.reverseMap === null) return true;
    const { address, access, encrypted, user } = made;
    const verdict = this.reverseMap.check(frame, gpa(address - (address % PAGE)), access, encrypted, user);
    if (verdict === 'fault') throw this.nestedFault(made, REVERSE_MAP_FAULT);
    return verdict === 'allowed';
  }

  nestedFault({ address, access, encrypted, pageWalk, user }: PhysicalAccess, fault: NestedFault): ExitTrap {
    const { delivering } = this;
    const rmp = fault === REVERSE_MAP_FAULT;
    return new ExitTrap({ kind: 'nested-fault', gpa: gpa(address), access, encrypted, pageWalk, user, rmp, fault, delivering });
  }

  // ---- the page walk -----------------------------------------------------------------------------------------

  load32(address: number, encrypted: boolean): number {
    const { frame, key } = this.tablePage(address, encrypted, 'read');
    const bytes = frame.view(key);
    const offset = address % PAGE;
    return bytes[offset] | (bytes[offset + 1] << 8) | (bytes[offset + 2] << 16) | (bytes[offset + 3] << 24);
  }

  load64(address: number, encrypted: boolean): number {
    this.dataHi = this.load32(address + 4, encrypted);
    return this.load32(address, encrypted);
  }

  store32(address: number, encrypted: boolean, value: number): void {
    const { frame, key } = this.tablePage(address, encrypted, 'write');
    if (frame.codeCached) this.onCodeWrite();
    const bytes = frame.viewForWrite(key);
    const offset = address % PAGE;
    for (let i = 0; i < 4; i++) bytes[offset + i] = value >>> (8 * i);
  }

  /** Nested translations have changed, or what the reverse map says of them. */
  flush(): void {
    this.tables.clear();
  }

  private tablePage(address: number, encrypted: boolean, access: 'read' | 'write'): TablePage {
    const page = Math.floor(address / PAGE);
    const cached = this.tables.get(page);
    if (cached !== undefined && (cached.writable || access === 'read')) return cached;
    const made: PhysicalAccess = { address, access, encrypted, pageWalk: true, user: this.user };
    const mapping = this.translate(address, access, encrypted);
    if (mapping.kind === 'nested-fault') throw this.nestedFault(made, mapping);
    const { frame, key, writable } = mapping;
    if (!this.isValidated(frame, made)) throw new GuestFault(Vector.VC, SvmExitCode.PAGE_NOT_VALIDATED);
    const fresh = { frame, key, writable };
    if (this.tables.size >= TABLE_PAGES) this.tables.clear();
    this.tables.set(page, fresh);
    return fresh;
  }
}
