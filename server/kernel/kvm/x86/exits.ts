import { Gpr, Vector } from '../../../hardware/cpu/registers.js';
import type { CpuExit, NestedFaultExit } from '../../../hardware/cpu/types.js';
import type { Task } from '../../sched/task.js';
import type { MightSleep } from '../../sched/wait.js';
import { KVM_EXIT, KVM_MP_STATE, KVM_X86_DISABLE_EXITS } from '../../uapi/constants.js';
import { REQUEST, type Vcpu } from '../vcpu.js';
import { cpuidForGuest } from './cpuid-runtime.js';
import { setCr8 } from './cr8.js';
import { debugException, exitDebug, skipEmulatedInstruction } from './debug.js';
import { Emulation } from './emulate.js';
import { emulateHypercall } from './hypercall.js';
import { queueException } from './inject.js';
import { emulationFailure, exitDeliveringEvent, exitUnexpected } from './internal-error.js';
import { monitorIsNop } from './monitor.js';
import { emulateRdmsr, emulateWrmsr } from './msr-exit.js';
import { exitMemoryFault, KvmPageFault, RETRY } from './page-fault.js';
import { fastPio } from './pio.js';
import { kvmVcpuReset } from './reset.js';
import { vcpuHasEvents } from './runnable.js';
import { guestTsc } from './tsc.js';
import type { Turn } from './vcpu-arch.js';
import { setXcr } from './xsave.js';

/** `handle_exit`: what the guest has stopped for. */
export function* handleExit(current: Task, vcpu: Vcpu, exit: CpuExit): MightSleep<Turn> {
  switch (exit.kind) {
    case 'vmgexit':
    case 'tdcall':
      return yield* vendorExit(current, vcpu, exit);
    default:
      return handlePlainExit(vcpu, exit);
  }
}

type VendorKind = 'vmgexit' | 'tdcall';
type PlainExit = Exclude<CpuExit, { readonly kind: VendorKind }>;

function* vendorExit(current: Task, vcpu: Vcpu, exit: CpuExit & { readonly kind: VendorKind }): MightSleep<Turn> {
  const outcome = yield* vcpu.vm.kernel.ops.handleVendorExit(current, vcpu, exit);
  if (outcome.kind === 'failed') return outcome.failure;
  return outcome.kind === 'handled' ? 'again' : 'to-user';
}

const handlePlainExit = (vcpu: Vcpu, exit: PlainExit): Turn => {
  const { arch } = vcpu;
  switch (exit.kind) {
    case 'budget':
      return 'again';
    case 'io':
      return exit.string ? emulate(vcpu) : fastPio(vcpu, exit);
    case 'nested-fault':
      return nestedFault(vcpu, exit);
    case 'hlt':
      return emulateHalt(vcpu);
    case 'cpuid':
      return emulateCpuid(vcpu);
    case 'rdmsr':
      return emulateRdmsr(vcpu, exit.index);
    case 'wrmsr':
      return emulateWrmsr(vcpu, exit.index, exit.value);
    case 'rdtsc':
      return emulateRdtsc(vcpu, exit.withAux);
    case 'rdpmc':
      // There is no virtual PMU.
      return generalProtection(vcpu);
    case 'xsetbv':
      return setXcr(vcpu, exit.index, exit.value) ? skipEmulatedInstruction(vcpu) : generalProtection(vcpu);
    case 'vmmcall':
      return emulateHypercall(vcpu);
    case 'pause':
    case 'wbinvd':
    case 'invd':
      return skipEmulatedInstruction(vcpu);
    case 'monitor':
    case 'mwait':
      return emulateMonitor(vcpu);
    case 'cr8-write':
      arch.lapic?.setCr8(Number(arch.cpu.state.cr8));
      return 'again';
    case 'write-trap':
      return writeTrap(vcpu, exit.register);
    case 'exception':
      if (exit.vector === Vector.UD) return undefinedInstruction(vcpu);
      return exit.vector === Vector.BP ? exitDebug(vcpu, Vector.BP, 0) : exitUnexpected(vcpu, exit);
    case 'debug':
      return debugException(vcpu, exit.dr6);
    case 'interrupt-window':
      arch.stat.irq_window_exits++;
      vcpu.request(REQUEST.EVENT);
      return 'again';
    case 'nmi-window':
      arch.stat.nmi_window_exits++;
      vcpu.request(REQUEST.EVENT);
      return 'again';
    case 'shutdown':
      return shutdown(vcpu);
    case 'unsupported':
      // Not all of its bytes could be read: userspace is told once they have come.
      return arch.awaitedPage === null ? emulationFailure(vcpu, exit.bytes) : 'again';
  }
};

const generalProtection = (vcpu: Vcpu): Turn => {
  queueException(vcpu, Vector.GP, 0);
  return 'again';
};

/** `x86_emulate_instruction` of the instruction at RIP. */
const emulate = (vcpu: Vcpu): Turn => new Emulation(vcpu, (bytes) => emulationFailure(vcpu, bytes)).attempt();

