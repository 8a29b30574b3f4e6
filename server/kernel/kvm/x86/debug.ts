import { Rflags } from '../../../hardware/cpu/flags.js';
import { Vector } from '../../../hardware/cpu/registers.js';
import { Failure, failed, type Result } from '../../failure.js';
import type { IoctlArg } from '../../fs/ioctl-arg.js';
import { KVM_EXIT, KVM_GUESTDBG } from '../../uapi/constants.js';
import { kvm_run__debug } from '../../uapi/kvm-run.js';
import { kvm_debugregs, kvm_guest_debug } from '../../uapi/x86-structs.js';
import { copyStruct, copyStructOut } from '../copy-struct.js';
import type { Vcpu } from '../vcpu.js';
import { queueException } from './inject.js';
import { refuseProtected } from './protected-state.js';
import type { Turn } from './vcpu-arch.js';

const DR6 = 6;
const DR7 = 7;
/** Bits of DR6 that always read as one (DR6_FIXED_1 and DR6_RTM). */
const DR6_FIXED = 0xffff_0ff0;
const DR6_BS = 0x4000;

const ADDRESS_REGISTERS = [0, 1, 2, 3] as const;

/** KVM_GET_DEBUGREGS. */
export const getDebugregs = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const refused = refuseProtected(vcpu, 'kvm_vcpu_ioctl_x86_get_debugregs');
  if (refused !== null) return refused;
  const { state } = vcpu.arch;
  const registers = {
    db: ADDRESS_REGISTERS.map((index) => state.debugRegister(index)),
    dr6: state.debugRegister(DR6),
    dr7: state.debugRegister(DR7),
  };
  return copyStructOut(arg, kvm_debugregs, registers) ?? 0;
};

/** KVM_SET_DEBUGREGS. EINVAL: flags, or anything in the upper halves of DR6 and DR7. */
export const setDebugregs = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const request = copyStruct(arg, kvm_debugregs);
  if (failed(request)) return request;
  const refused = refuseProtected(vcpu, 'kvm_vcpu_ioctl_x86_set_debugregs');
  if (refused !== null) return refused;
  const { db, dr6, dr7, flags } = request;
  for (const [field, given, allowed] of [
    ['flags', flags, flags === 0n],
    ['dr6', dr6, dr6 >> 32n === 0n],
    ['dr7', dr7, dr7 >> 32n === 0n],
  ] as const)
    if (!allowed)
      return new Failure('EINVAL', 'DEBUGREGS_INVALID', 'kvm_vcpu_ioctl_x86_set_debugregs', {
        field,
        given: `0x${given.toString(16)}`,
        allowed: field === 'flags' ? '0' : '32 bits',
      });
  const { state } = vcpu.arch;
  for (const [index, value] of db.entries()) state.setDebugRegister(index, value);
  state.setDebugRegister(DR6, dr6);
  state.setDebugRegister(DR7, dr7);
  return 0;
};

/** KVM_SET_GUEST_DEBUG. EINVAL: protected guest; EBUSY: an exception is to be injected and one waits already. */
export const setGuestDebug = (vcpu: Vcpu, arg: IoctlArg): Result<number> => {
  const request = copyStruct(arg, kvm_guest_debug);
  if (failed(request)) return request;
  const { control, debugreg } = request;
  if (vcpu.vm.kernel.ops.guestStateProtected(vcpu))
    return new Failure('EINVAL', 'GUEST_STATE_PROTECTED', 'kvm_arch_vcpu_ioctl_set_guest_debug', {
      object: `vcpu ${vcpu.id} of vm ${vcpu.vm.id}`,
    });
  const { arch } = vcpu;
  if ((control & (KVM_GUESTDBG.INJECT_DB | KVM_GUESTDBG.INJECT_BP)) !== 0) {
    if (arch.events.exception.pending || arch.events.exception.injected)
      return new Failure('EBUSY', 'EXCEPTION_PENDING', 'kvm_arch_vcpu_ioctl_set_guest_debug', { field: 'control' });
    queueException(vcpu, (control & KVM_GUESTDBG.INJECT_DB) !== 0 ? Vector.DB : Vector.BP);
  }
  arch.guestDebug.control = (control & KVM_GUESTDBG.ENABLE) !== 0 ? control : 0;
  arch.guestDebug.debugRegisters = (control & KVM_GUESTDBG.USE_HW_BP) !== 0 ? debugreg : [];
  return 0;
};

/** KVM_EXIT_DEBUG. `dr6`: the reasons, for a debug exception. */
export const exitDebug = (vcpu: Vcpu, exception: number, dr6: number): Turn => {
  const { run, state, cpu } = vcpu.arch;
  run.exit(KVM_EXIT.DEBUG, kvm_run__debug, {
    exception,
    pc: cpu.linearRip,
    dr6: BigInt((dr6 | DR6_FIXED) >>> 0),
    dr7: state.debugRegister(DR7),
  });
  return 'to-user';
};

/** The guest gets #DB, with these reasons in DR6. */
const queueDebugException = (vcpu: Vcpu, dr6: number): Turn => {
  const { state } = vcpu.arch;
  state.setDebugRegister(DR6, (state.debugRegister(DR6) & ~0xfn) | BigInt((dr6 | DR6_FIXED) >>> 0));
  queueException(vcpu, Vector.DB);
  return 'again';
};

/** `db_interception`: the debugger's, or the guest's own. */
export const debugException = (vcpu: Vcpu, dr6: number): Turn =>
  (vcpu.arch.guestDebug.control & (KVM_GUESTDBG.SINGLESTEP | KVM_GUESTDBG.USE_HW_BP)) !== 0
    ? exitDebug(vcpu, Vector.DB, dr6)
    : queueDebugException(vcpu, dr6);

/** `kvm_vcpu_do_singlestep`, where there is a step to end. `traced`: RFLAGS.TF was set before the instruction. */
export const doSinglestep = (vcpu: Vcpu, traced: boolean): Turn => {
  if ((vcpu.arch.guestDebug.control & KVM_GUESTDBG.SINGLESTEP) !== 0) return exitDebug(vcpu, Vector.DB, DR6_BS);
  return traced ? queueDebugException(vcpu, DR6_BS) : 'again';
};

/**
 * `kvm_skip_emulated_instruction`: KVM has done what the instruction does. A single step ends here too. KVM cannot move
 * the RIP of a protected vCPU; its CPU does.
 */
export const skipEmulatedInstruction = (vcpu: Vcpu): Turn => {
  const { arch } = vcpu;
  if (vcpu.vm.kernel.ops.guestStateProtected(vcpu)) return 'again';
  arch.cpu.skipInstruction();
  return doSinglestep(vcpu, (arch.state.flags.control & Rflags.TF) !== 0);
};
