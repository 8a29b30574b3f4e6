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

/**
 * `kvm_emulate_hypercall`, by VMMCALL or VMCALL. The paravirtual features of KVM are not offered, so of its hypercalls
 * only KVM_HC_MAP_GPA_RANGE does something, and that is userspace's to do. Where the guest has used the other vendor's
 * instruction, real KVM patches it (KVM_X86_QUIRK_FIX_HYPERCALL_INSN); here it is taken as it is.
 */
export const emulateHypercall = (vcpu: Vcpu): Turn => {
  const { arch } = vcpu;
  const { state } = arch;
  const wide = state.code64;
  const register = (index: number): bigint => (wide ? state.register(index) : state.register(index) & MASK32);
  const finish = (result: bigint): Turn => {
    state.setRegister(Gpr.RAX, BigInt.asUintN(wide ? 64 : 32, result));
    arch.stat.hypercalls++;
    return skipEmulatedInstruction(vcpu);
  };
  if (state.cpl !== 0) return finish(-KVM_EPERM);
  const nr = register(Gpr.RAX);
  if (nr !== BigInt(KVM_HC.MAP_GPA_RANGE) || ((vcpu.vm.arch.hypercallExitMask >> nr) & 1n) === 0n) return finish(-KVM_ENOSYS);
  const [gpa, npages, attributes] = [register(Gpr.RBX), register(Gpr.RCX), register(Gpr.RDX)];
  const first = gpa >> GFN_SHIFT;
  if (gpa % BigInt(PAGE_SIZE) !== 0n || npages === 0n || BigInt.asUintN(64, first + npages) <= first) return finish(-KVM_EINVAL);
  arch.run.exit(KVM_EXIT.HYPERCALL, kvm_run__hypercall, {
    nr,
    args: [gpa, npages, attributes, 0n, 0n, 0n],
    // What userspace leaves as it is counts as success.
    ret: 0n,
    flags: wide ? BigInt(KVM_EXIT_HYPERCALL_FLAG.LONG_MODE) : 0n,
  });
  arch.completion = completion('hypercall', true, () => {
    const { ret } = arch.run.read(kvm_run__hypercall);
    if (ret === 0n) vcpu.vm.arch.sharedFrames.mapGpaRange(Number(first), Number(npages), attributes);
    return finish(ret);
  });
  return 'to-user';
};
