import { type Asid, asid, type Gpa, gpa, PAGE_SIZE, type Pfn, pfn } from '../units.js';

/** The reverse map table of SEV-SNP: who owns each page of system memory (sev-firmware.md 1.6, 4.6; APM volume 2, 15.36). */

export type PageSize = '4k' | '2m';

/** Pages of 4 KiB in one of 2 MiB. */
export const PAGES_PER_2M = 512;

export const pagesIn = (size: PageSize): number => (size === '2m' ? PAGES_PER_2M : 1);

/** VMPL permission bits of an entry. */
export const VMPL_PERMISSION = { READ: 1, WRITE: 2, USER_EXECUTE: 4, SUPERVISOR_EXECUTE: 8 } as const;
const ALL_PERMISSIONS = 0xf;
export const VMPL_COUNT = 4;

export interface RmpEntry {
  readonly assigned: boolean;
  readonly validated: boolean;
  /** 0: the firmware, if assigned. */
  readonly asid: Asid;
  readonly immutable: boolean;
  readonly gpa: Gpa;
  readonly vmsa: boolean;
  readonly size: PageSize;
  /** Permissions of VMPL 0 to 3. */
  readonly permissions: readonly number[];
}

/** What the combination of an entry's fields means. */
export type PageState =
  | 'hypervisor'
  | 'hv-fixed'
  | 'reclaim'
  | 'firmware'
  | 'context'
  | 'metadata'
  | 'pre-guest'
  | 'pre-swap'
  | 'guest-invalid'
  | 'guest-valid';

/** Return codes of RMPUPDATE, PSMASH, PVALIDATE and RMPADJUST. */
export const RMP_RESULT = {
  OK: 0,
  FAIL_INPUT: 1,
  FAIL_PERMISSION: 2,
  FAIL_INUSE: 3,
  FAIL_OVERLAP: 4,
  FAIL_SIZEMISMATCH: 6,
} as const;
export type RmpResult = (typeof RMP_RESULT)[keyof typeof RMP_RESULT];

/** Operand of RMPUPDATE. */
export interface RmpUpdate {
  readonly assigned: boolean;
  readonly size: PageSize;
  readonly immutable: boolean;
  readonly asid: Asid;
  readonly gpa: Gpa;
}

/** Why an access to a page faults: #PF with the RMP bit for the host, #NPF for a guest's access, #VC where the guest must validate. */
export type RmpFault = 'not-assigned' | 'assigned' | 'asid' | 'gpa' | 'not-validated' | 'size' | 'vmpl' | 'immutable' | 'vmsa';

/** A guest's access by a private address. */
export interface GuestAccess {
  readonly asid: Asid;
  readonly gpa: Gpa;
  /** Size of the mapping in the nested page table. */
  readonly size: PageSize;
  readonly vmpl: number;
  /** `VMPL_PERMISSION` bits that the access needs. */
  readonly permissions: number;
}

const NO_PERMISSIONS: readonly number[] = [0, 0, 0, 0];
const HYPERVISOR: RmpEntry = {
  assigned: false,
  validated: false,
  asid: asid(0),
  immutable: false,
  gpa: gpa(0),
  vmsa: false,
  size: '4k',
  permissions: NO_PERMISSIONS,
};

const FIRMWARE: RmpEntry = { ...HYPERVISOR, assigned: true, immutable: true };

/** What the firmware sets when it takes a page from one state to another. */
const ENTRY_OF: Readonly<Record<'hypervisor' | 'reclaim' | 'firmware' | 'context', RmpEntry>> = {
  hypervisor: HYPERVISOR,
  reclaim: { ...HYPERVISOR, assigned: true },
  firmware: FIRMWARE,
  context: { ...FIRMWARE, vmsa: true },
};

const headOf = (page: Pfn): Pfn => pfn(page - (page % PAGES_PER_2M));

/** Pages by their numbers, `end` excluded. */
export interface PageRange {
  readonly first: number;
  readonly end: number;
}

/** Before SNP_INIT the table is not consulted: `isActive` is false and every check passes. */
export class Rmp {
  isActive = false;
  /** Entries that are not those of a hypervisor page; a 2 MiB entry stands at its first page and covers all 512. */
  private readonly entries = new Map<Pfn, RmpEntry>();
  private fixed: readonly PageRange[] = [];

  /** SNP_INIT: an empty table, and pages that must stay the hypervisor's until the next reset. */
  initialise(hypervisorFixed: readonly PageRange[]): void {
    this.entries.clear();
    this.fixed = hypervisorFixed;
    this.isActive = true;
  }

  /** SNP_SHUTDOWN with the x86 part: the table is no longer consulted. */
  deactivate(): void {
    this.isActive = false;
    this.entries.clear();
    this.fixed = [];
  }