/** `npf_interception` with PFERR_GUEST_RMP: a conversion of the page that userspace has to make, or the vendor's to mend. */
const reverseMapFault = (vcpu: Vcpu, { gpa, encrypted }: NestedFaultExit): KvmPageFault => {
  const mismatch = vcpu.vm.arch.mmu.attributeMismatch(gpa, encrypted);
  if (mismatch !== null) return mismatch;
  vcpu.vm.kernel.ops.handleRmpFault?.(vcpu, gpa);
  return RETRY;
};

/** `npf_interception` and `kvm_mmu_page_fault`. */
const nestedFault = (vcpu: Vcpu, exit: NestedFaultExit): Turn => {
  const { arch } = vcpu;
  const { outcome } = exit.rmp ? reverseMapFault(vcpu, exit) : exit.fault instanceof KvmPageFault ? exit.fault : RETRY;
  if (outcome.kind === 'retry' || outcome.kind === 'missing') return 'again';
  if (outcome.kind === 'failed') return exitMemoryFault(vcpu, outcome);
  arch.stat.pf_emulate++;
  // The fault of a walk through a hole is delivered by a walk through the same hole: no handler is ever reached.
  if (exit.pageWalk) {
    vcpu.request(REQUEST.TRIPLE_FAULT);
    return 'again';
  }
  if (exit.delivering !== null) return exitDeliveringEvent(vcpu, exit.gpa, exit.access);
  // There is no instruction to emulate where none can be fetched.
  return exit.access === 'execute' ? emulationFailure(vcpu, null) : emulate(vcpu);
};

/**
 * `kvm_emulate_halt`: without an APIC in the kernel the HLT is userspace's. With KVM_X86_DISABLE_EXITS_HLT the CPU itself
 * halts and userspace does not hear of it, which is a vCPU that sleeps here too.
 */
const emulateHalt = (vcpu: Vcpu): Turn => {
  const { arch } = vcpu;
  arch.stat.halt_exits++;
  const skipped = skipEmulatedInstruction(vcpu);
  const inGuest = (vcpu.vm.arch.disabledExits & KVM_X86_DISABLE_EXITS.HLT) !== 0;
  if (arch.lapic === null && !inGuest) {
    arch.run.exitReason = KVM_EXIT.HLT;
    return 'to-user';
  }
  arch.mpState = vcpuHasEvents(vcpu) ? KVM_MP_STATE.RUNNABLE : KVM_MP_STATE.HALTED;
  return skipped;
};

/** `cr_trap` and `efer_trap`: KVM's own copy of a protected vCPU's register follows the write, which is done. */
const writeTrap = (vcpu: Vcpu, register: 'cr0' | 'cr4' | 'cr8' | 'efer'): Turn => {
  const { cpu, state } = vcpu.arch;
  if (register === 'cr8') setCr8(vcpu, cpu.state.cr8);
  else state[register] = cpu.state[register];
  return 'again';
};

const emulateCpuid = (vcpu: Vcpu): Turn => {
  const { state } = vcpu.arch;
  const leaf = Number(state.register(Gpr.RAX) & 0xffff_ffffn);
  const index = Number(state.register(Gpr.RCX) & 0xffff_ffffn);
  const { eax, ebx, ecx, edx } = cpuidForGuest(vcpu, leaf, index);
  state.setRegister(Gpr.RAX, BigInt(eax >>> 0));
  state.setRegister(Gpr.RBX, BigInt(ebx >>> 0));
  state.setRegister(Gpr.RCX, BigInt(ecx >>> 0));
  state.setRegister(Gpr.RDX, BigInt(edx >>> 0));
  return skipEmulatedInstruction(vcpu);
};

const emulateRdtsc = (vcpu: Vcpu, withAux: boolean): Turn => {
  const { state } = vcpu.arch;
  const value = guestTsc(vcpu);
  state.setRegister(Gpr.RAX, value & 0xffff_ffffn);
  state.setRegister(Gpr.RDX, value >> 32n);
  if (withAux) state.setRegister(Gpr.RCX, (state.readMsr(TSC_AUX) ?? 0n) & 0xffff_ffffn);
  return skipEmulatedInstruction(vcpu);
};

const TSC_AUX = 0xc000_0103;

const emulateMonitor = (vcpu: Vcpu): Turn => {
  if (monitorIsNop(vcpu)) return skipEmulatedInstruction(vcpu);
  queueException(vcpu, Vector.UD);
  return 'again';
};

/** `handle_ud`: the CPU knows every instruction that is emulated for its own sake, so the guest gets its exception. */
const undefinedInstruction = (vcpu: Vcpu): Turn => {
  queueException(vcpu, Vector.UD);
  return 'again';
};

/** KVM_EXIT_SHUTDOWN. AMD's VMCB is undefined after a shutdown, so svm puts the vCPU through INIT first, vmx does not. */
export const shutdown = (vcpu: Vcpu): Turn => {
  const { arch, vm } = vcpu;
  const { ops, config } = vm.kernel;
  if (config.vendor === 'amd' && !ops.encryptedState(vcpu)) kvmVcpuReset(vcpu, true);
  arch.run.exitReason = KVM_EXIT.SHUTDOWN;
  return 'to-user';
};
