import { failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import { kvm_fpu } from '../../uapi/x86-structs.js';
import { copyStruct, copyStructOut } from '../copy-struct.js';
import type { Vcpu } from '../vcpu.js';
import { protectedFpu } from './protected-state.js';

/** KVM_GET_FPU. MXCSR is not part of what it gives: always 0. */
export const getFpu = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const answer = protectedFpu(vcpu);
  const { state } = vcpu.arch;
  if (answer !== null) return answer === 0 ? (copyStructOut(arg, kvm_fpu, {}) ?? 0) : answer;
  const registers = {
    fpr: state.st,
    fcw: state.fcw,
    fsw: state.fsw,
    ftwx: state.ftw,
    last_opcode: state.fop,
    last_ip: state.fip,
    last_dp: state.fdp,
    xmm: state.xmmBytes,
  };
  return copyStructOut(arg, kvm_fpu, registers) ?? 0;
};

/** KVM_SET_FPU: everything but MXCSR. */
export const setFpu = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const fpu = copyStruct(arg, kvm_fpu);
  if (failed(fpu)) return fpu;
  const answer = protectedFpu(vcpu);
  if (answer !== null) return answer;
  const { state } = vcpu.arch;
  state.st.set(fpu.fpr);
  state.fcw = fpu.fcw;
  state.fsw = fpu.fsw;
  state.ftw = fpu.ftwx;
  state.fop = fpu.last_opcode;
  state.fip = fpu.last_ip;
  state.fdp = fpu.last_dp;
  state.xmmBytes.set(fpu.xmm);
  return 0;
};
