import { Cr0, Cr4, Efer } from '../../../hardware/cpu/registers.js';
import type { CpuState } from '../../../hardware/cpu/state.js';
import type { Segment, SegmentName } from '../../../hardware/cpu/types.js';
import { Failure, failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import { KVM_MP_STATE, KVM_SREGS2_FLAGS } from '../../uapi/constants.js';
import type { StructValue } from '../../uapi/struct.js';
import { kvm_sregs, kvm_sregs2 } from '../../uapi/x86-structs.js';
import { copyStruct, copyStructOut } from '../copy-struct.js';
import { REQUEST, type Vcpu } from '../vcpu.js';
import { apicBase, setApicBase } from './apic-base-msr.js';
import { hostCr4Reserved } from './cpuid.js';
import { cr8, setCr8 } from './cr8.js';
import { refuseProtected } from './protected-state.js';

export type Sregs = StructValue<typeof kvm_sregs>;
type Sregs2 = StructValue<typeof kvm_sregs2>;
type CommonSregs = Omit<Sregs, 'interrupt_bitmap'>;

const SEGMENTS = ['cs', 'ds', 'es', 'fs', 'gs', 'ss', 'tr', 'ldt'] as const satisfies readonly SegmentName[];

const CR0_PG = BigInt(Cr0.PG >>> 0);
const CR0_PE = BigInt(Cr0.PE);
const CR0_NW = BigInt(Cr0.NW);
const CR0_CD = BigInt(Cr0.CD);
const CR4_PAE = BigInt(Cr4.PAE);
const EFER_LME = BigInt(Efer.LME);
const EFER_LMA = BigInt(Efer.LMA);
const HIGH = ~0xffff_ffffn;

const refuse = (reason: string, field: string, given: bigint, allowed: string): Failure =>
  new Failure('EINVAL', reason, 'kvm_is_valid_sregs', { field, given: `0x${given.toString(16)}`, allowed });

/** `kvm_is_valid_cr0`. */
const checkCr0 = (cr0: bigint): Failure | null => {
  if ((cr0 & HIGH) !== 0n) return refuse('CR0_INVALID', 'cr0', cr0, '32 bits');
  if ((cr0 & CR0_NW) !== 0n && (cr0 & CR0_CD) === 0n) return refuse('CR0_INVALID', 'cr0', cr0, 'NW only with CD');
  if ((cr0 & CR0_PG) !== 0n && (cr0 & CR0_PE) === 0n) return refuse('CR0_INVALID', 'cr0', cr0, 'PG only with PE');
  return null;
};

/** `kvm_is_valid_cr4`: what neither the host nor the guest's CPUID reserves. */
const checkCr4 = (vcpu: Vcpu, cr4: bigint): Failure | null => {
  const reserved = BigInt((hostCr4Reserved(vcpu.vm.kernel.config) | vcpu.arch.cpuid.cr4GuestReserved) >>> 0) | HIGH;
  return (cr4 & reserved) === 0n
    ? null
    : refuse('CR4_RESERVED', 'cr4', cr4, `no bit of 0x${(reserved & 0xffff_ffffn).toString(16)}`);
};

/** `kvm_is_valid_sregs`. */
const checkSregs = (vcpu: Vcpu, { cr0, cr3, cr4, efer, cs }: CommonSregs): Failure | null => {
  if ((efer & EFER_LME) !== 0n && (cr0 & CR0_PG) !== 0n) {
    if ((cr4 & CR4_PAE) === 0n) return refuse('LONG_MODE_WITHOUT_PAE', 'cr4', cr4, 'PAE');
    if ((efer & EFER_LMA) === 0n) return refuse('LONG_MODE_WITHOUT_LMA', 'efer', efer, 'LME and LMA');
    if ((cr3 & vcpu.arch.reservedGpaBits) !== 0n)
      return refuse('CR3_RESERVED', 'cr3', cr3, `no bit of 0x${vcpu.arch.reservedGpaBits.toString(16)}`);
  } else if ((efer & EFER_LMA) !== 0n) {
    return refuse('LMA_OUTSIDE_LONG_MODE', 'efer', efer, 'LMA only with LME and paging');
  } else if (cs.l !== 0) {
    return refuse('CS_L_OUTSIDE_LONG_MODE', 'cs.l', BigInt(cs.l), '0');
  }
  return checkCr4(vcpu, cr4) ?? checkCr0(cr0);
};

const NO_SEGMENT = {
  ...{ base: 0n, limit: 0, selector: 0, type: 0, present: 0, dpl: 0, db: 0, s: 0, l: 0, g: 0, avl: 0, unusable: 0 },
  padding: 0,
};
const NO_TABLE = { base: 0n, limit: 0 };

/** What is left of a vCPU whose state is protected: segments, tables, CR2 and CR3 are zero. */
const protectedSregs = (vcpu: Vcpu): CommonSregs => {
  const { state } = vcpu.arch;
  return {
    ...{ cs: NO_SEGMENT, ds: NO_SEGMENT, es: NO_SEGMENT, fs: NO_SEGMENT, gs: NO_SEGMENT },
    ...{ ss: NO_SEGMENT, tr: NO_SEGMENT, ldt: NO_SEGMENT, gdt: NO_TABLE, idt: NO_TABLE },
    ...{ cr0: state.cr0, cr2: 0n, cr3: 0n, cr4: state.cr4, efer: state.efer },
    cr8: cr8(vcpu),
    apic_base: apicBase(vcpu),
  };
};

/** `__get_sregs_common`. */
const commonSregs = (vcpu: Vcpu): CommonSregs => {
  if (vcpu.vm.kernel.ops.guestStateProtected(vcpu)) return protectedSregs(vcpu);
  const { state } = vcpu.arch;
  const segment = (name: SegmentName): Segment & { padding: number } => ({ ...state.segment(name), padding: 0 });
  return {
    ...{ cs: segment('cs'), ds: segment('ds'), es: segment('es'), fs: segment('fs'), gs: segment('gs') },
    ...{ ss: segment('ss'), tr: segment('tr'), ldt: segment('ldt') },
    ...{ gdt: state.table('gdt'), idt: state.table('idt') },
    ...{ cr0: state.cr0, cr2: state.cr2, cr3: state.cr3, cr4: state.cr4, efer: state.efer },
    cr8: cr8(vcpu),
    apic_base: apicBase(vcpu),
  };
};

/** `__get_sregs`: an external interrupt that is injected but not delivered yet has its bit set. */
export const readSregs = (vcpu: Vcpu): Sregs => {
  const bitmap = [0n, 0n, 0n, 0n];
  const { interrupt } = vcpu.arch.events;
  const shown = !vcpu.vm.kernel.ops.guestStateProtected(vcpu);
  if (shown && interrupt.injected && !interrupt.soft) bitmap[interrupt.vector >> 6] = 1n << BigInt(interrupt.vector & 63);
  return { ...commonSregs(vcpu), interrupt_bitmap: bitmap };
};

/** KVM_GET_SREGS. */
export const getSregs = (vcpu: Vcpu, arg: IoctlArg): Result<number> =>
  refuseProtected(vcpu, 'kvm_arch_vcpu_ioctl_get_sregs') ?? copyStructOut(arg, kvm_sregs, readSregs(vcpu)) ?? 0;

/** Paging in PAE mode without long mode: then the four PDPTEs are registers. */
const paePaging = (state: CpuState): boolean => state.paging && (state.cr4 & CR4_PAE) !== 0n && (state.efer & EFER_LMA) === 0n;

/** KVM_GET_SREGS2. PDPTEs are read from guest memory at each walk here, so none are reported as valid. */
export const getSregs2 = (vcpu: Vcpu, arg: IoctlArg): Result<number> =>
  refuseProtected(vcpu, 'kvm_arch_vcpu_ioctl_get_sregs2') ?? copyStructOut(arg, kvm_sregs2, commonSregs(vcpu)) ?? 0;

/** `__set_sregs_common`: nothing has changed if it fails. */
const applyCommon = (vcpu: Vcpu, sregs: CommonSregs): Failure | null => {
  const refused = checkSregs(vcpu, sregs);
  if (refused !== null) return refused;
  if (!setApicBase(vcpu, sregs.apic_base, true))
    return refuse('APIC_BASE_INVALID', 'apic_base', sregs.apic_base, 'a mode that the APIC has, and no reserved bit');
  const { arch } = vcpu;
  const { state } = arch;
  if (vcpu.vm.kernel.ops.guestStateProtected(vcpu)) return null;
  state.setTable('idt', sregs.idt);
  state.setTable('gdt', sregs.gdt);
  state.cr2 = sregs.cr2;
  state.cr3 = sregs.cr3;
  // kvm_set_cr8's refusal is not looked at.
  setCr8(vcpu, sregs.cr8);
  state.efer = sregs.efer;
  state.cr0 = sregs.cr0;
  state.cr4 = sregs.cr4;
  for (const name of SEGMENTS) state.setSegment(name, sregs[name]);
  arch.flushTlb();
  // Older userspace does not unhalt the vCPU on reset.
  const atReset = state.rip === 0xfff0n && sregs.cs.selector === 0xf000 && sregs.cs.base === 0xffff_0000n;
  if (vcpu.id === vcpu.vm.arch.bspVcpuId && atReset && !state.protectedMode) arch.mpState = KVM_MP_STATE.RUNNABLE;
  return null;
};

/** `__set_sregs`. The lowest vector of `interrupt_bitmap` is injected at the next entry. */
export const applySregs = (vcpu: Vcpu, sregs: Sregs): Failure | null => {
  const refused = applyCommon(vcpu, sregs);
  if (refused !== null || vcpu.vm.kernel.ops.guestStateProtected(vcpu)) return refused;
  for (const [index, word] of sregs.interrupt_bitmap.entries()) {
    if (word === 0n) continue;
    let bit = 0;
    while (((word >> BigInt(bit)) & 1n) === 0n) bit++;
    vcpu.arch.events.queueInterrupt(64 * index + bit, false);
    vcpu.request(REQUEST.EVENT);
    break;
  }
  return null;
};

/** KVM_SET_SREGS. */
export const setSregs = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const sregs = copyStruct(arg, kvm_sregs);
  if (failed(sregs)) return sregs;
  return refuseProtected(vcpu, 'kvm_arch_vcpu_ioctl_set_sregs') ?? applySregs(vcpu, sregs) ?? 0;
};

/** `__set_sregs2`: unknown flags, or PDPTEs outside PAE paging, are EINVAL. */
const checkSregs2 = (state: CpuState, { flags, cr0, cr4, efer }: Sregs2): Failure | null => {
  const valid = BigInt(KVM_SREGS2_FLAGS.PDPTRS_VALID);
  const pae = (cr0 & CR0_PG) !== 0n && (cr4 & CR4_PAE) !== 0n && (efer & EFER_LMA) === 0n;
  if ((flags & ~valid) === 0n && (flags === 0n || pae || paePaging(state))) return null;
  return new Failure('EINVAL', 'SREGS2_FLAGS', '__set_sregs2', {
    field: 'flags',
    given: `0x${flags.toString(16)}`,
    allowed: pae ? '0 or KVM_SREGS2_FLAGS_PDPTRS_VALID' : '0',
  });
};

/** KVM_SET_SREGS2. */
export const setSregs2 = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const sregs = copyStruct(arg, kvm_sregs2);
  if (failed(sregs)) return sregs;
  return (
    refuseProtected(vcpu, 'kvm_arch_vcpu_ioctl_set_sregs2') ??
    checkSregs2(vcpu.arch.state, sregs) ??
    applyCommon(vcpu, sregs) ??
    0
  );
};
