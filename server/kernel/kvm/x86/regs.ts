import { Rflags } from '../../../hardware/cpu/flags.js';
import type { GeneralRegisters } from '../../../hardware/cpu/types.js';
import { failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import { kvm_regs } from '../../uapi/x86-structs.js';
import { copyStruct, copyStructOut } from '../copy-struct.js';
import { REQUEST, type Vcpu } from '../vcpu.js';
import { refuseProtected } from './protected-state.js';

/** KVM_GET_REGS. */
export const getRegs = (vcpu: Vcpu, arg: IoctlArg): Result<number> =>
  refuseProtected(vcpu, 'kvm_arch_vcpu_ioctl_get_regs') ?? copyStructOut(arg, kvm_regs, vcpu.arch.state.getRegisters()) ?? 0;

/** KVM_SET_REGS: any RIP, any RFLAGS. An exception that was about to be injected is dropped. */
export const setRegs = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const registers = copyStruct(arg, kvm_regs);
  if (failed(registers)) return registers;
  const refused = refuseProtected(vcpu, 'kvm_arch_vcpu_ioctl_set_regs');
  if (refused !== null) return refused;
  applyRegs(vcpu, registers);
  return 0;
};

/** `__set_regs`. */
export const applyRegs = (vcpu: Vcpu, registers: GeneralRegisters): void => {
  vcpu.arch.state.setRegisters({ ...registers, rflags: registers.rflags | BigInt(Rflags.FIXED) });
  vcpu.arch.events.exception.pending = false;
  vcpu.request(REQUEST.EVENT);
};
