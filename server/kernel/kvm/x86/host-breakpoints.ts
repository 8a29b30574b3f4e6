import { KVM_GUESTDBG } from '../../uapi/constants.js';
import type { Vcpu } from '../vcpu.js';

/** DR0 to DR3 and DR7, which a debugger of userspace replaces. */
const REPLACED = [0, 1, 2, 3, 7] as const;

/**
 * KVM_GUESTDBG_USE_HW_BP: while the guest runs, the CPU has the debugger's breakpoints in place of the guest's
 * (`kvm_update_dr7` and `vcpu->arch.eff_db`).
 */
export const withHostBreakpoints = <T>(vcpu: Vcpu, run: () => T): T => {
  const { guestDebug, cpu } = vcpu.arch;
  if ((guestDebug.control & KVM_GUESTDBG.USE_HW_BP) === 0) return run();
  const { state } = cpu;
  const guest = REPLACED.map((index) => state.debugRegister(index));
  for (const index of REPLACED) state.setDebugRegister(index, guestDebug.debugRegisters[index] ?? 0n);
  const result = run();
  REPLACED.forEach((register, index) => {
    state.setDebugRegister(register, guest[index] ?? 0n);
  });
  return result;
};
