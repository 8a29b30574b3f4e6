import type { Task } from '../../sched/task.js';
import type { MightSleep } from '../../sched/wait.js';
import type { Vcpu } from '../vcpu.js';
import type { ToldExit } from './kvm-run.js';
import type { Completion, Turn, VcpuArch } from './vcpu-arch.js';

/** Exits to which a write is all that userspace is told of; WRMSR is none of them, for userspace may refuse it. */
const WRITES: ReadonlySet<Completion['kind']> = new Set(['pio-out', 'mmio']);

/**
 * Brings a stopped vCPU between two instructions, as far as that needs no answer of its VMM: `kvm_arch_vcpu_ioctl_run` with
 * immediate_exit, which in the real kernel only the VMM can call. True: nothing of its I/O is open. With the vCPU's mutex held.
 */
export function* kvmArchVcpuCompleteIo(current: Task, { arch }: Vcpu): MightSleep<boolean> {
  yield* completeWrite(current, arch);
  return arch.completion === null && arch.emulation === null;
}

/** Which exit userspace has to complete, for people. Null: none. */
export const kvmArchVcpuOpenExit = ({ arch }: Vcpu): string | null => arch.completion?.kind ?? null;

/**
 * Completes the last exit in the place of a VMM that has not called KVM_RUN again, where that was a write: the VMM has been told
 * all, and nothing of its answer counts. If the instruction has more to tell, the next KVM_RUN tells it, and what stands in the
 * run page until then stays: the VMM may not have read it.
 */
function* completeWrite(current: Task, arch: VcpuArch): MightSleep<void> {
  const { completion, run } = arch;
  // Registers that userspace has put into the run page count before the exit is completed.
  if (completion === null || completion.wantsData || !WRITES.has(completion.kind) || run.dirtyRegs !== 0n) return;
  const told = run.told();
  arch.completion = null;
  const turn = yield* completion.run(current);
  if (turn !== 'again') arch.completion = deferred(arch, turn, run.told(), arch.completion);
  run.tell(told);
}

/** Tells an exit, or refuses, when KVM_RUN is called; `then` is what follows that. */
const deferred = (arch: VcpuArch, turn: Turn, exit: ToldExit, then: Completion | null): Completion => ({
  kind: 'deferred',
  wantsData: then?.wantsData ?? false,
  *run() {
    arch.run.tell(exit);
    arch.completion = then;
    return turn;
  },
});
