import { Gpr } from '../../../hardware/cpu/registers.js';
import { PAGE_SIZE } from '../../../hardware/units.js';
import { KVM_EXIT, KVM_EXIT_HYPERCALL_FLAG, KVM_HC } from '../../uapi/constants.js';
import { kvm_run__hypercall } from '../../uapi/kvm-run.js';
import type { Vcpu } from '../vcpu.js';
import { completion } from './completion.js';
import { skipEmulatedInstruction } from './debug.js';
import type { Turn } from './vcpu-arch.js';

/** Results of hypercalls (include/uapi/linux/kvm_para.h). */
const KVM_EPERM = 1n;
const KVM_EINVAL = 22n;
const KVM_ENOSYS = 1000n;

const MASK32 = 0xffff_ffffn;
const GFN_SHIFT = 12n;

/** What a guest has in its registers when it calls, and what becomes of the result. */
export interface Hypercall {
  /** 64-bit mode. */
  readonly wide: boolean;
  readonly cpl: number;
  readonly nr: bigint;
  readonly args: readonly [bigint, bigint, bigint];
  finish(result: bigint): Turn;
}

/**
 * `kvm_emulate_hypercall`, by VMMCALL or VMCALL. The paravirtual features of KVM are not offered, so of its hypercalls
 * only KVM_HC_MAP_GPA_RANGE does something, and that is userspace's to do. Where the guest has used the other vendor's
 * instruction, real KVM patches it (KVM_X86_QUIRK_FIX_HYPERCALL_INSN); here it is taken as it is.
 */
export const emulateHypercall = (vcpu: Vcpu): Turn => {
  const { state } = vcpu.arch;
  const wide = state.code64;
  const register = (index: number): bigint => (wide ? state.register(index) : state.register(index) & MASK32);
  return hypercall(vcpu, {
    wide,
    cpl: state.cpl,
    nr: register(Gpr.RAX),
    args: [register(Gpr.RBX), register(Gpr.RCX), register(Gpr.RDX)],
    finish: (result) => {
      state.setRegister(Gpr.RAX, result);
      return skipEmulatedInstruction(vcpu);
    },
  });
};

/** `____kvm_emulate_hypercall`, whatever way the guest has called. */
export const hypercall = (vcpu: Vcpu, { wide, cpl, nr, args, finish }: Hypercall): Turn => {
  const { arch, vm } = vcpu;
  const done = (result: bigint): Turn => {
    arch.stat.hypercalls++;
    return finish(BigInt.asUintN(wide ? 64 : 32, result));
  };
  if (cpl !== 0) return done(-KVM_EPERM);
  if (nr !== BigInt(KVM_HC.MAP_GPA_RANGE) || ((vm.arch.hypercallExitMask >> nr) & 1n) === 0n) return done(-KVM_ENOSYS);
  const [gpa, npages, attributes] = args;
  const first = gpa >> GFN_SHIFT;
  if (gpa % BigInt(PAGE_SIZE) !== 0n || npages === 0n || BigInt.asUintN(64, first + npages) <= first) return done(-KVM_EINVAL);
  arch.run.exit(KVM_EXIT.HYPERCALL, kvm_run__hypercall, {
    nr,
    args: [gpa, npages, attributes, 0n, 0n, 0n],
    // What userspace leaves as it is counts as success.
    ret: 0n,
    flags: wide ? BigInt(KVM_EXIT_HYPERCALL_FLAG.LONG_MODE) : 0n,
  });
  arch.completion = completion('hypercall', true, () => {
    const { ret } = arch.run.read(kvm_run__hypercall);
    if (ret === 0n) vm.arch.sharedFrames.mapGpaRange(Number(first), Number(npages), attributes);
    return done(ret);
  });
  return 'to-user';
};
