import type { MemoryAccess, ReverseMap, ReverseMapVerdict } from '../cpu/types.js';
import type { Frame } from '../dram.js';
import type { Asid, Gpa } from '../units.js';
import { type PageSize, RMP_RESULT, type Rmp, type RmpFault, type RmpResult, VMPL_PERMISSION } from './rmp.js';

/** What the check depends on: fields of the VMCB and of the save area, as VMRUN found them. */
export interface ReverseMapControl {
  /** SEV_FEATURES bit 0 of the save area. */
  readonly snpEnabled: boolean;
  readonly asid: Asid;
  /** The privilege level at which the guest runs. */
  readonly vmpl: number;
}

const pageSize = (large: boolean): PageSize => (large ? '2m' : '4k');

const permissionFor = (access: MemoryAccess, user: boolean): number => {
  if (access === 'read') return VMPL_PERMISSION.READ;
  if (access === 'write') return VMPL_PERMISSION.WRITE;
  return user ? VMPL_PERMISSION.USER_EXECUTE : VMPL_PERMISSION.SUPERVISOR_EXECUTE;
};

const verdictOf = (fault: RmpFault | null): ReverseMapVerdict => {
  if (fault === null) return 'allowed';
  return fault === 'not-validated' ? 'not-validated' : 'fault';
};

/**
 * The reverse map table from the guest's side (APM volume 2, 15.36.10). A guest that is no SNP guest reads what it likes,
 * as the host does, and writes to no assigned page. Nested page tables map pages of 4 KiB only.
 */
export class GuestReverseMap implements ReverseMap {
  constructor(
    private readonly rmp: Rmp,
    private readonly control: ReverseMapControl,
  ) {}

  get snp(): boolean {
    return this.control.snpEnabled;
  }

  check({ pfn }: Frame, page: Gpa, access: MemoryAccess, encrypted: boolean, user: boolean): ReverseMapVerdict {
    const { snpEnabled, asid, vmpl } = this.control;
    if (!snpEnabled) return access === 'write' ? verdictOf(this.rmp.checkHostWrite(pfn)) : 'allowed';
    if (!encrypted) return verdictOf(this.rmp.checkSharedAccess(pfn));
    const permissions = permissionFor(access, user);
    return verdictOf(this.rmp.checkPrivateAccess(pfn, { asid, gpa: page, size: '4k', vmpl, permissions }));
  }

  pvalidate({ pfn }: Frame, page: Gpa, large: boolean, validate: boolean): { result: RmpResult; changed: boolean } {
    return this.rmp.pvalidate(pfn, this.control.asid, page, pageSize(large), validate);
  }

  rmpadjust({ pfn }: Frame, large: boolean, attributes: number): RmpResult {
    const { asid, vmpl } = this.control;
    const target = attributes & 0xff;
    const permissions = (attributes >>> 8) & 0xff;
    const vmsa = ((attributes >>> 16) & 1) === 1;
    if (this.rmp.entry(pfn).size !== pageSize(large)) return RMP_RESULT.FAIL_SIZEMISMATCH;
    return this.rmp.rmpadjust(pfn, asid, vmpl, target, permissions, vmsa);
  }
}
