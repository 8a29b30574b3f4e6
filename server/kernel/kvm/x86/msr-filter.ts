import { Failure, failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import { KVM_MSR_FILTER, KVM_MSR_FILTER_DEFAULT, KVM_MSR_FILTER_MAX_BITMAP_SIZE } from '../../uapi/constants.js';
import type { StructValue } from '../../uapi/struct.js';
import { kvm_msr_filter, type kvm_msr_filter_range } from '../../uapi/x86-structs.js';
import { copyStruct } from '../copy-struct.js';
import type { Vm } from '../vm.js';
import { MSR } from './msr-index.js';

export interface MsrFilterRange {
  /** Bits of KVM_MSR_FILTER. */
  readonly flags: number;
  readonly base: number;
  readonly count: number;
  readonly bitmap: Uint8Array;
}

/** KVM_X86_SET_MSR_FILTER: which MSRs a guest may touch. */
export class MsrFilter {
  constructor(
    readonly defaultAllow: boolean,
    readonly ranges: readonly MsrFilterRange[],
  ) {}

  /** `kvm_msr_allowed`: the first range that has the MSR and the access decides. x2APIC's are never filtered. */
  allows(index: number, access: (typeof KVM_MSR_FILTER)[keyof typeof KVM_MSR_FILTER]): boolean {
    if (index >= MSR.X2APIC_FIRST && index <= MSR.X2APIC_LAST) return true;
    for (const { flags, base, count, bitmap } of this.ranges) {
      if (index < base || index >= base + count || (flags & access) === 0) continue;
      const bit = index - base;
      return (((bitmap[bit >>> 3] ?? 0) >>> (bit & 7)) & 1) === 1;
    }
    return this.defaultAllow;
  }
}

const refuse = (reason: string, field: string, given: number): Failure =>
  new Failure('EINVAL', reason, 'kvm_vm_ioctl_set_msr_filter', { field, given: String(given) });

/** `kvm_add_msr_filter`. Null: a range without MSRs, which is passed over. */
const decodeRange = (arg: IoctlArg, range: StructValue<typeof kvm_msr_filter_range>): Result<MsrFilterRange> | null => {
  if (range.nmsrs === 0) return null;
  const known = KVM_MSR_FILTER.READ | KVM_MSR_FILTER.WRITE;
  if ((range.flags & ~known) !== 0 || range.flags === 0) return refuse('MSR_FILTER_RANGE_FLAGS', 'ranges.flags', range.flags);
  const bytes = Math.ceil(range.nmsrs / 64) * 8;
  if (bytes > KVM_MSR_FILTER_MAX_BITMAP_SIZE) return refuse('MSR_FILTER_RANGE_SIZE', 'ranges.nmsrs', range.nmsrs);
  const bitmap = arg.user.copyIn(range.bitmap, bytes);
  return failed(bitmap) ? bitmap : { flags: range.flags, base: range.base, count: range.nmsrs, bitmap };
};

/** KVM_X86_SET_MSR_FILTER. EFAULT; EINVAL: unknown flags, or everything denied and nothing allowed. */
export const setMsrFilter = (vm: Vm, arg: IoctlArg): Result<number> => {
  const filter = copyStruct(arg, kvm_msr_filter);
  if (failed(filter)) return filter;
  if ((filter.flags & ~KVM_MSR_FILTER_DEFAULT.DENY) !== 0) return refuse('MSR_FILTER_FLAGS', 'flags', filter.flags);
  const defaultAllow = (filter.flags & KVM_MSR_FILTER_DEFAULT.DENY) === 0;
  if (!defaultAllow && filter.ranges.every(({ nmsrs }) => nmsrs === 0)) return refuse('MSR_FILTER_EMPTY', 'ranges', 0);
  const ranges: MsrFilterRange[] = [];
  for (const given of filter.ranges) {
    const range = decodeRange(arg, given);
    if (failed(range)) return range;
    if (range !== null) ranges.push(range);
  }
  vm.arch.msrFilter = new MsrFilter(defaultAllow, ranges);
  return 0;
};