  /** The entry that covers a page; `gpa` is that of the page itself also inside a 2 MiB entry. */
  entry(page: Pfn): RmpEntry {
    const head = this.entries.get(headOf(page));
    if (head?.size === '2m') return { ...head, gpa: gpa(head.gpa + (page % PAGES_PER_2M) * PAGE_SIZE) };
    return this.entries.get(page) ?? HYPERVISOR;
  }

  state(page: Pfn): PageState {
    if (this.isFixed(page)) return 'hv-fixed';
    const { assigned, validated, asid: owner, immutable, gpa: guest, vmsa } = this.entry(page);
    if (!assigned) return 'hypervisor';
    if (owner !== 0) {
      if (immutable) return validated ? 'pre-swap' : 'pre-guest';
      return validated ? 'guest-valid' : 'guest-invalid';
    }
    if (!immutable) return 'reclaim';
    if (vmsa) return 'context';
    return guest === 0 ? 'firmware' : 'metadata';
  }

  /** Pages in a state, in no particular order; hypervisor pages are not listed. */
  pages(): IterableIterator<Pfn> {
    return this.entries.keys();
  }

  /** RMPUPDATE by the host. Any change takes the guest's validation away. */
  rmpupdate(page: Pfn, update: RmpUpdate): RmpResult {
    if (update.size === '2m' && page % PAGES_PER_2M !== 0) return RMP_RESULT.FAIL_INPUT;
    if (update.gpa % (pagesIn(update.size) * PAGE_SIZE) !== 0) return RMP_RESULT.FAIL_INPUT;
    if (!update.assigned && (update.asid !== 0 || update.immutable)) return RMP_RESULT.FAIL_INPUT;
    if (this.overlaps(page, update.size)) return RMP_RESULT.FAIL_OVERLAP;
    if (this.anyIn(page, update.size, (each) => this.isFixed(each) || this.entry(each).immutable))
      return RMP_RESULT.FAIL_PERMISSION;
    const old = this.entry(page);
    // Making a validated page immutable without another change is how the host prepares it for a swap or a move.
    const sameOwner = old.assigned && old.asid === update.asid && old.gpa === update.gpa && old.size === update.size;
    this.put(page, {
      assigned: update.assigned,
      validated: update.assigned && update.immutable && sameOwner && old.validated,
      asid: update.asid,
      immutable: update.immutable,
      gpa: update.gpa,
      vmsa: sameOwner && old.vmsa,
      size: update.size,
      permissions: sameOwner ? old.permissions : [ALL_PERMISSIONS, 0, 0, 0],
    });
    return RMP_RESULT.OK;
  }

  /** PSMASH by the host: a 2 MiB entry becomes 512 of 4 KiB with the same owner and permissions. */
  psmash(page: Pfn): RmpResult {
    const head = this.entries.get(page);
    if (page % PAGES_PER_2M !== 0 || head?.size !== '2m') return RMP_RESULT.FAIL_INPUT;
    if (head.immutable) return RMP_RESULT.FAIL_PERMISSION;
    for (let index = 0; index < PAGES_PER_2M; index++) {
      this.entries.set(pfn(page + index), { ...head, size: '4k', gpa: gpa(head.gpa + index * PAGE_SIZE) });
    }
    return RMP_RESULT.OK;
  }

  /** SNP_PAGE_UNSMASH: 512 alike 4 KiB entries with contiguous guest addresses become one of 2 MiB; false if they are not alike. */
  unsmash(page: Pfn): boolean {
    const first = this.entries.get(page);
    if (page % PAGES_PER_2M !== 0 || first === undefined || first.size !== '4k' || first.gpa % (PAGES_PER_2M * PAGE_SIZE) !== 0)
      return false;
    for (let index = 0; index < PAGES_PER_2M; index++) {
      const each = this.entries.get(pfn(page + index));
      if (each === undefined || each.gpa !== first.gpa + index * PAGE_SIZE || !isAlike(each, first)) return false;
    }
    this.put(page, { ...first, size: '2m' });
    return true;
  }

  /** PVALIDATE by a guest at VMPL 0 on the page that backs `address`; `changed` is the inverse of the carry flag. */
  pvalidate(
    page: Pfn,
    owner: Asid,
    address: Gpa,
    size: PageSize,
    validated: boolean,
  ): { readonly result: RmpResult; readonly changed: boolean } {
    const found = this.entries.get(this.homeOf(page));
    if (found === undefined || !found.assigned || found.asid !== owner || found.immutable)
      return { result: RMP_RESULT.FAIL_INPUT, changed: false };
    if (found.size !== size) return { result: RMP_RESULT.FAIL_SIZEMISMATCH, changed: false };
    if (found.gpa !== address) return { result: RMP_RESULT.FAIL_INPUT, changed: false };
    if (found.validated === validated) return { result: RMP_RESULT.OK, changed: false };
    this.put(this.homeOf(page), { ...found, validated });
    return { result: RMP_RESULT.OK, changed: true };
  }

