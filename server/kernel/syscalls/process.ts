import { Failure, type Result } from '../failure.js';
import type { Kernel } from '../kernel.js';
import type { Process } from '../process/process.js';
import { SIGKILL } from '../process/thread.js';
import type { Task } from '../sched/task.js';

const SIGNAL_MAX = 64;
const SIGSTOP = 19;
/** `how` of sigprocmask. */
export const SIG = { BLOCK: 0, UNBLOCK: 1, SETMASK: 2 } as const;

/** `fork`: the child has a copy of the descriptors; private memory is copied on write, shared memory stays shared. */
export const fork = (kernel: Kernel, current: Task): Result<Process> => kernel.fork(current.process);

/**
 * `kill` and `tgkill`: to one thread, or to all of a process. SIGKILL ends the process; any other ends the waits that it
 * may end. Signal 0 only asks. EINVAL: no such signal; ESRCH: no such thread, or the process is gone.
 */
export const kill = (kernel: Kernel, target: Process, signo: number, tid?: number): Result<number> => {
  if (!Number.isInteger(signo) || signo < 0 || signo > SIGNAL_MAX)
    return new Failure('EINVAL', 'SIGNAL_NUMBER', 'do_send_specific', {
      field: 'signo',
      given: String(signo),
      allowed: `0 to ${SIGNAL_MAX}`,
    });
  const details = { pid: String(target.pid), ...(tid === undefined ? {} : { tid: String(tid) }) };
  if (target.state.kind !== 'running') return new Failure('ESRCH', 'NO_SUCH_PROCESS', 'do_send_specific', details);
  if (tid !== undefined && !target.hasThread(tid)) return new Failure('ESRCH', 'NO_SUCH_THREAD', 'do_send_specific', details);
  if (signo === SIGKILL) kernel.exit(target);
  else if (signo !== 0) target.signal(signo, tid);
  return 0;
};

/**
 * `rt_sigprocmask` of the calling thread. SIGKILL and SIGSTOP stay unblocked. EINVAL: `how` is none of SIG, or there is no
 * such signal.
 */
export const sigprocmask = (current: Task, how: number, signals: readonly number[]): Result<number> => {
  const { thread } = current;
  const unknown = signals.find((signo) => signo < 1 || signo > SIGNAL_MAX);
  if (unknown !== undefined)
    return new Failure('EINVAL', 'SIGNAL_NUMBER', 'sigprocmask', {
      field: 'signals',
      given: String(unknown),
      allowed: `1 to ${SIGNAL_MAX}`,
    });
  const asked = new Set(signals);
  asked.delete(SIGKILL);
  asked.delete(SIGSTOP);
  if (how === SIG.BLOCK) thread.blocked = new Set([...thread.blocked, ...asked]);
  else if (how === SIG.UNBLOCK) thread.blocked = new Set([...thread.blocked].filter((signo) => !asked.has(signo)));
  else if (how === SIG.SETMASK) thread.blocked = asked;
  else return new Failure('EINVAL', 'SIGPROCMASK_HOW', 'sigprocmask', { field: 'how', given: String(how) });
  return 0;
};
