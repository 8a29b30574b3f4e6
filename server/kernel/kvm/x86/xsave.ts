import type { CpuState } from '../../../hardware/cpu/state.js';
import { Failure, failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import { kvm_xcrs, kvm_xsave } from '../../uapi/x86-structs.js';
import { copyStruct, copyStructOut } from '../copy-struct.js';
import type { Vcpu } from '../vcpu.js';
import { protectedFpu } from './protected-state.js';

/** Bytes of the legacy area and of the header of an XSAVE area (APM volume 2, 11.5.4). */
export const FXSAVE_BYTES = 512;
export const XSAVE_HEADER_BYTES = 64;

const XFEATURE = { FP: 1n, SSE: 2n, YMM: 4n } as const;
/** `kvm_caps.supported_xcr0`: the CPU's subset has no AVX. */
export const SUPPORTED_XCR0 = XFEATURE.FP | XFEATURE.SSE;
/** Bits of MXCSR that can be set. */
const MXCSR_MASK = 0xffff;

/** Offsets in the legacy area. */
const AT = {
  FCW: 0,
  FSW: 2,
  FTW: 4,
  FOP: 6,
  FIP: 8,
  FDP: 16,
  MXCSR: 24,
  MXCSR_MASK: 28,
  ST: 32,
  XMM: 160,
  XSTATE_BV: 512,
} as const;

/** The XSAVE area of a vCPU's registers, in the standard format. */
const saveArea = (state: CpuState): Uint8Array => {
  const area = new Uint8Array(kvm_xsave.size);
  const view = new DataView(area.buffer);
  view.setUint16(AT.FCW, state.fcw, true);
  view.setUint16(AT.FSW, state.fsw, true);
  view.setUint8(AT.FTW, state.ftw);
  view.setUint16(AT.FOP, state.fop, true);
  view.setBigUint64(AT.FIP, state.fip, true);
  view.setBigUint64(AT.FDP, state.fdp, true);
  view.setUint32(AT.MXCSR, state.mxcsr, true);
  view.setUint32(AT.MXCSR_MASK, MXCSR_MASK, true);
  area.set(state.st, AT.ST);
  area.set(state.xmmBytes, AT.XMM);
  view.setBigUint64(AT.XSTATE_BV, SUPPORTED_XCR0, true);
  return area;
};

/** A component whose bit in XSTATE_BV is clear goes to its initial state, as XRSTOR does it. */
const restoreArea = (state: CpuState, area: Uint8Array): void => {
  const view = new DataView(area.buffer, area.byteOffset, area.byteLength);
  const present = view.getBigUint64(AT.XSTATE_BV, true);
  const fp = (present & XFEATURE.FP) !== 0n;
  const sse = (present & XFEATURE.SSE) !== 0n;
  state.fcw = fp ? view.getUint16(AT.FCW, true) : 0x37f;
  state.fsw = fp ? view.getUint16(AT.FSW, true) : 0;
  state.ftw = fp ? view.getUint8(AT.FTW) : 0;
  state.fop = fp ? view.getUint16(AT.FOP, true) : 0;
  state.fip = fp ? view.getBigUint64(AT.FIP, true) : 0n;
  state.fdp = fp ? view.getBigUint64(AT.FDP, true) : 0n;
  if (fp) state.st.set(area.subarray(AT.ST, AT.ST + state.st.length));
  else state.st.fill(0);
  state.mxcsr = view.getUint32(AT.MXCSR, true);
  if (sse) state.xmmBytes.set(area.subarray(AT.XMM, AT.XMM + state.xmmBytes.length));
  else state.xmmBytes.fill(0);
};

/** KVM_GET_XSAVE and KVM_GET_XSAVE2. A protected vCPU of a legacy SEV-ES guest gives zeros. */
export const getXsave = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const answer = protectedFpu(vcpu);
  if (answer !== null) return answer === 0 ? (copyStructOut(arg, kvm_xsave, {}) ?? 0) : answer;
  return copyStructOut(arg, kvm_xsave, { region: saveArea(vcpu.arch.state) }) ?? 0;
};

/** KVM_SET_XSAVE (`fpu_copy_uabi_to_guest_fpstate`). EINVAL: unknown components, reserved bits of MXCSR. */
export const setXsave = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const request = copyStruct(arg, kvm_xsave);
  if (failed(request)) return request;
  const answer = protectedFpu(vcpu);
  if (answer !== null) return answer;
  const view = new DataView(request.region.buffer, request.region.byteOffset);
  const present = view.getBigUint64(AT.XSTATE_BV, true);
  if ((present & ~SUPPORTED_XCR0) !== 0n)
    return new Failure('EINVAL', 'XSTATE_UNSUPPORTED', 'fpu_copy_uabi_to_guest_fpstate', {
      field: 'xstate_bv',
      given: `0x${present.toString(16)}`,
      allowed: `0x${SUPPORTED_XCR0.toString(16)}`,
    });
  const mxcsr = view.getUint32(AT.MXCSR, true);
  if ((mxcsr & ~MXCSR_MASK) !== 0)
    return new Failure('EINVAL', 'MXCSR_RESERVED', 'fpu_copy_uabi_to_guest_fpstate', {
      field: 'mxcsr',
      given: `0x${mxcsr.toString(16)}`,
      allowed: `0x${MXCSR_MASK.toString(16)}`,
    });
  restoreArea(vcpu.arch.state, request.region);
  return 0;
};

/** KVM_GET_XCRS: XCR0 is the only one. */
export const getXcrs = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const xcr = { xcr: 0, reserved: 0, value: vcpu.arch.state.xcr0Value };
  return copyStructOut(arg, kvm_xcrs, { nr_xcrs: 1, xcrs: [xcr] }) ?? 0;
};

/** KVM_MAX_XCRS. */
const XCRS_MAX = 16;

/** KVM_SET_XCRS: looks at the first entry for XCR0 and at no other. */
export const setXcrs = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const request = copyStruct(arg, kvm_xcrs);
  if (failed(request)) return request;
  const { nr_xcrs: count, flags, xcrs } = request;
  if (count > XCRS_MAX || flags !== 0)
    return new Failure('EINVAL', 'XCRS_FLAGS', 'kvm_vcpu_ioctl_x86_set_xcrs', {
      field: count > XCRS_MAX ? 'nr_xcrs' : 'flags',
      given: String(count > XCRS_MAX ? count : flags),
    });
  const xcr0 = xcrs.slice(0, count).find(({ xcr }) => xcr === 0);
  if (xcr0 === undefined || setXcr(vcpu, 0, xcr0.value)) return 0;
  return new Failure('EINVAL', 'XCR0_INVALID', '__kvm_set_xcr', { field: 'value', given: `0x${xcr0.value.toString(16)}` });
};

/** `__kvm_set_xcr`: false where XSETBV gives #GP. */
export const setXcr = (vcpu: Vcpu, index: number, value: bigint): boolean => {
  if (index !== 0 || (value & XFEATURE.FP) === 0n) return false;
  if ((value & XFEATURE.YMM) !== 0n && (value & XFEATURE.SSE) === 0n) return false;
  const leaf = vcpu.arch.cpuid.find(0xd, 0);
  const supported = leaf === undefined ? 0n : ((BigInt(leaf.edx) << 32n) | BigInt(leaf.eax)) & SUPPORTED_XCR0;
  if ((value & ~(supported | XFEATURE.FP)) !== 0n) return false;
  vcpu.arch.state.xcr0Value = value;
  return true;
};