  /** RMPADJUST by a guest at `vmpl`: permissions of a less privileged VMPL, and whether the page is a save area. */
  rmpadjust(page: Pfn, owner: Asid, vmpl: number, target: number, permissions: number, vmsa: boolean): RmpResult {
    const found = this.entries.get(this.homeOf(page));
    if (found === undefined || !found.assigned || found.asid !== owner || !found.validated) return RMP_RESULT.FAIL_INPUT;
    if (target >= VMPL_COUNT) return RMP_RESULT.FAIL_INPUT;
    if (target <= vmpl) return RMP_RESULT.FAIL_PERMISSION;
    if ((permissions & ~(found.permissions[vmpl] ?? 0)) !== 0) return RMP_RESULT.FAIL_PERMISSION;
    const changed = found.permissions.map((old, index) => (index === target ? permissions : old));
    this.put(this.homeOf(page), { ...found, permissions: changed, vmsa });
    return RMP_RESULT.OK;
  }

  /** Why the host may not write a page, or null. Reading is always allowed and gives ciphertext. */
  checkHostWrite(page: Pfn): RmpFault | null {
    return this.isActive && this.entry(page).assigned ? 'assigned' : null;
  }

  /** Why a guest may not access a page by a shared address, or null. */
  checkSharedAccess(page: Pfn): RmpFault | null {
    return this.checkHostWrite(page);
  }

  /** Why a guest may not access a page by a private address, or null. `not-validated` is the guest's own #VC, the others are #NPF. */
  checkPrivateAccess(page: Pfn, access: GuestAccess): RmpFault | null {
    if (!this.isActive) return null;
    const found = this.entry(page);
    if (!found.assigned) return 'not-assigned';
    if (found.asid !== access.asid) return 'asid';
    if (found.immutable) return 'immutable';
    if (found.gpa !== access.gpa - (access.gpa % PAGE_SIZE)) return 'gpa';
    if (found.size === '4k' && access.size === '2m') return 'size';
    if (!found.validated) return 'not-validated';
    if (found.vmsa && (access.permissions & VMPL_PERMISSION.WRITE) !== 0) return 'vmsa';
    return (access.permissions & ~(found.permissions[access.vmpl] ?? 0)) === 0 ? null : 'vmpl';
  }

  /** Why VMRUN may not use a page as a save area of a guest, or null. */
  checkVmsa(page: Pfn, owner: Asid): RmpFault | null {
    if (!this.isActive) return null;
    const found = this.entry(page);
    if (!found.assigned) return 'not-assigned';
    if (found.asid !== owner) return 'asid';
    return found.vmsa && found.validated ? null : 'vmsa';
  }

  /** The firmware takes a page to a state that is nobody's. */
  setState(page: Pfn, state: 'hypervisor' | 'reclaim' | 'firmware' | 'context'): void {
    const size = this.entry(page).size;
    this.put(page, { ...ENTRY_OF[state], size });
  }

  /** The firmware changes fields of an entry, for example when it launches a page. */
  change(page: Pfn, fields: Partial<RmpEntry>): void {
    const home = this.homeOf(page);
    this.put(home, { ...(this.entries.get(home) ?? HYPERVISOR), ...fields });
  }

  private isFixed(page: Pfn): boolean {
    for (const { first, end } of this.fixed) if (page >= first && page < end) return true;
    return false;
  }

  private homeOf(page: Pfn): Pfn {
    const head = headOf(page);
    return this.entries.get(head)?.size === '2m' ? head : page;
  }

  /** Whether an entry of the other size is in the way. */
  private overlaps(page: Pfn, size: PageSize): boolean {
    if (size === '4k') return this.entries.get(headOf(page))?.size === '2m';
    if (this.entries.get(page)?.size === '2m') return false;
    return this.anyIn(page, size, (each) => this.entries.get(each)?.assigned === true);
  }

  private anyIn(page: Pfn, size: PageSize, test: (page: Pfn) => boolean): boolean {
    if (this.entries.get(page)?.size === '2m') return test(page);
    for (let index = 0; index < pagesIn(size); index++) if (test(pfn(page + index))) return true;
    return false;
  }

  private put(page: Pfn, entry: RmpEntry): void {
    if (entry.size === '2m') for (let index = 1; index < PAGES_PER_2M; index++) this.entries.delete(pfn(page + index));
    if (entry.assigned) this.entries.set(page, entry);
    else this.entries.delete(page);
  }
}

function isAlike(a: RmpEntry, b: RmpEntry): boolean {
  if (a.size !== b.size || a.assigned !== b.assigned || a.validated !== b.validated || a.asid !== b.asid) return false;
  return a.immutable === b.immutable && a.vmsa === b.vmsa && a.permissions.every((each, index) => each === b.permissions[index]);
}
