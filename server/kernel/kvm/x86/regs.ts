import { Rflags } from '../../../hardware/cpu/flags.js';
import { GENERAL_REGISTERS } from '../../../hardware/cpu/state.js';
import type { GeneralRegisters } from '../../../hardware/cpu/types.js';
import { failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import { kvm_regs } from '../../uapi/x86-structs.js';
import { copyStruct } from '../copy-struct.js';
import { REQUEST, type Vcpu } from '../vcpu.js';
import { refuseProtected } from './protected-state.js';

/** Where in `kvm_regs`, in words of 32 bits, the register with each number is. */
const WORD_OF = GENERAL_REGISTERS.map((name) => kvm_regs.fields[name].offset / 4);
const RIP_WORD = kvm_regs.fields.rip.offset / 4;
const RFLAGS_WORD = kvm_regs.fields.rflags.offset / 4;

/** A `kvm_regs` on its way out, which is copied at once. */
const outgoing = new Int32Array(kvm_regs.size / 4);
const outgoingBytes = new Uint8Array(outgoing.buffer);

/** KVM_GET_REGS. From word to word: a BigInt for each register would take longer than the rest of the call. */
export const getRegs = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const refused = refuseProtected(vcpu, 'kvm_arch_vcpu_ioctl_get_regs');
  if (refused !== null) return refused;
  const { gpr, ripLo, ripHi, flags } = vcpu.arch.state;
  for (let number = 0; number < WORD_OF.length; number++) {
    const word = WORD_OF[number];
    outgoing[word] = gpr[2 * number];
    outgoing[word + 1] = gpr[2 * number + 1];
  }
  outgoing[RIP_WORD] = ripLo;
  outgoing[RIP_WORD + 1] = ripHi;
  outgoing[RFLAGS_WORD] = flags.value;
  return arg.user.copyOut(arg.value, outgoingBytes) ?? 0;
};

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
